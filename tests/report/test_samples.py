"""Samples are held-out text, continued by the run's own weights, and the same each time."""

import json

import pytest

from mypt.errors import MyPTError
from mypt.report.samples import make_samples, model_folder, read_samples, weights_bytes
from mypt.report.write import write_report
from mypt.tokenization.load import load_tokenizer


def test_prompt_and_original_stand_together_in_the_held_out_text(whole_copy, corpora):
    found = make_samples(whole_copy, each=2)
    assert [sample["set"] for sample in found["samples"]] == ["domain", "domain", "general", "general"]
    for sample in found["samples"]:
        held_out = (corpora / f"{sample['set']}.txt").read_text()[-6_100:]
        assert sample["prompt"] + sample["original"] in held_out
        assert sample["text"] and sample["text"] != sample["original"]
    assert found == read_samples(whole_copy) == make_samples(whole_copy, each=2)


def test_the_model_of_the_run_wrote_them(whole_copy):
    """The first token is the one that the model's own generate draws under the same settings."""
    from mypt.checkpoints.load import load_model
    from mypt.generation.engine import Engine
    from mypt.generation.settings import GenerationSettings

    sample = make_samples(whole_copy, each=1)["samples"][0]
    engine = Engine(load_model(whole_copy), load_tokenizer(whole_copy))
    settings = GenerationSettings(max_new_tokens=43, temperature=0.8, top_p=0.95, seed=0)
    assert engine.complete(sample["prompt"], settings).text == sample["text"]


def test_samples_of_other_weights_are_not_used(whole_copy):
    make_samples(whole_copy)
    content = json.loads((whole_copy / "samples.json").read_text())
    (whole_copy / "samples.json").write_text(json.dumps(content | {"weights": "0" * 32}))
    assert read_samples(whole_copy) is None


def test_a_report_says_why_there_are_none(whole_copy):
    size = (whole_copy / "model.safetensors").stat().st_size
    assert weights_bytes(whole_copy) == size
    html = write_report(whole_copy, most_bytes=size - 1).read_text()
    assert "the model is large" in html and not (whole_copy / "samples.json").exists()
    (whole_copy / "model.safetensors").write_bytes(b"damaged")
    assert "None: " in write_report(whole_copy).read_text()


def test_without_data_or_model_there_are_none(whole_copy):
    environment = json.loads((whole_copy / "environment.json").read_text())
    (whole_copy / "environment.json").write_text(json.dumps(environment | {"datasets": []}))
    with pytest.raises(MyPTError, match="no held-out text"):
        make_samples(whole_copy)


def test_a_run_that_went_on_is_shown_by_its_last_checkpoint(whole_copy):
    """Its folder still holds the model of its former end."""
    assert model_folder(whole_copy) == whole_copy
    result = json.loads((whole_copy / "result.json").read_text())
    (whole_copy / "result.json").write_text(json.dumps(result | {"state": "interrupted", "step": 8}))
    assert model_folder(whole_copy) == whole_copy / "checkpoint-12"
    (whole_copy / "result.json").write_text(json.dumps(result | {"step": 8}))
    assert model_folder(whole_copy) == whole_copy / "checkpoint-12"
