"""Read names, shapes and dtypes of tensors from the headers of weight files, and sort them by part of the model."""

import math
import re
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

from mypt.errors import CheckpointError, first_line
from mypt.files import require_file
from mypt.json_files import Count, FileName, Rule, check, parse_json, read_json

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Each of these, where it is there, may be what transformers or peft loads, whatever else is.
INDEX_NAME = "model.safetensors.index.json"
LOADABLE = ("model.safetensors", INDEX_NAME, ADAPTER_WEIGHTS)
_LARGEST = 100_000_000  # bytes of a header, by the format
_ADVICE = "save or copy the file again"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
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


class _Tensor(TypedDict):
    dtype: str
    shape: list[Count]
    data_offsets: Annotated[tuple[Count, Count], Rule(lambda ends: ends[0] <= ends[1], "a begin and an end")]


def read_header(path: Path) -> tuple[dict, bool]:
    """Tensors of a safetensors file as {name: {dtype, shape, data_offsets}}, and whether the file has its full length.

    The format: 8 bytes with the header's length, the header in JSON, the tensors. Raises CheckpointError if the header
    cannot be read.
    """
    require_file(path)
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if 8 + length > size:
                raise ValueError("shorter than its header")
            if length > _LARGEST:
                raise ValueError(f"a header of {length:,} bytes")
            data = file.read(length)
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); save or copy it again") from error
    name = f"{path} is no whole safetensors file: its header"
    header = parse_json(data, dict[str, object], name, CheckpointError, _ADVICE)
    header.pop("__metadata__", None)
    tensors = check(header, dict[str, _Tensor], name, CheckpointError, _ADVICE)
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    return tensors, size == 8 + length + end


def weight_files(checkpoint: Path) -> list[str]:
    """Names of the files that transformers loads: the model's, or else those in the index of a large model."""
    if (checkpoint / "model.safetensors").exists():
        return ["model.safetensors"]
    if (index := checkpoint / INDEX_NAME).exists():
        return indexed_files(index)
    shards = sorted(path.name for path in checkpoint.glob("model-*-of-*.safetensors"))
    return [INDEX_NAME, *shards] if shards else ["model.safetensors"]


class _Index(TypedDict):
    weight_map: dict[str, FileName]


def indexed_files(index: Path) -> list[str]:
    """Names of the files that the index of a large model lists. Raises CheckpointError if it is damaged."""
    return sorted({*read_json(index, _Index, CheckpointError, "save or copy it again")["weight_map"].values()})


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a weights file: its file, dtype and shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def list_tensors(folder: Path) -> tuple[dict[str, TensorEntry], list[str]]:
    """Tensors by name in the folder's model or adapter files, and a line for each thing that is wrong with them.

    Safetensors files count where there are some, as for transformers; else torch.save's, of which no code is run and no
    tensor is read.
    Raises CheckpointError if a header cannot be read.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob(ADAPTER_WEIGHTS))
    index = folder / INDEX_NAME
    if not files and not index.is_file():  # saved by torch.save: a model, else an adapter
        files = sorted(folder.glob("pytorch_model*.bin")) or sorted(folder.glob("adapter_model.bin"))
        index = folder / "pytorch_model.bin.index.json"
    listed = indexed_files(index) if index.is_file() else []
    missing = [name for name in listed if name not in {file.name for file in files}]
    problems = [f"{name} is missing" for name in missing]
    if not files and not problems:
        problems.append("there are no weights")
    found = {}
    for file in files:
        if file.suffix == ".bin":
            for name, tensor in read_bin(file).items():
                found[name] = TensorEntry(file, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            continue
        header, whole = read_header(file)
        if not whole:
            problems.append(f"{file.name} does not have the length that its header says")
        for name, entry in header.items():
            found[name] = TensorEntry(file, DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
    return found, problems


def read_bin(file: Path) -> dict:
    """The tensors by name of a file by torch.save, mapped where its form allows: data is read when it is used.

    Only tensors and containers of them are unpickled; a name that a tied weight has besides is left out, as it is in
    safetensors files. Raises CheckpointError for a file that holds something else, or is damaged.
    """
    import torch

    try:
        mapped = zipfile.is_zipfile(file)  # the form of before torch 1.6 cannot be mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # whatever a damaged or foreign pickle provokes
        reason = first_line(error)[:200]
        raise CheckpointError(
            f"{file} cannot be read as weights ({reason}); save or copy it again, best as safetensors"
        ) from None
    first = {}
    for name, tensor in tensors.items():
        first.setdefault((tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape), name)
    return {name: tensors[name] for name in first.values()}


def read_tensor(file: Path, name: str) -> "torch.Tensor":
    """One tensor of a weights file. Raises CheckpointError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".bin":
        return read_bin(file)[name]
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it") from None


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
