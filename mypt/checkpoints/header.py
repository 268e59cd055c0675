"""Read what a safetensors file says of itself, without its tensors."""

import json
import struct
from pathlib import Path

from mypt.errors import CheckpointError


def read_header(path: Path) -> tuple[dict, bool]:
    """Tensors of a safetensors file as {name: {dtype, shape, data_offsets}}, and whether the file has its full length.

    The format: 8 bytes with the header's length, the header in JSON, the tensors. Raises CheckpointError if the header
    cannot be read.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if 8 + length > size:
                raise ValueError("shorter than its header")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); save or copy it again") from error
    return tensors, size == 8 + length + end
