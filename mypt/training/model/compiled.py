"""Decoder layers compiled one by one: all share one compilation, which takes seconds however deep the model is."""

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from mypt.errors import RecipeError
from mypt.training.model.freeze import decoder_layers

CALL = "_compiled_call_impl"  # where torch keeps a module's compiled call


def obstacle(model: PreTrainedModel, device: str) -> str | None:
    """Why `compiled_layers` cannot work, None if it can: layers that are not clear, no compiler, no headers of Python.

    device: "cpu", where Inductor calls a C++ compiler, or "gpu", where Triton calls one of C.
    """
    try:
        decoder_layers(model)
    except RecipeError as error:
        return str(error)
    if device == "cpu":
        names = [environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")]
    else:
        names = [environ["CC"]] if environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, names)):
        return f"it needs the compiler {' or '.join(names)}, and there is none"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        return f"it needs the headers of Python, and {headers} has none (on Debian: apt install python3-dev)"
    return None


@contextmanager
def compiled_layers(model: PreTrainedModel, on: bool = True) -> Iterator[None]:
    """Compile each decoder layer of `model` while the block runs; names of parameters stay what they are.

    Every length of sequences is compiled anew. Raises RecipeError as `decoder_layers` does, and where compiling fails.
    """
    layers = decoder_layers(model) if on else []
    for layer in layers:
        layer.compile()
    try:
        yield
    except RuntimeError as error:
        if layers and (advice := _advice(error)):
            raise advice from error
        raise
    finally:
        for layer in layers:
            setattr(layer, CALL, None)


def _advice(error: RuntimeError) -> RecipeError | None:
    """Advice on an error of the compiler; None for any other."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    if not isinstance(error, TorchDynamoException):
        return None
    cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return RecipeError(f"compiling a layer failed ({cause}); set training.torch_compile: false and run with --resume")


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Nothing compiled while the block runs: other shapes, and passes without gradients, would be compiled anew."""
    compiled = [(module, getattr(module, CALL)) for module in model.modules() if getattr(module, CALL, None)]
    for module, _ in compiled:
        setattr(module, CALL, None)
    try:
        yield
    finally:
        for module, call in compiled:
            setattr(module, CALL, call)
