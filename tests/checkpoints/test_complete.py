"""A checkpoint counts as complete only if a resume can read every part of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mypt.checkpoints.complete import checkpoints, last_complete_checkpoint, read_state, what_is_missing

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
    assert read_state(run / "checkpoint-2")["global_step"] == 2


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
    state = read_state(checkpoint)
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
