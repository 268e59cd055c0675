"""The precision of matrix products: measured, set for a run, put back."""

import pytest
import torch
from torch import nn

from mypt.hardware.machine import Machine
from mypt.training.model.precision import AS_GOOD, choose_precision, matmul_precision, product_error

CPU, GPU = Machine("cpu", 2**34, "bfloat16"), Machine("gpu", 2**34, "bfloat16")


class Rounding(torch.overrides.TorchFunctionMode):
    """A machine whose float32 products round their inputs to bfloat16 when they may, as AMX does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        rounds = torch.get_float32_matmul_precision() == "medium"
        if rounds and function is torch.Tensor.matmul and args[0].dtype == torch.float32:
            args = [tensor.bfloat16().float() for tensor in args]
        return function(*args, **(kwargs or {}))


def test_medium_is_taken_only_as_long_as_it_is_float32():
    model = nn.Sequential(nn.Linear(128, 512), nn.Linear(512, 96))
    highest, medium = (product_error(model, name) for name in ("highest", "medium"))
    assert 1e-8 < highest < 1e-6, "float32 has 24 bits"
    choice = choose_precision(model, CPU, "float32")
    assert choice.value == ("medium" if medium <= AS_GOOD * highest else "highest")
    assert f"{medium:.1e}" in choice.reason and f"{highest:.1e}" in choice.reason
    with Rounding():
        assert product_error(model, "medium") > 1e-3, "bfloat16 has 8"
        assert choose_precision(model, CPU, "float32").value == "highest"


def test_on_a_gpu_tf32_stands_in_only_for_what_autocast_leaves():
    assert choose_precision(nn.Linear(8, 8), GPU, "bfloat16").value == "high"
    assert choose_precision(nn.Linear(8, 8), GPU, "float32").value == "highest"


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_the_setting_is_put_back_even_after_an_error(before):
    initial = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(ZeroDivisionError), matmul_precision("high"):
            assert torch.get_float32_matmul_precision() == "high"
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(initial)


def test_measuring_leaves_the_random_state_alone():
    layer, state = nn.Linear(64, 64), torch.get_rng_state()
    product_error(layer, "highest")
    assert torch.equal(state, torch.get_rng_state())
