"""The run folder: whose run it is, where a resume starts, and the files that a finished run leaves at its top."""

import hashlib
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from mypt.checkpoints.complete import checkpoints, last_complete_checkpoint
from mypt.errors import CheckpointError
from mypt.files import replace_text

ENVIRONMENT_NAME = "environment.json"
BEST_NAME = "best"
# Everything in a checkpoint but these belongs to the model and goes to OUT and OUT/best.
_TRAINER_FILES = (
    "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "pytorch_model_fsdp", "latest", "zero_to_",
)  # fmt: skip


def run_hash(identity: dict) -> str:
    """sha256 of what makes a run this run: data, model, seed, block size, optimizer."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def claim(run: Path, identity: dict, resume: bool) -> tuple[Path | None, list[str]]:
    """Take the folder for this run. Returns the checkpoint to go on from (None: start) and lines to print.

    Raises CheckpointError if the folder holds another run (naming what differs), or this one without `resume`.
    """
    path = run / ENVIRONMENT_NAME
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"training.output_dir {run} is a file; name a folder")
    if not path.exists() and checkpoints(run):
        raise CheckpointError(f"{run} holds checkpoints of a run that mypt did not start; choose another output_dir")
    if path.exists():
        _compare(run, recorded_identity(run), json.loads(json.dumps(identity, default=str)))
        if checkpoints(run) and not resume:
            raise CheckpointError(
                f"{run} already holds checkpoints of this run; add --resume to go on, or choose another "
                "training.output_dir"
            )
    return last_complete_checkpoint(run)


def recorded_identity(run: Path) -> dict:
    """The identity of the run that this folder holds; empty if it holds none. Raises CheckpointError if damaged."""
    path = run / ENVIRONMENT_NAME
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}), so it cannot be told whose run {run} holds; restore "
            "the file, or choose another training.output_dir"
        ) from None


def _compare(run: Path, recorded: dict, identity: dict) -> None:
    differing = [key for key in identity if recorded.get(key) != identity[key]]
    if differing:
        pairs = {key: _differing(recorded.get(key), identity[key]) for key in differing}
        details = "; ".join(f"{key}: {_short(there)} there, {_short(now)} now" for key, (there, now) in pairs.items())
        raise CheckpointError(
            f"{run} holds another run ({details}); these cannot change on a resume: restore them, or choose another "
            "training.output_dir"
        )


def _differing(there: object, now: object) -> tuple[object, object]:
    """Two values; of two dicts, only what differs."""
    if not isinstance(there, dict) or not isinstance(now, dict):
        return there, now
    keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    return tuple({key: one[key] for key in keys if key in one} for one in (there, now))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def record(run: Path, identity: dict) -> None:
    """Write environment.json: the run's identity, the versions and the machine that it started on."""
    run.mkdir(parents=True, exist_ok=True)
    names = ("mypt", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
    content = {
        "run": run_hash(identity),
        "identity": identity,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in names},
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
    }
    path = run / ENVIRONMENT_NAME
    if not path.exists():
        replace_text(path, json.dumps(content, indent=1, default=str))


def set_aside_incomplete(run: Path, checkpoint: Path | None) -> None:
    """Rename half-written checkpoints newer than the one resumed from, so that a later save cannot mix with them.

    Those set aside before go once a complete one has come as far.
    """
    reached = _step(checkpoint) if checkpoint else -1
    for aside in run.glob("incomplete-checkpoint-*"):
        if aside.name.rpartition("-")[2].isdecimal() and _step(aside) <= reached:
            shutil.rmtree(aside, ignore_errors=True)
    for path in checkpoints(run):
        if _step(path) > reached:
            aside = path.with_name(f"incomplete-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def publish(run: Path, best_checkpoint: str | None) -> Path:
    """Copy the model of the last checkpoint to OUT and that of the best one to OUT/best; safe to repeat.

    Returns the last checkpoint. Raises CheckpointError if there is no complete one.
    """
    last, _ = last_complete_checkpoint(run)
    if last is None:
        raise CheckpointError(f"{run} holds no complete checkpoint: nothing was trained")
    _copy_model(last, run)
    if best_checkpoint is not None:
        # The run folder may have moved since: the checkpoint's name is what counts.
        best = run / Path(best_checkpoint).name
        if best.is_dir():
            _copy_model(best, run / BEST_NAME)
    return last


def _copy_model(checkpoint: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in checkpoint.iterdir():
        if path.is_file() and not path.name.startswith(_TRAINER_FILES):
            temporary = target / f"{path.name}.tmp"
            shutil.copyfile(path, temporary)
            os.replace(temporary, target / path.name)
