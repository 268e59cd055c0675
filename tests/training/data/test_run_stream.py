"""What a run is fed with across resumes: weights, data and sequence lengths change where they may, exactly there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from mypt.cli.main import main
from mypt.errors import CheckpointError, DataError, MyPTError
from mypt.preparation.append import append_dataset
from mypt.recipe import parse_recipe
from mypt.shards.format import read_manifest
from mypt.shards.reader import ShardReader
from mypt.streams.shard_stream import ShardStream
from mypt.training.build import build_trainer
from mypt.training.run import train
from mypt.yaml12 import dump_yaml


def ledger(run: Path) -> dict:
    return json.loads((run / "coverage.json").read_text())


def rewind(run: Path, target: Path, step: int) -> str:
    """A copy of a run folder as it was right after the save at `step`."""
    shutil.copytree(run, target)
    for path in target.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    return str(target)


def flat(rows: list[list[int]]) -> list[int]:
    return [token for row in rows for token in row]


@pytest.fixture
def fed(monkeypatch):
    """fed(recipe, **options) -> (run folder, the first ids of every window trained on, in order)."""

    def run(content: dict, callbacks=(), **options) -> tuple[Path, list]:
        trainer = build_trainer(parse_recipe(content), **options)
        rows = []
        step = trainer.training_step
        for callback in callbacks:
            trainer.add_callback(callback(trainer))

        def training_step(model, inputs, *args):
            rows.extend(inputs["input_ids"].tolist())
            return step(model, inputs, *args)

        trainer.training_step = training_step
        trainer.train(resume_from_checkpoint=trainer.checkpoint)
        return Path(trainer.args.output_dir), rows

    return run


def stream_of(run: Path, sources) -> ShardStream:
    """The stream that the run's ledger implies."""
    return ShardStream(sources, block_size=32, seed=42, state=ledger(run))


# ---- weights ----


def test_other_weights_on_a_resume_are_printed_recorded_and_take_effect(recipe_for, fed, corpora, tmp_path, capsys):
    content = recipe_for()
    whole, _ = fed(content)
    domain, general = (str(corpora / name) for name in ("domain", "general"))
    content["training"]["output_dir"] = rewind(whole, tmp_path / "resumed", step=8)
    content["data"]["train"] = {domain: 0.5, general: 0.5}
    capsys.readouterr()
    run, rows = fed(content, resume=True)
    printed = capsys.readouterr().out
    [line] = [line for line in printed.splitlines() if "weights" in line and line.startswith("changed")]
    assert line == (
        f'changed from step 8 on: weights {{"{domain}": 0.75, "{general}": 0.25}} -> '
        f'{{"{domain}": 0.5, "{general}": 0.5}}'
    )
    state = ledger(run)
    assert state["events"] == [{"sample": 32, "weights": [0.5, 0.5], "step": 8}]
    assert [source["weight"] for source in state["sources"]] == [0.75, 0.25], "the sources are as at sample 0"
    assert [seen["samples"] for seen in state["seen"]] == [24 + 8, 8 + 8]
    # the windows are those that the state implies
    stream = stream_of(run, content["data"]["train"])
    owners, starts = stream.places(np.arange(32, 48))
    expected = [stream.readers[o].gather(starts[i : i + 1], 32)[0].tolist() for i, o in enumerate(owners)]
    assert rows == expected
    # and a third session finds nothing to say
    content["training"]["max_steps"] = 14
    fed(content, resume=True)
    assert "on: weights" not in capsys.readouterr().out
    assert [seen["samples"] for seen in ledger(run)["seen"]] == [32 + 4, 16 + 4]


class Changer(TrainerCallback):
    """What a guard will do: other weights at an evaluation."""

    def __init__(self, trainer):
        self.coverage = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "CoverageCallback")

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.coverage.change_weights(args, state, [0.25, 0.75])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_change_while_it_trains_and_a_resume_knows(recipe_for, fed, tmp_path, weights, accumulation, capsys):
    content = recipe_for()
    content["training"]["gradient_accumulation_steps"] = accumulation
    whole, rows = fed(content, [Changer])
    assert "changed from step 4 on: weights" in capsys.readouterr().out
    at = 16 * accumulation
    assert ledger(whole)["events"] == [{"sample": at, "weights": [0.25, 0.75], "step": 4}]
    assert [seen["samples"] for seen in ledger(whole)["seen"]] == [20 * accumulation, 28 * accumulation]
    # the recipe's weights are the same as ever: what changed on the way stays
    content["training"]["output_dir"] = rewind(whole, tmp_path / "resumed", step=8)
    resumed, rest = fed(content, resume=True)
    assert rest == rows[2 * at :]
    assert ledger(resumed) == ledger(whole)
    left, right = (weights(run / "checkpoint-12") for run in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_weights_cannot_change_behind_the_back_of_workers(recipe_for, fed):
    content = recipe_for()
    content["training"]["dataloader_num_workers"] = 1
    with pytest.raises(MyPTError, match="dataloader_num_workers: 0"):
        fed(content, [Changer])


# ---- data ----


@pytest.fixture
def growing(corpora, tmp_path):
    """A copy of the domain directory, to which data can be added, and what is added."""
    shutil.copytree(corpora / "domain", tmp_path / "growing")
    return tmp_path / "growing"


def small_recipe(recipe_for, directory: Path) -> dict:
    """One source, seen more than twice in 12 steps."""
    content = recipe_for(data={"train": str(directory), "eval": {"domain": str(directory)}, "block_size": 32})
    content["training"]["per_device_train_batch_size"] = 256
    content["model"] |= {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    return content


def test_appended_data_enters_at_the_next_epoch_and_the_eval_set_stays(
    recipe_for, fed, corpora, growing, tmp_path, capsys
):
    content = small_recipe(recipe_for, growing)
    whole, rows = fed(content)
    before = read_manifest(growing)
    n = (before.splits["train"].tokens - 32) // 32
    assert n < 8 * 256, "it is in its second epoch at step 8"
    content["training"] |= {"output_dir": rewind(whole, tmp_path / "resumed", step=8), "max_steps": 28}
    append_dataset(growing, corpora / "general")
    after = read_manifest(growing)
    capsys.readouterr()
    run, rest = fed(content, resume=True)
    printed = capsys.readouterr().out
    tokens = [manifest.splits["train"].tokens for manifest in (before, after)]
    assert f"changed from step 8 on: {growing} {tokens[0]:,} -> {tokens[1]:,} tokens (1 -> " in printed
    val = before.splits["val"].tokens
    assert f"domain was extended since the run began; it is still measured on the {val:,} tokens" in printed
    left = 2 * n - 8 * 256  # of the epoch under way
    assert rest[: 4 * 256][:left] == rows[8 * 256 :][:left], "the epoch under way goes on"
    more = (tokens[1] - 32) // 32
    third = rest[left : left + more]
    places = stream_of(run, growing).places(np.arange(2 * n, 2 * n + more))[1]
    assert len(third) == more == len(set(places.tolist()))
    assert third == ShardReader(growing, "train").gather(places, 32).tolist()
    events = ledger(run)["events"]
    assert [event.get("appended", {}).get("tokens") for event in events if "appended" in event] == [tokens[1]]
    history = json.loads((run / "forgetting.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [*range(0, 29, 4)]
    # once more: nothing new is found, and the sets are still those of the beginning
    content["training"]["max_steps"] = 29
    fed(content, resume=True)
    assert "-> " not in "".join(line for line in capsys.readouterr().out.splitlines() if "tokens (" in line)


def test_data_that_changed_instead_of_growing_is_refused(recipe_for, fed, corpora, growing):
    content = small_recipe(recipe_for, growing)
    content["training"]["max_steps"] = 4
    fed(content)
    shutil.rmtree(growing)
    shutil.copytree(corpora / "general", growing)
    with pytest.raises(CheckpointError, match=r"holds another run \(data: "):
        train(parse_recipe(content), resume=True)


def test_appended_data_that_is_taken_away_again_is_refused(recipe_for, fed, corpora, growing, tmp_path):
    content = small_recipe(recipe_for, growing)
    content["training"]["max_steps"] = 4
    fed(content)
    shutil.copytree(growing, tmp_path / "kept")
    append_dataset(growing, corpora / "general")
    content["training"]["max_steps"] = 8
    fed(content, resume=True)
    shutil.rmtree(growing)
    shutil.copytree(tmp_path / "kept", growing)
    content["training"]["max_steps"] = 12
    with pytest.raises(DataError, match="nor an extension of it"):
        train(parse_recipe(content), resume=True)


# ---- curriculum ----


@pytest.mark.parametrize("document_mask", [False, True])
def test_a_resume_in_a_curriculum_is_the_uninterrupted_run(recipe_for, fed, weights, tmp_path, document_mask, capsys):
    data = recipe_for()["data"] | {"curriculum": {"start_length": 8, "steps": 10}, "document_mask": document_mask}
    content = recipe_for(data=data)
    whole, rows = fed(content)
    assert "sequences of 8 tokens, 16 from sample 20 on, 32 from sample 40 on" in capsys.readouterr().out
    assert [len(row) for row in rows] == [8] * 80 + [16] * 40 + [32] * 8
    plain = recipe_for()
    plain["training"]["output_dir"] = str(tmp_path / "plain")
    _, windows = fed(plain)
    assert flat(rows) == flat(windows), "the same tokens in the same order"
    assert ledger(whole)["seen"] == ledger(tmp_path / "plain")["seen"]
    for step in (4, 8):  # before and after the first change
        content["training"]["output_dir"] = rewind(whole, tmp_path / f"resumed-{step}", step)
        resumed, _ = fed(content, resume=True)
        left, right = weights(whole / "checkpoint-12"), weights(resumed / "checkpoint-12")
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert json.loads((resumed / "forgetting.json").read_text()) == json.loads(
            (whole / "forgetting.json").read_text()
        )


def test_a_curriculum_keeps_its_samples_when_the_batch_changes(recipe_for, fed, tmp_path):
    content = recipe_for(data=recipe_for()["data"] | {"curriculum": {"start_length": 8, "steps": 10}})
    whole, rows = fed(content)
    content["training"]["output_dir"] = rewind(whole, tmp_path / "resumed", step=4)
    content["training"] |= {"per_device_train_batch_size": 8, "max_steps": 8}
    run, rest = fed(content, resume=True)
    assert flat(rest) == flat(rows)[16 * 32 :]
    # micro-batches of 8 from sample 16 on; each has the length at which it begins
    assert [len(row) for row in rest] == [8] * 32 + [16] * 32 + [32] * 8
    assert ledger(run)["curriculum"] == [[0, 8], [20, 16], [40, 32]]
    content["data"]["curriculum"]["steps"] = 12
    with pytest.raises(CheckpointError, match="curriculum"):
        train(parse_recipe(content), resume=True)


def test_a_curriculum_that_does_not_fit_the_block_is_refused(recipe_for):
    for curriculum, words in (
        ({"start_length": 12, "steps": 10}, "divided by"),
        ({"start_length": 4, "steps": 2}, "steps"),
    ):
        with pytest.raises(DataError, match=words):
            build_trainer(parse_recipe(recipe_for(data=recipe_for()["data"] | {"curriculum": curriculum})))


# ---- order, masks, damage ----


def test_the_order_is_part_of_the_identity(recipe_for, fed):
    content = recipe_for()
    fed(content)
    content["data"]["order"] = "blocks"
    with pytest.raises(CheckpointError, match='order: "full" there, "blocks" now'):
        train(parse_recipe(content), resume=True)


@pytest.mark.parametrize("reading", ["auto", "pread"])
def test_a_resume_in_the_order_of_blocks_is_the_uninterrupted_run(recipe_for, fed, weights, tmp_path, reading):
    content = recipe_for(data=recipe_for()["data"] | {"order": "blocks", "reading": reading})
    whole, rows = fed(content)
    content["training"]["output_dir"] = rewind(whole, tmp_path / "resumed", step=8)
    resumed, rest = fed(content, resume=True)
    assert rest == rows[32:]
    left, right = (weights(run / "checkpoint-12") for run in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_how_the_data_is_read_is_printed_and_changes_nothing(recipe_for, fed, tmp_path, capsys):
    content = recipe_for()
    _, rows = fed(content)
    assert "reading " in capsys.readouterr().out
    content["data"]["reading"] = "pread"
    content["training"]["output_dir"] = str(tmp_path / "pread")
    _, again = fed(content)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reading ")]
    assert rows == again and len(printed) == 2 and all("call by call" in line for line in printed)


def test_a_model_that_lets_documents_mix_is_refused_with_masks(recipe_for, tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    OPTForCausalLM(OPTConfig(vocab_size=384, num_attention_heads=2, **sizes)).save_pretrained(tmp_path / "opt")
    content = recipe_for(data=recipe_for()["data"] | {"document_mask": True})
    content["model"] = {"init_from": str(tmp_path / "opt")}
    with pytest.raises(MyPTError, match="does not keep packed documents apart"):
        train(parse_recipe(content))


def test_a_run_with_document_masks_evaluates_with_them(recipe_for, corpora):
    trainer = build_trainer(parse_recipe(recipe_for(data=recipe_for()["data"] | {"document_mask": True})))
    assert all(windows.document_mask for windows in trainer.eval_dataset.values())


def damage_flipped(shard: Path, other: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def damage_truncated(shard: Path, other: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-2])


def damage_missing(shard: Path, other: Path) -> None:
    shard.unlink()


def damage_foreign(shard: Path, other: Path) -> None:
    """A shard of the same size from another dataset."""
    content = other.read_bytes()
    size = shard.stat().st_size
    shard.write_bytes((content * (size // len(content) + 1))[:size])


@pytest.mark.parametrize("damage", [damage_flipped, damage_truncated, damage_missing, damage_foreign])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_data_is_refused_by_name(recipe_for, corpora, growing, tmp_path, capsys, damage, split):
    name = f"{split}/shard_00000.bin"
    damage(growing / name, corpora / "general" / name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(small_recipe(recipe_for, growing)))
    assert main(["train", str(recipe), "--yes"]) == 2
    error = capsys.readouterr().err
    assert str(growing / name) in error and error.startswith("mypt train: ") and error.count("\n") == 1
    assert not list((tmp_path / "run").glob("checkpoint-*"))
