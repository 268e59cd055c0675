"""A checkpoint that is damaged in any way is passed over with one line, and the one before it gives the same run."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mypt.checkpoints.checksums import CHECKSUMS_NAME
from mypt.checkpoints.complete import SAVING_NAME
from mypt.checkpoints.verify import fault_of, last_good_checkpoint
from mypt.cli.main import main
from mypt.errors import CheckpointError, MyPTError
from mypt.evaluation.forgetting import judge
from mypt.recipe import parse_recipe
from mypt.training.run import train
from mypt.training.run_folder import publish
from mypt.training.trainer.trainer import MyPTTrainer

STATES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def whole(tiny_recipe, tmp_path_factory) -> Path:
    return train(parse_recipe(tiny_recipe(tmp_path_factory.mktemp("damage") / "run")))


@pytest.fixture
def killed(whole, rewind, tmp_path) -> Path:
    """The run as it was after step 8, with checkpoints 4 and 8."""
    return rewind(whole, tmp_path / "run", 8)


@pytest.fixture
def resume(tiny_recipe, whole, weights, capsys):
    """resume(run): what it printed, having checked that it gave the uninterrupted run, to the last bit."""

    def again(run: Path, **options) -> str:
        capsys.readouterr()
        train(parse_recipe(tiny_recipe(run)), resume=True, **options)
        left, right = weights(whole), weights(run)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        for name in ("forgetting.json", "coverage.json"):
            assert (run / name).read_text() == (whole / name).read_text()
        return capsys.readouterr().out

    return again


def without_checksums(run: Path) -> None:
    for path in run.glob(f"checkpoint-*/{CHECKSUMS_NAME}"):
        path.unlink()


def flipped(content: bytes) -> bytes:
    bit = random.randrange(8 * len(content))
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_every_damage_of_every_file_is_found_and_named(whole, killed, tmp_path, tiny_recipe):
    newest, older = killed / "checkpoint-8", killed / "checkpoint-4"
    torch.save(Evil(tmp_path / "ran"), tmp_path / "evil.pt")
    for name in STATES:
        content = (newest / name).read_bytes()
        damages = [flipped(content) for _ in range(20)]
        damages += [b"", content[:-1], content[: len(content) // 2], bytes(len(content)), b"text\n", None]
        damages += [(older / name).read_bytes(), (tmp_path / "evil.pt").read_bytes(), pickle.dumps(Evil(tmp_path))]
        for damage in damages:
            (newest / name).unlink(missing_ok=True)
            if damage is not None:
                (newest / name).write_bytes(damage)
            found, lines = last_good_checkpoint(killed)
            assert found == older and len(lines) == 1 and f"{newest}: " in lines[0] and "\n" not in lines[0]
            assert name in lines[0] or lines[0].endswith("its state is of step 4")
        (newest / name).write_bytes(content)
    assert not (tmp_path / "ran").exists() and last_good_checkpoint(killed) == (newest, [])


def test_what_was_added_or_replaced_as_a_whole(killed):
    newest, older = killed / "checkpoint-8", killed / "checkpoint-4"
    for place in ("model-00001-of-00002.safetensors", "../checkpoint-4/model.safetensors", 7):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": place}}
        (newest / "model.safetensors.index.json").write_text(json.dumps(index))
        assert last_good_checkpoint(killed)[0] == older
    (newest / "model.safetensors.index.json").unlink()
    for name, text in (("README.md", "mine"), ("notes.json", "[not json"), ("generation_config.json", '{"top_k": 5}')):
        (newest / name).write_text(text)
    assert last_good_checkpoint(killed) == (newest, [])
    shutil.rmtree(newest)
    shutil.copytree(older, newest)
    assert last_good_checkpoint(killed) == (older, [f"skipping {newest}: its state is of step 4"])


def test_a_damaged_one_is_set_aside_and_the_one_before_it_gives_the_same_run(killed, resume):
    path = killed / "checkpoint-8" / "optimizer.pt"
    path.write_bytes(flipped(path.read_bytes()))
    out = resume(killed)
    assert f"skipping {killed / 'checkpoint-8'}: optimizer.pt was changed: its checksum differs" in out
    assert f"resuming from {killed / 'checkpoint-4'}" in out
    assert (killed / "incomplete-checkpoint-8" / "optimizer.pt").is_file()


def unloadable(checkpoint: Path, name: str) -> None:
    """Damage that only loading shows."""
    weights = load_file(checkpoint / "model.safetensors")
    state = torch.load(checkpoint / "optimizer.pt")
    if name == "weights of another shape":
        save_file(
            {k: v[..., 1:].clone() for k, v in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"}
        )
    elif name == "a weight less":
        del weights["model.norm.weight"]
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    elif name == "no place in the data":
        path = checkpoint / "trainer_state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"stateful_callbacks": {}}))
    elif name == "code":
        torch.save(Evil(checkpoint.parent / "ran"), checkpoint / "scheduler.pt")
    else:
        torch.save(state | {"state": {}}, checkpoint / "optimizer.pt")


@pytest.mark.parametrize(
    "damage", ["weights of another shape", "code", "no optimizer state", "a weight less", "no place in the data"]
)
def test_one_of_before_checksums_that_cannot_be_loaded_is_passed_over(killed, resume, damage):
    without_checksums(killed)
    unloadable(killed / "checkpoint-8", damage)
    assert fault_of(killed / "checkpoint-8") is None
    out = resume(killed)
    assert f"skipping {killed / 'checkpoint-8'}: " in out and f"resuming from {killed / 'checkpoint-4'}" in out
    assert not (killed / "ran").exists()


def test_of_before_checksums_the_files_own_checksums_and_dtypes_count(killed):
    without_checksums(killed)
    newest = killed / "checkpoint-8"
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 16
    (newest / "optimizer.pt").write_bytes(content)
    assert "optimizer.pt is damaged: the CRC-32 of" in last_good_checkpoint(killed)[1][0]
    weights = load_file(newest / "model.safetensors")
    integers = {name: tensor.view(torch.int32) for name, tensor in weights.items()}
    save_file(integers, newest / "model.safetensors", {"format": "pt"})
    assert "holds I32, no floating point numbers" in last_good_checkpoint(killed)[1][0]


def test_a_fault_of_the_machine_ends_a_resume_and_where_nothing_loads_nothing_is_renamed(
    killed, tiny_recipe, monkeypatch
):
    refused = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
    for fault, raised, words in (
        (RuntimeError(refused), MyPTError, "^out of memory"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output"),
        (ImportError("no such package"), ImportError, "no such package"),
        (torch.AcceleratorError("device-side assert"), torch.AcceleratorError, "device-side"),
        (ValueError("strange"), CheckpointError, "no checkpoint to resume from .*8: .*strange.*4: .*strange"),
    ):

        def load(trainer, checkpoint, fault=fault):
            raise fault

        monkeypatch.setattr(MyPTTrainer, "load_states", load)
        with pytest.raises(raised, match=words):
            train(parse_recipe(tiny_recipe(killed)), resume=True)
        assert {path.name for path in killed.glob("*checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}


def test_where_all_are_damaged_one_error_says_so_and_nothing_is_touched(killed, tiny_recipe, tmp_path, capsys):
    for name in ("checkpoint-4", "checkpoint-8"):
        path = killed / name / "model.safetensors"
        path.write_bytes(flipped(path.read_bytes()))
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"holds no checkpoint to resume from .*checkpoint-8: model.*checkpoint-4: "
    ):
        train(parse_recipe(tiny_recipe(killed)), resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert main(["verify", str(killed)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("PROBLEM: ") for line in lines) == 2


def test_a_chosen_one_that_is_damaged_is_an_error_that_names_the_good_ones(killed, tiny_recipe):
    path = killed / "checkpoint-8" / "scheduler.pt"
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"checkpoint-8 is damaged: scheduler.*; give one of checkpoint-4$"):
        train(parse_recipe(tiny_recipe(killed)), resume="checkpoint-8")
    without_checksums(killed)
    unloadable(killed / "checkpoint-8", "code")
    with pytest.raises(CheckpointError, match=r"checkpoint-8 cannot be loaded: .*; give one of checkpoint-4$"):
        train(parse_recipe(tiny_recipe(killed)), resume="checkpoint-8")


def test_a_damaged_model_is_not_published(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    assert main(["verify", str(run)]) == 0
    shutil.rmtree(run / "best")
    path = run / "checkpoint-4" / "model.safetensors"
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is not copied to .*best: model\.safetensors was changed"):
        publish(run, "checkpoint-4")
    assert not (run / "best").exists() and fault_of(run / "checkpoint-12") is None
    publish(run, "checkpoint-8")
    assert main(["verify", str(run / "best")]) == 0
    for damaged in (run / "best", run):
        path = damaged / "model.safetensors"
        path.write_bytes(flipped(path.read_bytes()))
        assert main(["verify", str(damaged)]) == 1
    publish(run, "checkpoint-8")
    assert main(["verify", str(run / "best")]) == 0


def test_a_kill_while_the_checksums_are_written(killed, resume, tiny_recipe):
    """Every other file is there then; the mark of the save tells that it never ended."""
    child = os.fork()
    if child == 0:
        from mypt.training.trainer import saving

        saving.write_checksums = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
        train(parse_recipe(tiny_recipe(killed)), resume=True)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert SAVING_NAME in fault_of(killed / "checkpoint-12")
    out = resume(killed)
    assert "skipping" in out and f"resuming from {killed / 'checkpoint-8'}" in out


def test_interrupted_saves_alone_start_the_run_again(killed):
    shutil.rmtree(killed / "checkpoint-4")
    (killed / "checkpoint-8" / SAVING_NAME).touch()
    (killed / "checkpoint-10").mkdir()
    found, lines = last_good_checkpoint(killed)
    assert found is None and len(lines) == 2


def test_nan_is_never_healthy():
    nan = float("nan")
    assert judge(nan, 0.0) == judge(nan, nan) == judge(0.1, 0.01, nan) == "critical"
    assert judge(0.3, nan) == "critical" and judge(-0.1, 0.01) == "healthy"
