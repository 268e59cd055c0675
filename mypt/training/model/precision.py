"""How exactly float32 matrices are multiplied: chosen by measuring on a CPU, set for a run, put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mypt.hardware.machine import Machine
from mypt.planning.optimizer import Choice

ROWS, WIDEST = 128, 1_024  # of the products that are tried
AS_GOOD = 4  # times highest's error; rounding the inputs to bfloat16 makes it thousands of times as large


def choose_precision(model: nn.Module, machine: Machine, compute: str) -> Choice:
    """For `hardware.matmul_precision`; compute: the dtype under autocast, "float32" without it."""
    if machine.device == "gpu":
        if compute == "float32":
            return Choice("highest", "without autocast float32 was asked for, and TF32 keeps 10 of its 23 bits")
        return Choice("high", f"TF32, closer than {compute}, for what autocast leaves in float32")
    errors = {name: product_error(model, name) for name in ("highest", "medium")}
    words = f"error of a product {errors['medium']:.1e}, highest's {errors['highest']:.1e}, measured"
    if errors["medium"] <= AS_GOOD * errors["highest"]:
        return Choice("medium", f"oneDNN's products, as exact as float32 here: {words}")
    return Choice("highest", f"medium would round to bfloat16 here: {words}")


def product_error(model: nn.Module, precision: str) -> float:
    """The largest relative error (Frobenius norm, against float64) of the products that a layer's passes consist of.

    They have the shapes of the model's linear layers, up to WIDEST, and ROWS rows; the inputs are standard normal.
    """
    generator = torch.Generator().manual_seed(0)
    with matmul_precision(precision):
        return max(_errors(inward, outward, generator) for inward, outward in _shapes(model))


def _shapes(model: nn.Module) -> set[tuple[int, int]]:
    linear = (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
    sizes = {tuple(module.weight.shape) for module in linear if module.weight.dim() == 2}
    return {(min(outward, WIDEST), min(inward, WIDEST)) for outward, inward in sizes} or {(WIDEST, WIDEST)}


def _errors(inward: int, outward: int, generator: torch.Generator) -> float:
    """Forward product and both gradients of one linear layer."""
    inputs, weight, gradient = (
        torch.randn(shape, generator=generator) for shape in ((ROWS, inward), (inward, outward), (ROWS, outward))
    )
    return max(_error(inputs, weight), _error(gradient, weight.T), _error(inputs.T, gradient))


def _error(left: torch.Tensor, right: torch.Tensor) -> float:
    exact = left.double() @ right.double()
    return float((left @ right - exact).norm() / exact.norm())


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    """torch's setting, which is the process's, as `value` inside and as it was before outside."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # HF's `tf32` sets torch's newer names of it, which the older one refuses to read
        before = "high"
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
