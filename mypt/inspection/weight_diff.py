"""Measure how far the weights of two checkpoints are apart, one pair of tensors in memory at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.tensors import PARTS, layer_of, list_tensors, part_of, read_tensor
from mypt.errors import CheckpointError
from mypt.legacy.checkpoint import is_original, read_original
from mypt.legacy.weight_names import config_fields, rename

if TYPE_CHECKING:
    import torch


def compare_weights(first: Path, second: Path) -> dict[str, Any]:
    """A JSON-ready report; a relative change is ||b - a|| / ||a||, None where a is all zero.

    tensors: {name: {"state": identical, changed, other shape, only in A or only in B, "relative_change"}}. parts,
    layers: {name: {"tensors", "identical", "relative_change"}} over the tensors that both have in one shape. total: the
    same of all of them. Tensors of other dtypes are compared as float64. Raises CheckpointError where there are none.
    """
    read_first, read_second = _reader(first), _reader(second)
    sums: dict[str | int, _Sums] = defaultdict(_Sums)  # by part, by layer's number, and "total"
    tensors = {}
    for name in sorted(read_first.keys() | read_second.keys(), key=_order):
        if name not in read_second or name not in read_first:
            tensors[name] = {"state": "only in A" if name in read_first else "only in B"}
            continue
        a, b = read_first[name](), read_second[name]()
        if a.shape != b.shape:
            tensors[name] = {"state": "other shape", "shapes": [list(a.shape), list(b.shape)]}
            continue
        a, b = a.double(), b.double()
        size, change = a.norm().item(), (b - a).norm().item()
        tensors[name] = {"state": "changed" if change else "identical", "relative_change": _ratio(change, size)}
        for key in {"total", part_of(name), layer_of(name)} - {None}:
            sums[key].add(size, change)
    parts = {part: sums[part].report() for part in PARTS if part in sums}
    layers = {str(layer): sums[layer].report() for layer in sorted(key for key in sums if isinstance(key, int))}
    return {"tensors": tensors, "parts": parts, "layers": layers, "total": sums["total"].report()}


class _Sums:
    """Squares over the tensors of a group."""

    def __init__(self) -> None:
        self.tensors = self.identical = 0
        self.size = self.change = 0.0

    def add(self, size: float, change: float) -> None:
        self.tensors += 1
        self.identical += change == 0
        self.size += size**2
        self.change += change**2

    def report(self) -> dict[str, Any]:
        ratio = _ratio(math.sqrt(self.change), math.sqrt(self.size))
        return {"tensors": self.tensors, "identical": self.identical, "relative_change": ratio}


def _reader(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions that read the tensors of a checkpoint, by today's names."""
    if is_original(path):
        original = read_original(path)
        renamed = rename(original, config_fields(original))
        return {name: (lambda tensor=tensor: tensor) for name, tensor in renamed.items()}
    tensors, problems = list_tensors(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no weights to compare ({'; '.join(problems)})")
    return {name: (lambda file=entry.file, name=name: read_tensor(file, name)) for name, entry in tensors.items()}


def _ratio(change: float, size: float) -> float | None:
    if not change:
        return 0.0
    return change / size if size else None


def _order(name: str) -> tuple:
    """Layers by number."""
    return tuple((1, int(word), "") if word.isdigit() else (0, 0, word) for word in name.split("."))
