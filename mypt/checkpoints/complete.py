"""Find the last complete checkpoint of a run folder: one that a resume can rely on to the last byte."""

import json
import re
import zipfile
from pathlib import Path

from mypt.checkpoints.header import read_header
from mypt.errors import CheckpointError

STATE_NAME = "trainer_state.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def checkpoints(run: str | Path) -> list[Path]:
    """`checkpoint-N` folders of a run, by step."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(run).glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match and path.is_dir())]


def last_complete_checkpoint(run: str | Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, or None, and one line for each newer one that had to be skipped."""
    skipped = []
    for path in reversed(checkpoints(run)):
        fault = what_is_missing(path)
        if fault is None:
            return path, skipped
        skipped.append(f"skipping {path}: {fault}")
    return None, skipped


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a resume cannot use this checkpoint, or None if it is whole.

    Whole means: every JSON file parses, the weights and the optimizer state have their full length, and the random
    state of every process that took part is there. An interrupted save fails one of these. A LoRA run's checkpoint
    holds the adapter in place of the model, and `adapter_config.json` in place of `config.json`.
    """
    try:
        state = read_state(checkpoint)
    except (OSError, ValueError) as error:
        return f"{STATE_NAME} cannot be read ({type(error).__name__}); the save was interrupted"
    config = "adapter_config.json" if _holds_adapter(checkpoint) else "config.json"
    for path in sorted({checkpoint / config, *checkpoint.glob("*.json")}):
        if not _is_json(path):
            return f"{path.name} is missing or cut short"
    for name in [ADAPTER_WEIGHTS] if _holds_adapter(checkpoint) else weight_files(checkpoint):
        if not _is_whole(checkpoint / name):
            return f"{name} is missing or shorter than its header says"
    stream = state.get("stateful_callbacks", {}).get("CoverageCallback", {}).get("attributes", {})
    world_size = stream.get("settings", {}).get("world_size", 1)
    names = ["rng_state.pth"] if world_size <= 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    names.append("scheduler.pt")
    if not any((checkpoint / name).exists() for name in ("optimizer_0", "optimizer.bin")):
        names.append("optimizer.pt")
    names += sorted({path.name for pattern in ("*.pt", "*.pth") for path in checkpoint.glob(pattern)} - {*names})
    for name in names:
        # torch.save writes a zip archive, whose directory comes last
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is missing or cut short"
    return None


def read_state(checkpoint: Path) -> dict:
    """The trainer state of a checkpoint as a dict. Raises OSError or ValueError."""
    state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or "global_step" not in state:
        raise ValueError("no trainer state")
    return state


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _holds_adapter(checkpoint: Path) -> bool:
    """Whichever of an adapter's two files an interrupted save has left."""
    return any((checkpoint / name).exists() for name in (ADAPTER_WEIGHTS, "adapter_config.json"))


def weight_files(checkpoint: Path) -> list[str]:
    """The model's file, or the files that the index of a large model names."""
    index = checkpoint / "model.safetensors.index.json"
    if index.exists():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    shards = sorted(path.name for path in checkpoint.glob("model-*-of-*.safetensors"))
    return [index.name, *shards] if shards else ["model.safetensors"]


def _is_whole(weights: Path) -> bool:
    try:
        return read_header(weights)[1]
    except (OSError, CheckpointError):
        return False
