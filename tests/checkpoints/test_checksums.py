"""Weights and state are compared with what was recorded when they were saved; what people edit is not."""

import json
import random

import pytest
import torch

from mypt.checkpoints.checksums import CHECKSUMS_NAME, changed_file, checksums_of, read_checksums, write_checksums
from mypt.checkpoints.load import load_model
from mypt.checkpoints.tensors import weight_files
from mypt.checkpoints.verify import verify_model
from mypt.errors import CheckpointError

STATE = (
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt",
    "scaler.pt", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "latest",
    "global_step2/zero_pp_rank_1_mp_rank_00_optim_states.pt", "pytorch_model_fsdp_0/__1_0.distcp",
    "pytorch_model_fsdp_0/.metadata",
)  # fmt: skip
OTHER = ("config.json", "generation_config.json", "tokenizer.json", "README.md", "modeling_mypt.py")


@pytest.fixture
def saved(tmp_path):
    for name in (*STATE, *OTHER):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(random.randbytes(500))
    write_checksums(tmp_path)
    return tmp_path


def test_every_changed_bit_length_and_absence_of_state_is_named(saved):
    assert set(read_checksums(saved)) == set(STATE) and changed_file(saved) is None
    for name in STATE:
        content = (saved / name).read_bytes()
        for bit in random.sample(range(4_000), 20):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            (saved / name).write_bytes(damaged)
            assert changed_file(saved) == f"{name} was changed: its checksum differs"
        (saved / name).write_bytes(content[:-1])
        assert changed_file(saved) == f"{name} was changed: it has 499 bytes, 500 were saved"
        (saved / name).unlink()
        assert changed_file(saved) == f"{name} is missing"
        (saved / name).mkdir()
        assert changed_file(saved) == f"{name} is missing"
        (saved / name).rmdir()
        (saved / name).write_bytes(content)
    assert changed_file(saved) is None


def test_what_people_edit_and_add_is_theirs(saved):
    for name in (*OTHER, "notes.txt", "notes.json", "ema.safetensors"):
        (saved / name).write_text("edited")
    (saved / "tokenizer.json").unlink()
    assert changed_file(saved) is None
    assert changed_file(saved, ["ema.safetensors"]) == "ema.safetensors was not part of the save"


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{}", '{"files": null}', '{"files": {}}', '{"files": {"optimizer.pt": null}}', "[" * 100_000,
     '{"files": {"model.safetensors": {"bytes": "1", "xxh3_128": "00000000000000000000000000000000"}}}',
     '{"files": {"model.safetensors": {"bytes": 1, "xxh3_128": "0"}}}',
     '{"files": {"../model.safetensors": {"bytes": 1, "xxh3_128": "00000000000000000000000000000000"}}}',
     '{"files": {"/etc/passwd": {"bytes": 1, "xxh3_128": "00000000000000000000000000000000"}}}'],
)  # fmt: skip
def test_checksums_that_are_none_are_a_fault(saved, content):
    (saved / CHECKSUMS_NAME).write_text(content)
    assert changed_file(saved).startswith("checksums.json is damaged")
    (saved / CHECKSUMS_NAME).unlink()
    assert changed_file(saved) is None, "nothing was recorded"


def test_copies_keep_the_checksums_of_what_is_copied(saved):
    kept = json.loads(checksums_of(saved, ["config.json", "model.safetensors"]))["files"]
    assert kept == {"model.safetensors": read_checksums(saved)["model.safetensors"]}
    assert checksums_of(saved, ["config.json"]) is None


def test_a_model_with_one_changed_bit_is_not_loaded(tmp_path):
    from tests.checkpoints.test_complete import tiny_model

    model = tiny_model()
    model.save_pretrained(tmp_path)
    write_checksums(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert torch.equal(load_model(tmp_path, device="cpu").lm_head.weight, model.lm_head.weight)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed: its checksum differs; restore it"):
        load_model(tmp_path, device="cpu")
    (tmp_path / CHECKSUMS_NAME).unlink()
    load_model(tmp_path, device="cpu")


def test_whole_weights_laid_beside_parts_are_not_loaded(tmp_path):
    from tests.checkpoints.test_complete import tiny_model

    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    write_checksums(tmp_path)
    assert torch.equal(load_model(tmp_path, device="cpu").lm_head.weight, model.lm_head.weight)
    assert verify_model(tmp_path)[0]["problem"] is None
    tiny_model().save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == ["model.safetensors"], "as transformers"
    assert verify_model(tmp_path)[0]["problem"] == "model.safetensors was not part of the save"
    with pytest.raises(CheckpointError, match=r"model\.safetensors was not part of the save"):
        load_model(tmp_path, device="cpu")
    (tmp_path / CHECKSUMS_NAME).unlink()
    assert verify_model(tmp_path)[0]["problem"] is None
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert "model.safetensors" in verify_model(tmp_path)[0]["problem"]


def test_weights_saved_over_others_are_new_ones(tmp_path):
    from tests.checkpoints.test_complete import tiny_model

    tiny_model().save_pretrained(tmp_path)
    write_checksums(tmp_path)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path, device="cpu").lm_head.weight, model.lm_head.weight)
