"""The run folder: whose run it is, where a resume starts, and the files that a finished run leaves at its top."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mypt.checkpoints.checksums import CHECKSUMS_NAME, changed_file, checksums_of
from mypt.checkpoints.complete import checkpoints, last_complete_checkpoint, step_of, what_is_missing
from mypt.checkpoints.environment import (
    ENVIRONMENT_NAME,
    RecordedDataset,
    Session,
    read_environment,
    write_environment,
)
from mypt.checkpoints.interpolated import PLOT_NAME, REPORT_NAME
from mypt.checkpoints.tensors import LOADABLE
from mypt.checkpoints.verify import fault_of, last_good_checkpoint
from mypt.errors import CheckpointError
from mypt.files import replace_text, require_file
from mypt.folders import WriterLock, contents, require_own
from mypt.shards.format import METADATA_NAME
from mypt.shards.publishing import STAGING
from mypt.streams.size import SIZE_NAME
from mypt.training.data.text import DATA_NAME, EVAL_NAME, HEAD_NAME

_LOGS = (".log", ".out", ".err")  # what a shell or a scheduler writes there before training starts; never a run's own
BEST_NAME = "best"
ASIDE_NAME = "aside"  # aside-1, aside-2, ...: later checkpoints when a run resumed from an earlier one
# Everything in a checkpoint but these belongs to the model and goes to OUT and OUT/best.
_TRAINER_FILES = (
    "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "pytorch_model_fsdp", "latest", "zero_to_",
)  # fmt: skip


_held: dict[Path, tuple[WriterLock, list[object]]] = {}  # by this process: the lock, and who of it uses it


def hold(run: Path) -> Callable[[], None]:
    """Take the lock of a run folder for this process; returns what gives it back, which may be called again.

    Trainers of one process that are built for one folder share the lock. Raises FolderInUse if another process trains
    there, CheckpointError for a folder that holds something and no run.
    """
    require_run(run)
    place, user = run.resolve(), object()
    if place not in _held:
        lock = WriterLock(run)
        lock.acquire()
        _held[place] = (lock, [])
    lock, users = _held[place]
    users.append(user)

    def give_back() -> None:
        if user in users:
            users.remove(user)
            if not users:
                del _held[place]
                lock.release()

    return give_back


def require_run(run: Path) -> None:
    """Raise CheckpointError for a folder that holds something and no run."""
    require_own(run, _is_run, "mypt train", CheckpointError)


def _is_run(folder: Path) -> bool:
    """Whether a run was recorded there (`claim` compares it), or it holds only prepared text and logs."""
    if (folder / ENVIRONMENT_NAME).is_file():
        return True
    names = {name for name in contents(folder) if not (name.endswith(_LOGS) and (folder / name).is_file())}
    if not names <= {DATA_NAME, HEAD_NAME, EVAL_NAME, SIZE_NAME}:
        return False
    prepared = [folder / DATA_NAME, folder / HEAD_NAME, *(folder / EVAL_NAME).glob("*")]
    return all(not contents(path) or (path / METADATA_NAME).is_file() or (path / STAGING).is_dir() for path in prepared)


def run_hash(identity: dict) -> str:
    """sha256 of what makes a run this run: data, model, seed, block size, optimizer."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def choose(
    run: Path, resume: bool | str | Path, unreadable: dict[Path, str] | None = None
) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from (None: start), and a line to print for each newer one that is skipped.

    resume: whether to resume from the newest checkpoint without a fault, or the one to resume from. unreadable:
    checkpoints that could not be loaded, and why. Raises CheckpointError if the given one has a fault, or all have.
    """
    if isinstance(resume, bool):
        return last_good_checkpoint(run, unreadable) if resume else (None, [])
    return chosen_checkpoint(run, Path(resume)), []


def claim(run: Path, identity: dict, resume: bool, fetched_from: str | None = None) -> None:
    """Raise CheckpointError if the folder holds another run (naming what differs), or this one without `resume`.

    fetched_from: the store that all of it was just fetched from, which the message names instead.

    Raises OSError if it holds a FIFO, a socket or a device.
    """
    for path in run.iterdir() if run.is_dir() else ():
        if path.exists():
            require_file(path)
    if (run / ENVIRONMENT_NAME).exists():
        place = (fetched_from, "upload.uri") if fetched_from else (run, "training.output_dir")
        _compare(*place, recorded_identity(run), json.loads(json.dumps(identity, default=str)))
        if checkpoints(run) and not resume:
            raise holds_checkpoints(run)


def discard(paths: list[Path]) -> None:
    """Remove files and folders of a run."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def holds_checkpoints(run: Path) -> CheckpointError:
    """The refusal of a run that was begun there, without `--resume`."""
    return CheckpointError(
        f"{run} already holds checkpoints of this run; add --resume to continue, or choose another training.output_dir"
    )


def chosen_checkpoint(run: Path, given: Path, fault_of: Callable[[Path], str | None] = fault_of) -> Path:
    """The checkpoint of `run` that is given by its name or path. Raises CheckpointError if `fault_of` it is found."""
    path = run / given if (run / given).is_dir() else given
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {given} in {run}; {others(run)}")
    checkpoint = next((found for found in checkpoints(run) if found.samefile(path)), None)
    if checkpoint is None:
        raise CheckpointError(
            f"{given} is not a checkpoint of the run in {run}; {others(run)}. To start another run from its weights, "
            "set model.init_from"
        )
    if fault := fault_of(checkpoint):
        kind = "not complete" if what_is_missing(checkpoint) else "damaged"
        raise CheckpointError(f"{checkpoint} is {kind}: {fault}; {others(run)}")
    return checkpoint


def others(run: Path, unreadable: Path | None = None) -> str:
    """Which checkpoints a resume may start from instead, as advice for a message."""
    there = [path.name for path in checkpoints(run) if path != unreadable and fault_of(path) is None]
    return f"give one of {', '.join(there)}" if there else "it has no complete one"


def recorded_identity(run: Path) -> dict:
    """The identity of the run that this folder holds; empty if it holds none. Raises CheckpointError if damaged."""
    found = read_environment(run)
    return found["identity"] if found else {}


def _compare(place: str | Path, key_of_place: str, recorded: dict, identity: dict) -> None:
    differing = [key for key in identity if recorded.get(key) != identity[key]]
    if differing:
        pairs = {key: _differing(recorded.get(key), identity[key]) for key in differing}
        details = "; ".join(f"{key}: {_short(there)} there, {_short(now)} now" for key, (there, now) in pairs.items())
        raise CheckpointError(
            f"{place} holds another run ({details}); these cannot change on a resume: restore them, or choose another "
            f"{key_of_place}"
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


def record(run: Path, identity: dict, session: Session, datasets: list[RecordedDataset], step: int) -> None:
    """Write environment.json: the run's identity, and where it starts or, at `step`, is resumed."""
    write_environment(run, {"run": run_hash(identity), "identity": identity}, session, datasets, step)


def set_aside_incomplete(run: Path, checkpoint: Path | None) -> None:
    """Rename the checkpoints newer than the one resumed from, so that a later save cannot mix with them.

    They are half-written or damaged. Those set aside before go once a complete one has come as far.
    """
    reached = step_of(checkpoint) if checkpoint else -1
    for aside in run.glob("incomplete-checkpoint-*"):
        if aside.name.rpartition("-")[2].isdecimal() and step_of(aside) <= reached:
            shutil.rmtree(aside, ignore_errors=True)
    for path in checkpoints(run):
        if step_of(path) > reached:
            aside = path.with_name(f"incomplete-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def set_aside_later(run: Path, checkpoint: Path) -> Path | None:
    """Move the checkpoints after `checkpoint`, and the best model, to a new folder `aside-N`, which is returned.

    They belong to steps that are about to be trained again, perhaps otherwise. None if there are none.
    """
    later = [path for path in checkpoints(run) if step_of(path) > step_of(checkpoint)]
    if not later:
        return None
    number = 1
    while (run / f"{ASIDE_NAME}-{number}").exists():
        number += 1
    aside = run / f"{ASIDE_NAME}-{number}"
    aside.mkdir()
    for path in [*later, *([run / BEST_NAME] if (run / BEST_NAME).is_dir() else [])]:
        path.rename(aside / path.name)
    return aside


def publish(run: Path, best_checkpoint: str | None) -> Path:
    """Copy the model of the last checkpoint to OUT and that of the best one to OUT/best; safe to repeat.

    Returns the last checkpoint. Raises CheckpointError if there is no complete one, or the model of one is not what was
    saved; the last checkpoint's is copied first.
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


def model_paths(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that belong to its model; its checksums.json is left out."""
    left_out = (*_TRAINER_FILES, CHECKSUMS_NAME)
    return [path for path in checkpoint.iterdir() if path.is_file() and not path.name.startswith(left_out)]


def _copy_model(checkpoint: Path, target: Path) -> None:
    files = model_paths(checkpoint)
    checksums = checksums_of(checkpoint, [path.name for path in files])
    recorded = json.loads(checksums)["files"] if checksums else ()
    if fault := changed_file(checkpoint, [*recorded, *LOADABLE], every=False):
        raise CheckpointError(
            f"the model of {checkpoint} is not copied to {target}: {fault}; restore it and run with --resume again, or "
            f"delete {checkpoint}"
        )
    target.mkdir(exist_ok=True)
    for name in (CHECKSUMS_NAME, REPORT_NAME, PLOT_NAME):  # of the model that was there
        (target / name).unlink(missing_ok=True)
    for path in files:
        temporary = target / f"{path.name}.tmp"
        shutil.copyfile(path, temporary)
        os.replace(temporary, target / path.name)
    if checksums:
        replace_text(target / CHECKSUMS_NAME, checksums)
