"""The file formats of an export: what each can hold, its writer, and what runs it for the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mypt.conversion import gguf, int8, onnx
from mypt.conversion.weights import cast
from mypt.errors import CheckpointError, MyPTError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mypt.conversion.parity import Runner

FLOATS = ("float32", "bfloat16", "float16")
SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # names that llama.cpp's users know


class Options(NamedTuple):
    """How to write.

    Attributes:
        dtype: One of the format's.
        max_shard_size: Largest file of weights in bytes; None: that of transformers (50 GB).
    """

    dtype: str
    max_shard_size: int | None = None


class Format(NamedTuple):
    """A new format is an entry of FORMATS.

    Attributes:
        write: Writes a stock model and its tokenizer (None: there is none) to a folder, and leaves in the model the
            weights that the files hold, in float32 if they are quantized. Returns notes for the user.
        open: Loads the folder in the library that users of the format run, and compares how it splits text.
        dtypes: Those that it can hold.
        check: Raises CheckpointError that names what the format cannot express of a stock model's config and tokenizer.
        factor: What the tolerance of the comparison is multiplied with, for a target, a dtype and
            the source's dtype.
        packages: Modules that it needs, all of the extra of its name.
        sharded: It can be cut into several files.
    """

    write: Callable[[PreTrainedModel, PreTrainedTokenizerFast | None, Path, Options], list[str]]
    open: Callable[[Path, PreTrainedTokenizerFast | None], AbstractContextManager[Runner]]
    dtypes: tuple[str, ...]
    check: Callable[[dict[str, Any], PreTrainedTokenizerFast | None], None] = lambda config, tokenizer: None
    factor: Callable[[str, str, str], float] = lambda target, dtype, saved_as: 1.0
    packages: tuple[str, ...] = ()
    sharded: bool = False


def _write_safetensors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path, options: Options
) -> list[str]:
    from mypt.tokenization.load import save_tokenizer

    cast(model, options.dtype)
    sharding = {"max_shard_size": options.max_shard_size} if options.max_shard_size else {}
    model.save_pretrained(folder, **sharding)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    return []


@contextmanager
def _open_safetensors(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> Iterator[Runner]:
    from mypt.checkpoints.load import load_model
    from mypt.conversion.parity import TransformersRunner

    yield TransformersRunner(load_model(folder, device="cpu"))


FORMATS = {
    "safetensors": Format(_write_safetensors, _open_safetensors, FLOATS, sharded=True),
    "onnx": Format(onnx.write, onnx.open_folder, onnx.DTYPES, packages=("onnx", "onnxscript", "onnxruntime")),
    "gguf": Format(
        gguf.write, gguf.open_folder, gguf.DTYPES, gguf.check, gguf.tolerance_factor, packages=("gguf", "xllamacpp")
    ),
    "int8": Format(
        int8.write,
        int8.open_folder,
        int8.DTYPES,
        int8.check,
        int8.tolerance_factor,
        packages=("torchao",),
        sharded=True,
    ),
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
