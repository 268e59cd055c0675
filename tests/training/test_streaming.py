"""Training on text just in time: what is trained on and what is not, and that a kill loses and repeats nothing."""

import gzip
import io
import json
import math
import random
import re
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mypt.checkpoints.lineage import coverage_of, find_lineage
from mypt.cli.main import main
from mypt.errors import DataError, RecipeError
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.recipe import load_recipe, parse_recipe
from mypt.shards.reader import ShardReader
from mypt.streams.document_reader import Cursor
from mypt.tokenization.load import largest_id, load_tokenizer, tokenizer_hash
from mypt.training.build import build_trainer
from mypt.training.data.run_data import resolve_data
from mypt.training.run import train
from tests.processes import launch
from tests.training.test_kill import start, twins, wait_for

CARD = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  splits:
  - {name: train, num_examples: 90, num_bytes: 50000}
  - {name: validation, num_examples: 6, num_bytes: 4000}
---
"""
EPOCHS = 0.08  # 45 steps


@pytest.fixture
def documents() -> list[str]:
    return [f"{number} {text[:600].strip()}" for number, (_, text) in enumerate(sorted(topics.items()))][:60]


@pytest.fixture
def streaming(recipe_for, documents, tmp_path):
    """streaming(section={key: value}): the recipe of a run that is fed from a JSON lines file."""
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))

    def build(**sections) -> dict:
        content = recipe_for()
        content["data"] = {"train": str(tmp_path / "prose.jsonl"), "block_size": 32, "shuffle_buffer": 10}
        content["tokenizer"] = {"name": "char"}
        for name, values in sections.items():
            content[name] = content.get(name, {}) | values
        return content

    return build


def test_a_run_of_three_epochs_sees_each_document_three_times_but_those_held_out(streaming, documents, tmp_path):
    """The length follows from a count: three passes, exactly, and the ledger says so."""
    length = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 64, "save_steps": 500}
    run = train(parse_recipe(streaming(training=length | {"eval_steps": 500})))
    ledger = json.loads((run / "coverage.json").read_text())
    (seen,) = ledger["seen"]
    head = ShardReader(run / "head", "val")
    texts = resolve_data(parse_recipe(streaming())).tokenizer.decode(head.gather([0], len(head))[0].tolist())
    held_out = {int(text.split()[0]) for text in texts.split("<|endoftext|>")[:-1]}
    assert 0 < len(held_out) < 20
    tokens = sum(len(text) + 1 for number, text in enumerate(documents) if number not in held_out)
    assert ledger["step"] == -(-3 * -(-tokens // 32) // 64)
    assert ledger["sources"][0]["tokens"] == tokens and not seen["estimated"]
    assert seen["epochs"] == seen["tokens"] / tokens and 3 <= seen["epochs"] < 3 + 2 * 64 * 32 / tokens
    (place,) = ledger["lanes"].values()
    first = {"first_documents": 60 - len(held_out), "first_tokens": tokens}
    assert Cursor(*place)._asdict().items() >= first.items() and Cursor(*place).epoch == 3
    assert "eval_prose_loss" in (run / "metrics.jsonl").read_text()
    assert load_recipe(run).training["max_steps"] == ledger["step"]


def test_without_a_length_the_recommended_passes_are_made(streaming, capsys):
    resolve_data(parse_recipe(streaming(training={"max_steps": -1})))  # killed when all was counted
    trainer = build_trainer(parse_recipe(streaming(training={"max_steps": -1})))
    tokens = trainer.train_dataset.sources[0].tokens
    assert trainer.args.max_steps == math.ceil(3.5 * tokens / 128)
    assert (
        "steps: the recommended 3.5 passes over the data, since no length is given, counted" in capsys.readouterr().out
    )


def run_and_kill(content: dict, folder: Path, **options) -> tuple[Path, Path, str]:
    """A run, and the same one killed at a random step and gone on with; the message names the step."""
    content["training"] |= {"save_steps": 8, "eval_steps": 24, "logging_steps": 1}
    content["training"] |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    recipes = twins(content, folder)
    whole = start(recipes["whole"], **options)
    assert whole.wait() == 0, whole.output()
    seed = random.SystemRandom().randrange(2**32)
    moment = random.Random(seed).randrange(9, 41)
    process = start(recipes["killed"], **options)
    wait_for(folder / "killed", moment, process)
    process.kill()
    final = start(recipes["killed"], **options)
    assert final.wait() == 0 and "resuming from" in final.output(), f"seed {seed}, killed at {moment}: {final.output()}"
    return folder / "whole", folder / "killed", f"seed {seed}, killed at {moment}"


def require_equal(whole: Path, killed: Path, message: str, steps: int) -> None:
    left, right = (load_file(run / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(left[name], right[name]) for name in left), message
    ledgers = [json.loads((run / "coverage.json").read_text()) for run in (whole, killed)]
    for ledger in ledgers:
        del ledger["events"]  # of the steps that were changed
    assert ledgers[0] == ledgers[1] and ledgers[0]["next_sample"] == ledgers[0]["step"] * 3, message
    assert abs(ledgers[0]["step"] - steps) <= 5, message


def test_resumed_it_ends_with_the_weights_of_an_unbroken_run(streaming, tmp_path):
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "warmup_steps": 3, "eval_steps": 23}
    for name, lengths in {"whole": [45], "broken": [8, 27, 45]}.items():
        for steps in lengths:
            more = {"max_steps": steps, "save_steps": 45, "output_dir": str(tmp_path / name)}
            train(parse_recipe(streaming(training=changes | more)), resume=True)
    require_equal(tmp_path / "whole", tmp_path / "broken", "resumed at 8 and 27", steps=45)


def test_killed_anywhere_so_does_a_run_on_a_hub_dataset_with_workers(streaming, documents, tmp_path, hub):
    pyarrow = pytest.importorskip("pyarrow")
    files = {}
    shards = {f"train-{number}": documents[number:54:3] for number in range(3)}  # one more than there are readers
    for name, texts in (shards | {"validation": documents[54:]}).items():
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), buffer, row_group_size=5)
        files[f"{name}.parquet"] = buffer.getvalue()
    # Its card claims more documents than there are: the length is an estimate, and must not change on the way.
    files["README.md"] = CARD.encode()
    hub.datasets = {"me/prose": {"main": files}}
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    length = {"max_steps": -1, "num_train_epochs": EPOCHS, "dataloader_num_workers": 2}
    content = streaming(data={"train": "hf://me/prose", "max_eval_examples": 2}, training=length)
    content["tokenizer"]["train_examples"] = 20
    require_equal(*run_and_kill(content, tmp_path, env=environment), steps=45)
    assert not (tmp_path / "whole" / "stream_size.json").exists()  # it was not counted
    assert "eval_prose_loss" in (tmp_path / "killed" / "metrics.jsonl").read_text()
    assert load_recipe(tmp_path / "killed").data.eval == {"prose": "hf://me/prose#validation"}  # its own split


def test_two_processes_go_on_each_at_its_own_place(streaming, weights, tmp_path):
    content = streaming(training={"per_device_train_batch_size": 2}, model={"hidden_dropout": 0.0})
    recipes = {}
    for name in ("whole", "broken"):
        content["training"]["output_dir"] = str(tmp_path / name)
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(content))
    launch("cpu_2.yaml", recipes["whole"])
    launch("cpu_2.yaml", recipes["broken"], "--training.max_steps=8")  # the second save
    launch("cpu_2.yaml", recipes["broken"], "--resume")
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(left[name], right[name]) for name in left)
    ledgers = [json.loads((tmp_path / name / "coverage.json").read_text()) for name in ("whole", "broken")]
    assert ledgers[0]["lanes"] == ledgers[1]["lanes"] and sorted(ledgers[0]["lanes"]) == ["0", "1"]


def test_a_source_of_unknown_size_is_trained_on(streaming, documents, tmp_path, capsys):
    with gzip.open(tmp_path / "prose.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    content = streaming(data={"train": str(tmp_path / "prose.jsonl.gz"), "max_eval_examples": 2})
    content["tokenizer"]["train_examples"] = 20
    run = train(parse_recipe(content))
    out = capsys.readouterr().out
    assert "Dataset coverage: not known" in out
    assert re.search(r"step 12/12: loss \S+, lr 3.00e-03, [\d,]+ tokens/s", out)
    (seen,) = json.loads((run / "coverage.json").read_text())["seen"]
    assert (seen["samples"], seen["epochs"], seen["coverage"]) == (48, None, None)
    (entry,) = find_lineage(run)["seen"]
    assert (entry["samples"], entry["tokens"], entry["source_tokens"], entry["estimated"]) == (48, 48 * 32, 0, True)
    assert entry["name"] == content["data"]["train"] and coverage_of(entry) == "unknown"


def test_too_few_documents_to_hold_some_out_are_refused(streaming, documents, tmp_path):
    recipe = streaming(data={"train": str(tmp_path / "few.jsonl")})
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[:19]))
    with pytest.raises(DataError, match="has 19 documents, and from 20 on some can be held out"):
        resolve_data(parse_recipe(recipe))
    recipe["data"]["eval"] = {"other": str(tmp_path / "prose.jsonl")}
    recipe["training"]["output_dir"] = str(tmp_path / "other")
    assert resolve_data(parse_recipe(recipe)).streamed.held_out == 0.0


def test_a_resume_with_other_readers_or_other_data_is_refused(streaming, tmp_path):
    recipe = streaming(training={"max_steps": 4})
    train(parse_recipe(recipe))
    recipe["training"] |= {"max_steps": 8}
    more = recipe["training"] | {"dataloader_num_workers": 2}
    with pytest.raises(DataError, match="1 processes of 1 workers, now by 1 of 2"):
        build_trainer(parse_recipe(recipe | {"training": more}), resume=True)
    with pytest.raises(DataError, match=r"cannot resume \(shuffle_buffer: 10 there, 20 now\)"):
        build_trainer(parse_recipe(recipe | {"data": recipe["data"] | {"shuffle_buffer": 20}}), resume=True)
    train(parse_recipe(recipe), resume=True)
    with open(recipe["data"]["train"], "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"not what this run began with .*other source text"):
        build_trainer(parse_recipe(recipe), resume=True)


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"data": {"curriculum": {"start_length": 8, "steps": 2}}}, "data.curriculum needs prepared data"),
        ({"data": {"order": "blocks"}}, "data.order needs prepared data"),
        ({"data": {"streaming": False, "stride": 4}}, "data.stride is for streamed sources"),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused(streaming, sections, words):
    with pytest.raises(RecipeError, match=words):
        resolve_data(parse_recipe(streaming(**sections)))


def test_several_text_sources_are_refused(streaming, corpora):
    recipe = streaming()
    recipe["data"]["train"] = {recipe["data"]["train"]: 0.9, str(corpora / "general"): 0.1}
    with pytest.raises(DataError, match="is a text source among several; prepare it first"):
        resolve_data(parse_recipe(recipe))


def test_without_streaming_it_is_prepared_whole(streaming, tmp_path):
    recipe = streaming(data={"streaming": False, "val_split": "hash"})
    data = resolve_data(parse_recipe(recipe))
    assert data.streamed is None and list(data.train) == [str(tmp_path / "run" / "data")]
    assert data.eval == {"prose": str(tmp_path / "run" / "data")}


def test_evaluation_sets_of_text_are_prepared_with_the_runs_tokenizer(streaming, documents, tmp_path):
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[:9]))
    sets = {"other": str(tmp_path / "other.jsonl"), "mine": str(tmp_path / "prose.jsonl")}
    data = resolve_data(parse_recipe(streaming(data={"eval": sets, "max_eval_examples": 5})))
    assert data.eval == {"other": str(tmp_path / "run" / "eval" / "other"), "mine": str(tmp_path / "run" / "head")}
    assert data.eval_splits == {"other": "train"} and data.eval_sources == sets
    assert data.manifests[data.eval["other"]].splits["train"].documents == 5
    assert {manifest.tokenizer_hash for manifest in data.manifests.values()} == {data.tokenizer_hash}
    assert data.streamed.held_out == 0.1
    elsewhere = {"output_dir": str(tmp_path / "elsewhere")}
    alone = resolve_data(parse_recipe(streaming(data={"eval": {"other": sets["other"]}}, training=elsewhere)))
    assert alone.streamed.held_out == 0.0  # nothing is left out for an evaluation that nobody asked for


def test_a_dataset_directory_of_hugging_face_is_streamed(streaming, documents, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(tmp_path / "saved")
    trainer = build_trainer(parse_recipe(streaming(data={"train": str(tmp_path / "saved")})))
    assert trainer.train_dataset.size.documents < 60 and list(trainer.eval_dataset) == ["saved"]
    assert next(iter(trainer.get_train_dataloader()))["input_ids"].shape == (4, 32)


@pytest.mark.parametrize("streamed", [True, False])
def test_the_validation_split_of_a_dataset_is_the_evaluation_set(streaming, documents, tmp_path, streamed, capsys):
    datasets = pytest.importorskip("datasets")
    splits = {"train": documents[:40], "test": documents[40:50], "valid": documents[50:]}
    made = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    source = str(tmp_path / "saved")
    recipe = streaming(data={"train": source, "streaming": streamed, "val_split": "hash"}, training={"max_steps": 4})
    run = train(parse_recipe(recipe))
    assert f"evaluation: {source}#valid, the dataset's own validation split" in capsys.readouterr().out
    resolved = load_recipe(run)
    assert resolved.data.eval == {"saved": f"{source}#valid"} and resolved.data.val_fraction == 0.0
    data = resolve_data(resolved)  # as the folder is repeated or resumed
    assert data.manifests[data.eval["saved"]].splits["train"].documents == 10
    assert data.manifests[next(iter(data.train))].splits["train"].documents == 40  # none is held out
    assert "eval_saved_loss" in (run / "metrics.jsonl").read_text()
    train(parse_recipe(recipe), resume=True)  # already complete
    # the evaluation set that a recipe names wins, and then documents are held out as they always were
    named = recipe["data"] | {"eval": {"mine": source}}
    recipe["training"] |= {"output_dir": str(tmp_path / "named")}
    data = resolve_data(parse_recipe(recipe | {"data": named}))
    assert data.manifests[data.eval["mine"]].splits["val"].documents < 10 and not data.own_validation


def test_text_takes_the_tokenizer_of_the_model_it_starts_from(streaming, corpora, tmp_path, capsys):
    first, vocabulary = tmp_path / "first", load_tokenizer(corpora / "general")
    preset = streaming()["model"]
    size = {"vocab_size": 384, "unpadded_vocab_size": largest_id(vocabulary) + 1}
    MyPTForCausalLM(preset_config(preset.pop("preset"), **preset, **size)).save_pretrained(first)
    vocabulary.save_pretrained(first)
    (tmp_path / "plain.txt").write_text((corpora / "domain.txt").read_text()[:20_000])
    for source, streamed in ((tmp_path / "prose.jsonl", True), (tmp_path / "plain.txt", False)):
        recipe = streaming(data={"train": str(source)})
        recipe["model"] = {"init_from": str(first)}
        recipe["training"] |= {"output_dir": str(tmp_path / f"{source.stem}-run")}
        del recipe["tokenizer"]
        trainer = build_trainer(parse_recipe(recipe))
        assert (
            f"tokenizer: the one of model.init_from {first}; set tokenizer.name to use another"
            in capsys.readouterr().out
        )
        run = Path(trainer.args.output_dir)
        assert (run / "head").exists() == streamed and load_recipe(run).tokenizer.name == str(first)
        assert tokenizer_hash(trainer.processing_class) == tokenizer_hash(vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (first / name).unlink()
    with pytest.raises(RecipeError, match=r"holds no tokenizer; name the one .* in tokenizer\.name"):
        resolve_data(parse_recipe(recipe))


def test_messages_name_the_keys_of_the_recipe(streaming, tmp_path, capsys):
    (tmp_path / "other.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    recipe = streaming(data={"train": str(tmp_path / "other.jsonl")})
    with pytest.raises(DataError, match=r"no column 'text'; data\.text_column is one of: body"):
        train(parse_recipe(recipe))
    (tmp_path / "large.txt").write_text("some words and more\n\n" * 60_000)
    recipe["data"] |= {"train": str(tmp_path / "large.txt"), "val_split": "hash"}
    recipe["training"] |= {"output_dir": str(tmp_path / "large")}
    with pytest.raises(DataError, match=r"lower data\.block_size"):  # all are duplicates
        train(parse_recipe(recipe))
    assert "(`mypt prepare --document` changes this)" in capsys.readouterr().err


def test_a_name_of_the_hub_without_its_prefix(streaming, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    said = {
        "roneneldan/TinyStories": r"exist; did you mean hf://roneneldan/TinyStories, a dataset of the hub\?$",
        "wiki:en#test": "give a file, .*; a dataset of the hub is hf://wiki:en#test$",
        "wiki": "name a text source or .*; a dataset of the hub is hf://wiki$",
        **dict.fromkeys(("missing.txt", "data/nothing", "/a/b"), "made by `mypt prepare --out [^;]*$"),  # a path
    }
    for name, words in said.items():
        with pytest.raises(DataError, match=words):
            resolve_data(parse_recipe(streaming(data={"train": name})))


def test_plan_estimates_a_stream_and_knows_it_once_a_run_has_counted_it(streaming, tmp_path, capsys):
    recipe = streaming(training={"max_steps": -1, "num_train_epochs": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def planned() -> dict:
        assert main(["plan", str(path), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    first = planned()
    assert any("streamed and not counted yet" in note for note in first["notes"])
    trainer = build_trainer(parse_recipe(recipe))
    capsys.readouterr()
    tokens = trainer.train_dataset.sources[0].tokens
    assert first["coverage"]["sources"][0]["tokens"] == pytest.approx(tokens / 4, rel=0.3)  # one a character here
    again = planned()
    assert again["coverage"]["sources"][0]["tokens"] == tokens and not again["notes"]
    assert again["training"]["steps"] == pytest.approx(trainer.args.max_steps, abs=1)
