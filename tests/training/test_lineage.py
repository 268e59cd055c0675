"""What weights have seen over a chain of runs: the sums are what was fed to the models, at the step of each weight."""

import itertools
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from mypt.checkpoints.lineage import find_lineage, start_lineage, write_lineage
from mypt.cli.main import main
from mypt.conversion.export import export_model
from mypt.conversion.merge import merge_adapter
from mypt.errors import CheckpointError
from mypt.evaluation.interpolate import interpolate
from mypt.preparation.append import append_dataset
from mypt.preparation.prepare import prepare_dataset
from mypt.recipe import parse_recipe
from mypt.shards.reader import ShardReader
from mypt.storage.card import model_card
from mypt.streams.ledger import Ledger, Source
from mypt.streams.shard_stream import ShardStream
from mypt.tokenization.load import load_tokenizer
from mypt.training import run_folder
from mypt.training.request import check
from mypt.training.run import train
from mypt.yaml12 import dump_yaml
from tests.checkpoints.test_adapter import adapter, base  # noqa: F401
from tests.processes import Command, launch
from tests.training.data.test_run_stream import fed  # noqa: F401

LOWER, UPPER = "abcdefghijklm", "NOPQRSTUVWXYZ"


def text(letters: str, length: int) -> str:
    """Letters in an order that does not repeat soon."""
    return "".join(letters[i * i * i % 1_009 % len(letters)] for i in range(length))


@pytest.fixture
def letters(tmp_path):
    """Datasets of one tokenizer: `lower`, and `upper` and `more` of other letters."""
    (tmp_path / "both.txt").write_text(text(LOWER, 900) + text(UPPER, 900))
    (tmp_path / "lower.txt").write_text(text(LOWER, 3_000))
    (tmp_path / "upper.txt").write_text(text(UPPER, 1_100))
    (tmp_path / "more.txt").write_text(text(UPPER[::-1], 700))
    options = {"progress": False, "val_split": "tail"}
    prepare_dataset([str(tmp_path / "both.txt")], tmp_path / "both", tokenizer="char", **options)
    for name in ("lower", "upper", "more"):
        source, tokenizer = str(tmp_path / f"{name}.txt"), str(tmp_path / "both")
        prepare_dataset([source], tmp_path / name, tokenizer=tokenizer, **options)
    return tmp_path


def test_three_runs_are_summed_to_the_token(recipe_for, fed, letters, capsys):  # noqa: F811
    """Resumes with another batch, another accumulation and appended data; a curriculum; adapters; the base deleted."""
    lower, upper = str(letters / "lower"), str(letters / "upper")
    capitals = set(load_tokenizer(letters / "both").convert_tokens_to_ids(list(UPPER)))
    counted = Counter()

    def session(run, train, start=None, resume=False, curriculum=None, lora=None, **training):
        content = recipe_for(data={"train": train, "eval": {}, "curriculum": curriculum})
        content |= {"lora": lora} if lora else {}
        content |= {"model": {"init_from": str(letters / start)}} if start else {}
        content["training"] |= {"output_dir": str(letters / run), "eval_strategy": "no"} | training
        for row in fed(content, resume=resume)[1]:
            counted[upper if capitals & {*row} else lower] += len(row)

    mixture, stages = {lower: 0.75, upper: 0.25}, {"start_length": 8, "steps": 2}
    session("a", mixture, max_steps=3)
    session("a", mixture, resume=True, max_steps=5, per_device_train_batch_size=6)
    session("b", {upper: 1.0}, "a/checkpoint-5", curriculum=stages, max_steps=4)
    append_dataset(upper, letters / "more")
    again = {"resume": True, "curriculum": stages, "gradient_accumulation_steps": 2}
    session("b", {upper: 1.0}, "a/checkpoint-5", **again, max_steps=12)
    shutil.rmtree(letters / "a")
    capsys.readouterr()
    session("c", {upper: 0.5, lower: 0.5}, "b/checkpoint-12", lora={"r": 2}, max_steps=3)
    printed = capsys.readouterr().out

    found = find_lineage(letters / "c" / "checkpoint-3")
    steps = {"a": 5, "b": 12, "c": 3}
    assert found["base"] is None
    assert found["runs"] == [{"name": str(letters / run), "step": step} for run, step in steps.items()]
    assert {source["name"]: source["tokens"] for source in found["seen"]} == counted
    assert {source["name"]: 32 * source["samples"] for source in found["seen"]} == counted
    sizes = {str(letters / name): len(ShardReader(letters / name, "train")) for name in ("lower", "upper")}
    assert {source["name"]: source["source_tokens"] for source in found["seen"]} == sizes
    # said at the start, and by the ledger, which has this run's own beside what was before
    before = find_lineage(letters / "b" / "checkpoint-12")
    assert all(f"{source['tokens']:,} tokens)" in printed for source in before["seen"])
    ledger = json.loads((letters / "c" / "coverage.json").read_text())
    assert ledger["start"] == before and sum(entry["samples"] for entry in ledger["seen"]) == 3 * 4
    assert main(["inspect", str(letters / "c")]) == 0
    printed = capsys.readouterr().out
    assert all(f"{count:,}" in printed.partition("over all runs")[2] for count in counted.values())
    assert f"random weights -> {letters / 'a'} (step 5) -> {letters / 'b'} (step 12)" in printed
    card = model_card(letters / "c" / "checkpoint-3", "me/c").partition(
        "Over all runs (random weights -&gt; a (step 5)"
    )[2]
    assert f"{counted.total():,} tokens." in card and all(f"{count:,}" in card for count in counted.values())


@pytest.mark.parametrize("step", [4, 8, 12])
def test_weights_have_the_lineage_of_their_own_step(whole_copy, step):
    """In a checkpoint, in OUT and in OUT/best, whichever step was the best; for the next run, too."""
    run_folder.publish(whole_copy, f"checkpoint-{step}")
    sources = json.loads((whole_copy / "coverage.json").read_text())["sources"]
    seen = Ledger([Source(**source) for source in sources], 32).seen(4 * step)
    for folder in ("best", f"checkpoint-{step}", *([""] if step == 12 else [])):
        found = start_lineage(whole_copy / folder)
        assert (found["base"], [run["step"] for run in found["runs"]]) == (None, [step])
        assert [(entry["name"], entry["samples"], entry["tokens"]) for entry in found["seen"]] == [
            (each.name, each.samples, each.tokens) for each in seen
        ]
        assert sum(entry["samples"] for entry in found["seen"]) == 4 * step
    assert start_lineage(whole_copy)["runs"][-1]["step"] == 12


def test_the_training_of_a_foreign_model_is_not_known_and_never_0(recipe_for, fed, corpora, tmp_path, capsys):  # noqa: F811
    model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    model.save_pretrained(tmp_path / "gpt2")
    load_tokenizer(corpora / "general").save_pretrained(tmp_path / "gpt2")
    assert main(["inspect", str(tmp_path / "gpt2")]) == 0
    assert "over all runs not known" in capsys.readouterr().out.replace("  ", " ")
    assert "What its weights have seen in all of their training is not known." in model_card(tmp_path / "gpt2", "me/m")
    content = recipe_for(training={"max_steps": 2, "eval_strategy": "no"}) | {
        "model": {"init_from": str(tmp_path / "gpt2")}
    }
    run, _ = fed(content)
    words = f"what {tmp_path / 'gpt2'} was trained on is not known"
    assert words in capsys.readouterr().out
    found = find_lineage(run / "checkpoint-2")
    assert found["base"] == str(tmp_path / "gpt2") and sum(entry["samples"] for entry in found["seen"]) == 8
    assert main(["inspect", str(run)]) == 0
    assert words in capsys.readouterr().out
    assert "What gpt2 was trained on is not known." in model_card(run / "checkpoint-2", "me/m")


def test_a_lineage_goes_where_the_weights_go(base, adapter, tmp_path):  # noqa: F811
    lineage = {"base": None, "runs": [{"name": "runs/a", "step": 3}], "seen": []}
    export_model(base, tmp_path / "unknown")
    assert find_lineage(tmp_path / "unknown") is None
    write_lineage(adapter, lineage)
    merge_adapter(adapter, tmp_path / "merged")
    export_model(tmp_path / "merged", tmp_path / "exported")
    interpolate(base, tmp_path / "merged", tmp_path / "between", alpha=0.5)
    for name in ("merged", "exported", "between"):
        assert find_lineage(tmp_path / name) == lineage


def test_a_damaged_lineage_stops_a_run_before_it_trains(recipe_for, whole_copy, tmp_path):
    (whole_copy / "lineage.json").write_text('{"runs": [], "seen": [{"name": "x"}]}')
    content = recipe_for(training={"output_dir": str(tmp_path / "next")}) | {"model": {"init_from": str(whole_copy)}}
    for begin in (lambda recipe: check(recipe, resume=False), train):
        with pytest.raises(CheckpointError, match=r"lineage\.json is damaged.*restore it, or delete it"):
            begin(parse_recipe(content))


@pytest.mark.slow
def test_a_chain_of_processes(recipe_for, letters):
    """Killed, resumed; from OUT/best on two processes, then on one with more data; from OUT on streamed text."""
    lower, upper = str(letters / "lower"), str(letters / "upper")
    capitals = set(load_tokenizer(letters / "both").convert_tokens_to_ids(list(UPPER)))

    def written(run: str, start: str | None, **data) -> Path:
        content = recipe_for(data=data)
        content |= {"model": {"init_from": str(letters / start)}} if start else {}
        content["training"] |= {"output_dir": str(letters / run), "save_steps": 2, "eval_steps": 2}
        (letters / f"{run}.yaml").write_text(dump_yaml(content))
        return letters / f"{run}.yaml"

    def iterated(run: str, samples: int) -> Counter:
        """The first samples of a run's stream, by source."""
        state = json.loads((letters / run / "coverage.json").read_text())
        events = [event for event in state["events"] if "changes" not in event]
        state |= {"events": events, "next_sample": 0}
        weights = {source["name"]: source["weight"] for source in state["sources"]}
        stream = ShardStream(weights, block_size=32, seed=42, micro_batch_size=None, state=state)
        windows = (sample["input_ids"].tolist() for sample in itertools.islice(stream, samples))
        return Counter(upper if capitals & {*window} else lower for window in windows)

    sets = {"eval": {"upper": upper, "lower": lower}}
    first = written("a", None, train={lower: 0.75, upper: 0.25}, **sets)
    process = Command(["train", first])
    while not (letters / "a" / "checkpoint-4").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert Command(["train", first, "--resume"]).wait() == 0
    best = find_lineage(letters / "a" / "best")["runs"][-1]["step"]
    counted = iterated("a", 4 * best)

    second = written("b", "a/best", train={upper: 0.5, lower: 0.5}, **sets)
    launch("cpu_2.yaml", second, "--training.max_steps=4")
    append_dataset(upper, letters / "more")
    shutil.rmtree(letters / "a" / "best")
    batch = ["--training.per_device_train_batch_size=3", "--training.gradient_accumulation_steps=2"]
    again = Command(["train", second, "--resume", "--training.max_steps=30", *batch])
    assert again.wait() == 0, again.output()

    documents = [json.dumps({"text": text(LOWER, 300 + number)}) + "\n" for number in range(30)]
    (letters / "streamed.jsonl").write_text("".join(documents))
    third = Command(["train", written("c", "b", train=str(letters / "streamed.jsonl"), eval={})])
    assert third.wait() == 0, third.output()

    found = find_lineage(letters / "c")
    seen = {source["name"]: source["samples"] for source in found["seen"]}
    assert [run["step"] for run in found["runs"]] == [best, 30, 12]
    streamed = Counter({str(letters / "streamed.jsonl"): 48})
    assert seen == counted + iterated("b", 4 * 8 + 26 * 6) + streamed
