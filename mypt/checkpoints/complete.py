"""Find the last complete checkpoint of a run folder: one that a resume can rely on to the last byte."""

import json
import os
import re
import struct
import zipfile
from pathlib import Path

STATE_NAME = "trainer_state.json"


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

    Whole means: the trainer state parses, the weights and the optimizer state have their full length, and the random
    state of every process that took part is there. An interrupted save fails one of these.
    """
    try:
        state = read_state(checkpoint)
    except (OSError, ValueError) as error:
        return f"{STATE_NAME} cannot be read ({type(error).__name__}); the save was interrupted"
    weights = sorted(checkpoint.glob("*.safetensors"))
    index = checkpoint / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    if not weights or not named <= {path.name for path in weights}:
        return "it holds no weights, or only some of them"
    for path in weights:
        if not _safetensors_is_whole(path):
            return f"{path.name} is shorter than its header says"
    stream = state.get("stateful_callbacks", {}).get("CoverageCallback", {}).get("attributes", {})
    world_size = stream.get("settings", {}).get("world_size", 1)
    names = ["rng_state.pth"] if world_size <= 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    names.append("scheduler.pt")
    if not any((checkpoint / name).exists() for name in ("optimizer_0", "optimizer.bin")):
        names.append("optimizer.pt")
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


def _safetensors_is_whole(path: Path) -> bool:
    """safetensors: 8 bytes of header length, the JSON header, then the tensors at the offsets that it names."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return False
        (length,) = struct.unpack("<Q", prefix)
        if 8 + length > size:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)
