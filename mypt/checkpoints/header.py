"""Read what a safetensors file says of itself, without its tensors."""

import struct
from pathlib import Path
from typing import Annotated, TypedDict

from mypt.errors import CheckpointError
from mypt.files import require_file
from mypt.json_files import Count, Rule, check, parse_json

LARGEST = 100_000_000  # bytes of a header, as the format has it
_ADVICE = "save or copy the file again"


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
            if length > LARGEST:
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
