"""Verify a checkpoint: its files are those that were saved, and its state is of its step."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from mypt.checkpoints.checksums import CHECKSUMS_NAME, changed_file, read_checksums
from mypt.checkpoints.complete import SAVING_NAME, checkpoints, newest_without_fault, step_of, what_is_missing
from mypt.checkpoints.model_config import is_model
from mypt.checkpoints.state import STATE_NAME, read_state
from mypt.checkpoints.tensors import LOADABLE, list_tensors, read_header
from mypt.errors import CheckpointError

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


def last_good_checkpoint(run: str | Path, unreadable: dict[Path, str] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint without a fault, and one line for each newer one that had to be skipped.

    None if there is none, or if no save was ever finished. unreadable: checkpoints that could not be loaded, and why.
    Raises CheckpointError if there are checkpoints and every one has a fault, other than that its save was interrupted.
    """
    known = unreadable or {}
    found, faults = newest_without_fault(run, lambda path: known.get(path) or fault_of(path))
    saved = {path for path in faults if any(path.iterdir()) and not (path / SAVING_NAME).exists()}  # to the end
    damaged = known | {path: fault for path, fault in faults.items() if path in saved}
    if found is None and damaged:
        reasons = "; ".join(f"{path.name}: {fault}" for path, fault in damaged.items())
        raise CheckpointError(
            f"{run} holds no checkpoint to resume from ({reasons}): restore one of them from a copy, or train again "
            "in another training.output_dir; nothing was deleted"
        )
    return found, [f"skipping {path}: {fault}" for path, fault in faults.items()]


def fault_of(checkpoint: Path) -> str | None:
    """Why a resume cannot rely on this checkpoint, or None. All files are read.

    It has to be complete (`what_is_missing`); its state has to be of the step in its name, its weights and states those
    that were saved, by checksums.json. Without checksums, what the files record of their content is compared:
    CRC-32 of states, dtypes of weights.
    """
    if fault := what_is_missing(checkpoint):
        return fault
    step = read_state(checkpoint).step
    if checkpoint.name.startswith("checkpoint-") and step != step_of(checkpoint):
        return f"its state is of step {step}"
    fault = changed_file(checkpoint, [*LOADABLE, "pytorch_model.bin"])  # which Trainer takes before an index
    return fault if fault or (checkpoint / CHECKSUMS_NAME).exists() else _damaged(checkpoint)


def verify_model(path: Path) -> list[dict]:
    """Each checkpoint of a run folder, and the models in it, or the one model or checkpoint: JSON-ready.

    path; files, bytes: what a checksum was recorded of; problem: None, or the first thing that is wrong.
    """
    if (path / STATE_NAME).is_file():
        return [_verified(path, fault_of)]
    models = [folder for folder in (path, path / "best") if _is_whole_model(folder)]
    return [*(_verified(one, fault_of) for one in checkpoints(path)), *(_verified(one, _changed) for one in models)]


def _is_whole_model(folder: Path) -> bool:
    """Whether a folder is a model; that of a run that has not ended is none yet."""
    if not is_model(folder):
        return False
    return not checkpoints(folder) or any((folder / name).exists() for name in LOADABLE)


def _changed(model: Path) -> str | None:
    fault = changed_file(model, LOADABLE)
    if fault or (model / CHECKSUMS_NAME).exists():
        return fault
    try:
        return next(iter(list_tensors(model)[1]), None)
    except CheckpointError as error:
        return str(error).removeprefix(f"{model}/")


def _verified(path: Path, fault_of: Callable[[Path], str | None]) -> dict:
    fault = fault_of(path)
    recorded = {} if fault else read_checksums(path) or {}
    size = sum(saved["bytes"] for saved in recorded.values())
    return {"path": str(path), "files": len(recorded), "bytes": size, "problem": fault}


def _damaged(checkpoint: Path) -> str | None:
    """Find damage in a checkpoint without checksums, or None."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, entry in read_header(path)[0].items():
            if name.endswith(".weight") and entry["dtype"] not in _FLOATS:
                return f"{path.name}: {name} holds {entry['dtype']}, no floating point numbers"
    for path in sorted({*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")}):
        try:
            with zipfile.ZipFile(path) as archive:
                part = archive.testzip()
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged archive provokes
            return f"{path.name} cannot be read ({type(error).__name__})"
        if part:
            return f"{path.name} is damaged: the CRC-32 of {part} differs"
    return None
