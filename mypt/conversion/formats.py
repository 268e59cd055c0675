"""The file formats of an export: which dtypes each holds, and what it needs. A module of its name writes and runs it.

Such a module of `mypt/conversion` is named in WRITERS of `export.py` and has four functions:

- `check(config, tokenizer)` raises CheckpointError that names what the format cannot express of a stock model's config
  and tokenizer (None: there is none).
- `write(model, tokenizer, folder, dtype, max_shard_size)` writes a stock model, no file of weights larger than the last
  argument (bytes; None: 50 GB, as transformers does). It leaves in the model the weights that the files hold, in
  float32 if they are quantized, and returns notes for the user.
- `open_folder(folder, tokenizer)`, a context, loads the folder in the library that users of the format run, a `Runner`
  of `parity.py`. Raises CheckFailed if it cannot be loaded, or gives other ids for a text than the tokenizer.
- `tolerance_factor(target, dtype, saved_as)` is the factor of the comparison's tolerance.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from mypt.errors import CheckpointError, MyPTError

FLOATS = ("float32", "bfloat16", "float16")
SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # names that llama.cpp's users know


class Format(NamedTuple):
    """A new format is an entry of FORMATS.

    Attributes:
        dtypes: Those that it can hold.
        packages: Modules that it needs, all of the extra of its name.
        sharded: It can be cut into several files.
    """

    dtypes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    sharded: bool = False


FORMATS = {
    "safetensors": Format(FLOATS, sharded=True),
    "onnx": Format(("float32",), ("onnx", "onnxscript", "onnxruntime")),
    "gguf": Format((*FLOATS, "q8_0", "q6_k", "q5_k_m", "q4_k_m"), ("gguf", "xllamacpp")),
    "int8": Format(("int8",), ("torchao",), sharded=True),
}
DTYPES = tuple(dict.fromkeys(dtype for format in FORMATS.values() for dtype in format.dtypes))


def require_format(name: str, dtype: str | None, max_shard_size: int | None) -> None:
    """Raise MyPTError for options that a format does not have, or packages of it that are not installed."""
    format = FORMATS[name]
    if dtype and SHORT.get(dtype, dtype) not in format.dtypes:
        raise CheckpointError(f"--format {name} has no --dtype {dtype}; choose {', '.join(format.dtypes)}")
    if max_shard_size and not format.sharded:
        can = " and ".join(key for key, value in FORMATS.items() if value.sharded)
        raise CheckpointError(f"--format {name} is one file; --max-shard-size is for {can}")
    if missing := [package for package in format.packages if find_spec(package) is None]:
        raise MyPTError(f"--format {name} needs {', '.join(missing)}: pip install 'mypt[{name}]'")


def choose_dtype(name: str, asked: str | None, models: str) -> str:
    """Return the dtype to write: what is asked for, else the model's, else the format's first."""
    if asked:
        return SHORT.get(asked, asked)
    return models if models in FORMATS[name].dtypes else FORMATS[name].dtypes[0]
