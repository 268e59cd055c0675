"""A model is loaded whole, or one message says what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.load import load_model
from mypt.errors import CheckpointError


@pytest.fixture
def saved(tmp_path):
    config = MyPTConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        dtype="bfloat16",
    )
    model = MyPTForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_a_folder_gives_its_model_in_its_dtype(saved):
    folder, model = saved
    loaded = load_model(folder)
    assert type(loaded) is MyPTForCausalLM and loaded.dtype == torch.bfloat16 and not loaded.training
    weights = loaded.cpu().state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_any_causal_lm_is_taken(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is GPT2LMHeadModel


def test_missing_weights_are_not_made_up(saved):
    folder, _ = saved
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of its weights, model\.norm\.weight first"):
        load_model(folder)


def test_a_folder_without_a_model_says_what_to_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json: name a run folder or a checkpoint folder"):
        load_model(tmp_path)
    for step in (20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"its run has not finished, but there is .*checkpoint-100"):
        load_model(tmp_path)


def test_damaged_weights_are_one_message(saved):
    folder, _ = saved
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_model(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_is_nowhere_is_refused():
    with pytest.raises(CheckpointError, match="runs/no/such is neither a folder here nor a model that the hub gives"):
        load_model("runs/no/such")


def test_code_of_strangers_is_not_run(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "someone-elses"}))
    with (folder / "configuration_mypt.py").open("a") as file:
        file.write("\nraise SystemExit('this code ran')\n")
    with pytest.raises(CheckpointError, match=r"cannot be loaded.*--trust-remote-code runs it"):
        load_model(folder)
    with pytest.raises(SystemExit, match="this code ran"):
        load_model(folder, trust_remote_code=True)


def test_a_model_of_another_kind_is_named(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=32, **t5)).save_pretrained(tmp_path / "t5")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path / "reward")
    for name, kind in (("t5", "T5ForConditionalGeneration"), ("reward", "LlamaForSequenceClassification")):
        with pytest.raises(CheckpointError, match=rf"{kind}.* is not a decoder-only language model"):
            load_model(tmp_path / name)


def test_weights_that_are_left_out_are_named(tmp_path, capsys):
    """A classifier made of GPT-2 holds a whole GPT-2, whose head is its embedding."""
    from transformers import GPT2ForSequenceClassification

    GPT2ForSequenceClassification(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is GPT2LMHeadModel
    assert "1 weights that GPT2LMHeadModel has no place for: score.weight" in capsys.readouterr().err
