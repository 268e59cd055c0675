"""The tensors in a folder's safetensors files, from their headers: names, shapes, dtypes, and the part of each."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mypt.checkpoints.complete import ADAPTER_WEIGHTS
from mypt.checkpoints.header import read_header
from mypt.errors import CheckpointError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
INDEX_NAME = "model.safetensors.index.json"
# The first that matches decides; the words of GPT-2, Llama, Qwen, NeoX, OPT, BLOOM, and the original MyPT.
_PARTS = {
    "norms": re.compile(r"norm|(^|\.)ln_?\w{1,3}\."),
    "head": re.compile(r"lm_head|embed_out|(^|\.)(score|classifier|output)\."),
    "positions": re.compile(r"wpe|(embed_positions|position_embed\w*)\."),
    "embedding": re.compile(r"embed|wte"),
    "attention": re.compile(r"attn|attention|(^|\.)sa\."),
    "mlp": re.compile(r"mlp|(^|\.)(fwd|fc\d|ffn|feed_forward|experts|block_sparse_moe)\."),
}
PARTS = ("embedding", "positions", "attention", "mlp", "norms", "head", "other")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: where it is, and what its header says."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def list_tensors(folder: Path) -> tuple[dict[str, TensorEntry], list[str]]:
    """Tensors by name in the folder's model or adapter files, and a line for each thing that is wrong with them.

    Raises CheckpointError if a header cannot be read.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob(ADAPTER_WEIGHTS))
    missing = sorted(_indexed_files(folder / INDEX_NAME) - {file.name for file in files})
    problems = [f"{name} is missing" for name in missing]
    if not files and not problems and not any(folder.glob("*model*.bin")):
        problems.append("there are no weights")
    found = {}
    for file in files:
        header, whole = read_header(file)
        if not whole:
            problems.append(f"{file.name} does not have the length that its header says")
        for name, entry in header.items():
            found[name] = TensorEntry(file, DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
    return found, problems


def summarize(tensors: dict[str, TensorEntry]) -> dict | None:
    """tensors, parameters, dtypes {name: parameters} and bytes of files; None if there are no tensors."""
    if not tensors:
        return None
    dtypes: dict[str, int] = {}
    for entry in tensors.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + entry.numel
    size = sum(file.stat().st_size for file in {entry.file for entry in tensors.values()})
    return {"tensors": len(tensors), "parameters": sum(dtypes.values()), "dtypes": dtypes, "bytes": size}


def part_of(name: str) -> str:
    """One of PARTS, by the words that families of models use."""
    return next((part for part, pattern in _PARTS.items() if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to: the first number in its name."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def count_by_part(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Parameters by part from (tensor name, parameters), with total and non_embedding, named as by `count_parameters`.

    A tied head, which files do not hold, counts 0; `other` is there only where something is no known part.
    """
    parts = dict.fromkeys(PARTS, 0)
    for name, size in sizes:
        parts[part_of(name)] += size
    if not parts["other"]:
        del parts["other"]
    total = sum(parts.values())
    return parts | {"total": total, "non_embedding": total - parts["embedding"] - parts["positions"]}


def _indexed_files(index: Path) -> set[str]:
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}); restore it") from error
