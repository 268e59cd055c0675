"""Find the last complete checkpoint of a run folder: one that a resume can rely on to the last byte."""

import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from mypt.checkpoints.checksums import CHECKSUMS_NAME
from mypt.checkpoints.model_config import ADAPTER_CONFIG, CONFIG_NAME
from mypt.checkpoints.state import is_foreign, read_state
from mypt.checkpoints.tensors import ADAPTER_WEIGHTS, read_header, weight_files
from mypt.errors import CheckpointError, MyPTError
from mypt.json_files import LARGER, read_json

# Lies in a checkpoint from before its first file until all are on the disk itself; HF's JIT checkpoints use this name.
SAVING_NAME = "checkpoint-is-incomplete.txt"
FSDP_WEIGHTS = "pytorch_model_fsdp_0"
FSDP_OPTIMIZER = "optimizer_0"
DEEPSPEED_TAG = "latest"  # a file that names the folder


def checkpoints(run: str | Path) -> list[Path]:
    """`checkpoint-N` folders of a run, by step."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(run).glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match and path.is_dir())]


def last_complete_checkpoint(run: str | Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, or None, and one line for each newer one that had to be skipped."""
    found, faults = newest_without_fault(run, what_is_missing)
    return found, [f"skipping {path}: {fault}" for path, fault in faults.items()]


def newest_without_fault(
    run: str | Path, fault_of: Callable[[Path], str | None]
) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that `fault_of` returns None for, or None, and the faults of each newer one."""
    faults = {}
    for path in reversed(checkpoints(run)):
        fault = fault_of(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    return None, faults


def step_of(checkpoint: Path) -> int:
    """The step that a `checkpoint-N` folder is named after."""
    return int(checkpoint.name.rpartition("-")[2])


def rotate(run: str | Path, limit: int | None, best: str | Path | None = None) -> None:
    """Remove the oldest checkpoints beyond `limit`; the newest complete one, all newer ones, `best`, and those that
    another trainer saved stay."""
    newest, _ = last_complete_checkpoint(run)
    if newest is None or not limit or limit < 1:
        return
    found = checkpoints(run)
    older = [path for path in found[: found.index(newest)] if not best or path.name != Path(best).name]
    older = [path for path in older if not is_foreign(path)]
    kept = {newest.name, Path(best).name} if best and (Path(run) / Path(best).name).is_dir() else {newest.name}
    for path in older[: max(0, len(older) - max(0, limit - len(kept)))]:
        shutil.rmtree(path, ignore_errors=True)


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a resume cannot use this checkpoint, or None if it is whole.

    Whole means: no mark of a save under way, every JSON file parses, the weights and the optimizer state have their
    full length, and the random state of every process that took part is there. An interrupted save fails one of these.
    A LoRA run's checkpoint holds the adapter in place of the model, and `adapter_config.json` in place of
    `config.json`; FSDP's and DeepSpeed's may hold weights and optimizer in parts.
    """
    if (checkpoint / SAVING_NAME).exists():
        return f"{SAVING_NAME} is there; the save was interrupted"
    try:
        state = read_state(checkpoint)
        for path in sorted(checkpoint.iterdir()):
            if path.exists() and not (path.is_file() or path.is_dir()):
                return f"{path.name} is a FIFO, a socket or a device, not a file"
        return (
            _missing_model(checkpoint)
            or _missing_parts(checkpoint, state.world_size)
            or _missing_states(checkpoint, state.world_size)
        )
    except CheckpointError as error:
        return str(error).removeprefix(f"{checkpoint}/")


def _missing_model(checkpoint: Path) -> str | None:
    """JSON files and weights; where weights lie in parts, whole ones need not be beside them."""
    # An interrupted save may have left either of an adapter's two files.
    adapter = any((checkpoint / name).exists() for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG))
    parts = (FSDP_WEIGHTS, FSDP_OPTIMIZER, "pytorch_model_fsdp.bin", DEEPSPEED_TAG)
    in_parts = any((checkpoint / name).exists() for name in parts)
    required = [] if in_parts else [checkpoint / (ADAPTER_CONFIG if adapter else CONFIG_NAME)]
    # Before a save has ended, any JSON file may be cut short; later, some may be the user's.
    ended = (checkpoint / CHECKSUMS_NAME).exists()
    for path in sorted({*required, *checkpoint.glob("adapter_base.json" if ended else "*.json")}):
        try:
            read_json(path, dict, largest=LARGER)
        except MyPTError:
            return f"{path.name} is missing or cut short"
    names = [ADAPTER_WEIGHTS] if adapter else weight_files(checkpoint)
    if in_parts and not any((checkpoint / name).exists() for name in names):
        return None
    for name in names:
        if not _is_whole(checkpoint / name):
            return f"{name} is missing or shorter than its header says"
    return None


def _missing_parts(checkpoint: Path, world_size: int) -> str | None:
    if (checkpoint / DEEPSPEED_TAG).exists():
        return missing_deepspeed(checkpoint, world_size)
    folders = [checkpoint / name for name in (FSDP_WEIGHTS, FSDP_OPTIMIZER)]
    if not any(folder.exists() for folder in folders):
        return None
    return _missing_shard(folders[0]) or _missing_shard(folders[1])


def _missing_states(checkpoint: Path, world_size: int) -> str | None:
    """Random states, schedule, optimizer: files of torch.save, each a zip archive whose directory comes last."""
    names = ["rng_state.pth"] if world_size <= 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    if not (checkpoint / DEEPSPEED_TAG).exists():  # which keeps both in its own folder
        names.append("scheduler.pt")
        if not any((checkpoint / name).exists() for name in (FSDP_OPTIMIZER, "optimizer.bin")):
            names.append("optimizer.pt")
    patterns = ("*.pt", "*.pth", "optimizer*.bin", "pytorch_model_fsdp*.bin")
    names += sorted({path.name for pattern in patterns for path in checkpoint.glob(pattern)} - {*names})
    for name in names:
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is missing or cut short"
    return None


def holds_model(checkpoint: Path) -> bool:
    """Whether a complete checkpoint can be loaded as a model: it has a config, and its weights not only in parts."""
    return all((checkpoint / name).is_file() for name in [CONFIG_NAME, *weight_files(checkpoint)])


def _is_whole(weights: Path) -> bool:
    try:
        return read_header(weights)[1]
    except (OSError, CheckpointError):
        return False


class _Record:
    """Stands for every class of a pickle, so that reading it runs no code of anybody's."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _Records(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return _Record


def _missing_shard(folder: Path) -> str | None:
    """Name a file that a folder of torch.distributed.checkpoint lacks, or None.

    `.metadata`, which is written last, has file (`.distcp`), first byte and length of each tensor.
    """
    try:
        with open(folder / ".metadata", "rb") as file:
            places = list(_Records(file).load().storage_data.values())
        ends: dict[str, int] = {}
        for place in places:
            ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    except Exception as error:  # a damaged pickle raises anything
        return f"{folder.name}/.metadata cannot be read ({type(error).__name__})"
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size < end:
            return f"{folder.name}/{name} is missing or cut short"
    return None


def missing_deepspeed(checkpoint: Path, world_size: int) -> str | None:
    """Name what DeepSpeed's folder lacks, or None: model states, and under ZeRO the optimizer's of every process."""
    tag = (checkpoint / DEEPSPEED_TAG).read_text(encoding="utf-8", errors="replace").strip()
    folder = checkpoint / tag
    if not tag or tag != Path(tag).name or not folder.is_dir():
        return f"{DEEPSPEED_TAG} names no folder of it"
    if not list(folder.glob("*model_states.pt")):
        return f"{tag} holds no model states"
    optimizers = list(folder.glob("*optim_states.pt"))
    if optimizers and len(optimizers) < world_size:
        return f"{tag} holds the optimizer states of {len(optimizers)} processes, {world_size} took part"
    for path in sorted(folder.glob("*.pt")):
        if not zipfile.is_zipfile(path):
            return f"{tag}/{path.name} is cut short"
    return None
