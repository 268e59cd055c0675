"""A checkpoint counts as complete only if a resume can read every part of it."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from mypt.checkpoints.complete import (
    FSDP_OPTIMIZER,
    FSDP_WEIGHTS,
    SAVING_NAME,
    checkpoints,
    last_complete_checkpoint,
    missing_deepspeed,
    rotate,
    what_is_missing,
)
from mypt.checkpoints.state import read_state

REQUIRED = ["config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
CHECKED = [*REQUIRED, "generation_config.json"]


def tiny_model():
    from mypt import MyPTConfig, MyPTForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MyPTForCausalLM(MyPTConfig(vocab_size=32, max_position_embeddings=16, **sizes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two steps of HF's own Trainer with the coverage callback, a checkpoint after each."""
    from transformers import Trainer, TrainingArguments

    from mypt import CoverageCallback
    from mypt.streams.ledger import Ledger, Source

    out = tmp_path_factory.mktemp("trained")
    samples = [{"input_ids": row, "labels": row} for row in torch.arange(64).view(4, 16) % 32]
    args = TrainingArguments(
        output_dir=out,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    coverage = CoverageCallback(Ledger([Source("data", 64, 1.0)], 16), confirm=False)
    Trainer(model=tiny_model(), args=args, train_dataset=samples, callbacks=[coverage]).train()
    return out


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def test_what_a_trainer_saved_is_complete(run):
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]
    assert [what_is_missing(path) for path in checkpoints(run)] == [None, None]
    assert last_complete_checkpoint(run) == (run / "checkpoint-2", [])
    assert read_state(run / "checkpoint-2").step == 2


@pytest.mark.parametrize("name", REQUIRED)
def test_every_required_file(run, name):
    (run / "checkpoint-2" / name).unlink()
    assert name in what_is_missing(run / "checkpoint-2")


@pytest.mark.parametrize("name", CHECKED)
def test_every_truncation(run, name):
    path = run / "checkpoint-2" / name
    content = path.read_bytes().rstrip() if name.endswith(".json") else path.read_bytes()
    for length in sorted({0, 1, 7, 9, len(content) // 3, len(content) // 2, len(content) - 100, len(content) - 1}):
        if 0 <= length < len(content):
            path.write_bytes(content[:length])
            assert name in (what_is_missing(path.parent) or ""), f"{length} of {len(content)} bytes"
    path.write_bytes(content)
    assert what_is_missing(path.parent) is None


@pytest.mark.parametrize("name", CHECKED)
def test_a_power_cut_leaves_zeros(run, name):
    path = run / "checkpoint-2" / name
    path.write_bytes(bytes(path.stat().st_size))
    assert name in what_is_missing(path.parent)


def test_what_a_resume_does_not_read_may_be_missing(run):
    for name in ("training_args.bin", "modeling_mypt.py", "generation_config.json"):
        (run / "checkpoint-2" / name).unlink(missing_ok=True)
    assert what_is_missing(run / "checkpoint-2") is None


def test_weights_with_more_bytes_than_their_header_says(run):
    with open(run / "checkpoint-2" / "model.safetensors", "ab") as file:
        file.write(b"\0")
    assert "model.safetensors" in what_is_missing(run / "checkpoint-2")


@pytest.mark.parametrize("state", ["[]", "{}", "null", '"global_step"'])
def test_a_state_that_is_none(run, state):
    (run / "checkpoint-2" / "trainer_state.json").write_text(state)
    assert "trainer_state.json" in what_is_missing(run / "checkpoint-2")


def test_a_damaged_newest_one_falls_back_in_one_line(run):
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    checkpoint, skipped = last_complete_checkpoint(run)
    assert checkpoint == run / "checkpoint-1"
    assert skipped == [f"skipping {run / 'checkpoint-2'}: optimizer.pt is missing or cut short"]
    (run / "checkpoint-1" / "model.safetensors").unlink()
    checkpoint, skipped = last_complete_checkpoint(run)
    assert checkpoint is None
    assert [line.split(":")[0].rpartition("/")[2] for line in skipped] == ["checkpoint-2", "checkpoint-1"]


def test_an_older_damaged_one_is_not_looked_at(run):
    shutil.rmtree(run / "checkpoint-1")
    (run / "checkpoint-1").mkdir()
    assert last_complete_checkpoint(run) == (run / "checkpoint-2", [])


def test_two_processes_need_both_random_states(run):
    checkpoint = run / "checkpoint-2"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    settings = state["stateful_callbacks"]["CoverageCallback"]["attributes"]["settings"]
    assert settings["world_size"] == 1
    settings["world_size"] = 2
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    assert "rng_state_0.pth" in what_is_missing(checkpoint)
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert "rng_state_1.pth" in what_is_missing(checkpoint)
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert what_is_missing(checkpoint) is None
    (checkpoint / "rng_state_0.pth").unlink()
    assert "rng_state_0.pth" in what_is_missing(checkpoint)


def test_a_model_in_several_files_needs_all_of_them_and_their_index(run):
    checkpoint = run / "checkpoint-2"
    (checkpoint / "model.safetensors").unlink()
    tiny_model().save_pretrained(checkpoint, max_shard_size="5KB")
    parts = sorted(path.name for path in checkpoint.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert what_is_missing(checkpoint) is None
    for name in ("model.safetensors.index.json", *parts):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        assert name in what_is_missing(checkpoint)
        (checkpoint / name).write_bytes(content[: len(content) // 2])
        assert name in what_is_missing(checkpoint)
        (checkpoint / name).write_bytes(content)


def test_folders_are_ordered_by_step(tmp_path):
    for name in ("checkpoint-100", "checkpoint-9", "checkpoint-10", "checkpoint-x", "incomplete-checkpoint-11"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints(tmp_path / "nowhere") == []
    assert last_complete_checkpoint(tmp_path / "nowhere") == (None, [])


def test_the_mark_of_a_save_under_way(run):
    (run / "checkpoint-2" / SAVING_NAME).write_text("")
    checkpoint, skipped = last_complete_checkpoint(run)
    assert checkpoint == run / "checkpoint-1" and "the save was interrupted" in skipped[0]


@pytest.fixture
def sharded(run) -> Path:
    """A checkpoint whose weights and optimizer were written as FSDP2 writes them, by torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp

    checkpoint = run / "checkpoint-2"
    for name in (FSDP_WEIGHTS, FSDP_OPTIMIZER):
        state = {"layer": {"weight": torch.randn(64, 8), "bias": torch.randn(8)}, "step": 3}
        dcp.save(state, storage_writer=dcp.FileSystemWriter(checkpoint / name), no_dist=True)
    for name in ("optimizer.pt", "model.safetensors", "config.json"):
        (checkpoint / name).unlink()
    return checkpoint


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_need_their_metadata_and_their_whole_length(sharded):
    assert what_is_missing(sharded) is None
    for folder in (FSDP_WEIGHTS, FSDP_OPTIMIZER):
        for path in [*(sharded / folder).glob("*.distcp"), sharded / folder / ".metadata"]:
            content = path.read_bytes()
            for part in (content[:-1], content[: len(content) // 2], b"", None):
                path.unlink() if part is None else path.write_bytes(part)
                assert f"{folder}/{path.name}" in (what_is_missing(sharded) or ""), part and len(part)
            path.write_bytes(content)
        shutil.move(sharded / folder, sharded / "aside")
        assert folder in what_is_missing(sharded)
        shutil.move(sharded / "aside", sharded / folder)
    assert what_is_missing(sharded) is None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_reading_shards_metadata_runs_no_code(sharded, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    (sharded / FSDP_WEIGHTS / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert ".metadata cannot be read" in what_is_missing(sharded)
    assert not (tmp_path / "evil").exists()


def test_deepspeed_needs_every_process_and_the_folder_that_latest_names(run):
    checkpoint = run / "checkpoint-2"
    folder = checkpoint / "global_step2"
    folder.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "model.safetensors"):  # under ZeRO-3 there is none
        (checkpoint / name).unlink()
    names = ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]
    for name in names:
        torch.save({"step": torch.ones(100)}, folder / name)
    assert what_is_missing(checkpoint) is not None, "nothing names the folder yet"
    (checkpoint / "latest").write_text("global_step2")
    assert what_is_missing(checkpoint) is None
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-30])
        assert f"global_step2/{name}" in what_is_missing(checkpoint)
        (folder / name).write_bytes(content)
    for tag in ("global_step3", "", "../checkpoint-1"):
        (checkpoint / "latest").write_text(tag)
        assert "latest names no folder" in what_is_missing(checkpoint)
    assert missing_deepspeed_of(checkpoint, processes=2) == (
        "global_step2 holds the optimizer states of 1 processes, 2 took part"
    )


def missing_deepspeed_of(checkpoint: Path, processes: int) -> str | None:
    (checkpoint / "latest").write_text("global_step2\n")
    return missing_deepspeed(checkpoint, processes)


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints(run)]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4, 5]),
        (3, None, [3, 4, 5]),
        (3, 1, [1, 4, 5]),
        (2, 2, [2, 5]),
        (2, 5, [4, 5]),
        (2, 9, [4, 5]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(trained, tmp_path, limit, best, kept):
    for step in range(1, 6):
        shutil.copytree(trained / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    rotate(tmp_path, limit, best and f"elsewhere/checkpoint-{best}")
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_rotation_never_removes_the_last_complete_one(trained, tmp_path):
    for step in range(1, 6):
        shutil.copytree(trained / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    for step in (4, 5):
        (tmp_path / f"checkpoint-{step}" / SAVING_NAME).write_text("")
    rotate(tmp_path, 2, "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4", "checkpoint-5"]
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    rotate(tmp_path, 2)
    assert len(names(tmp_path)) == 4, "where nothing is whole, nothing goes"


def test_rotation_leaves_what_another_trainer_saved(trained, tmp_path):
    for step in range(1, 5):
        shutil.copytree(trained / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text()) | {"stateful_callbacks": {}}
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(state))
    rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
