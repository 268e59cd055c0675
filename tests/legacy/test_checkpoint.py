"""Checkpoints of the original MyPT are recognised and read, and nothing in them is run."""

import pickle

import pytest
import torch

from mypt.conversion.original_checkpoint import convert_checkpoint
from mypt.errors import CheckpointError
from mypt.legacy.checkpoint import is_original
from tests.checkpoints.original_mypt import OriginalModel, difference, write_bundle, write_single


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    file = write_single(tmp_path / "old.pt", OriginalModel(), config=Bomb())
    with pytest.raises(CheckpointError, match="refused") as error:
        convert_checkpoint(file, tmp_path / "new")
    assert "\n" not in str(error.value) and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", pickle.dumps([1, 2]), b"\x80\x02}"])
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"old\.pt") as error:
        convert_checkpoint(tmp_path / "old.pt", tmp_path / "new")
    assert "\n" not in str(error.value)


def test_the_older_format_of_torch_save_is_read(tmp_path):
    model = OriginalModel()
    old = write_bundle(tmp_path / "old", model)
    torch.save(model.state_dict(), old / "model.pt", _use_new_zipfile_serialization=False)
    convert_checkpoint(old, tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5


def test_what_is_taken_for_a_checkpoint(tmp_path):
    old = write_bundle(tmp_path / "old", OriginalModel())
    convert_checkpoint(old, tmp_path / "new")
    assert is_original(old) and is_original(old / "model.pt") and not is_original(tmp_path / "new")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.bin").touch()
    assert not is_original(tmp_path / "data")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_compile_or_ddp_put_in_front_do_not_count(tmp_path, prefix):
    model = OriginalModel()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    convert_checkpoint(write_single(tmp_path / "old.pt", model, model_state_dict=state), tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5


def test_the_folder_that_one_stands_in_is_no_new_folder(tmp_path, monkeypatch):
    """Its place would be taken by another folder of that name, and the shell would stand in one that is gone."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    source = write_single(tmp_path / "old.pt", OriginalModel())
    with pytest.raises(CheckpointError, match="is the current folder; choose another"):
        convert_checkpoint(source, ".")
    assert {path.name for path in tmp_path.rglob("*")} == {"empty", "old.pt"}
