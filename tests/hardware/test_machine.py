"""What a plan takes this machine to be is what torch finds."""

import os

import pytest
import torch

from mypt.hardware.machine import _cuda, machine_of, other_machine, this_machine
from mypt.hardware.main_memory import main_memory


def test_the_machine_is_the_one_that_torch_sees():
    machine = this_machine()
    assert machine.device == ("gpu" if torch.cuda.is_available() else "cpu")
    if machine.device == "cpu":
        assert (machine.dtype == "bfloat16") == torch.cpu._is_avx512_bf16_supported()
        assert 0 < machine.free <= machine.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        seen = machine_of(torch.device("cpu"))
        assert (seen.device, seen.memory, seen.dtype) == ("cpu", machine.memory, machine.dtype)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(6.1, "float32"), (7.0, "float16"), (7.5, "float16"), (8.0, "bfloat16"), (9.0, "bfloat16")],
)
def test_the_dtype_follows_from_what_the_gpu_multiplies(capability, dtype):
    machine = _cuda(capability, memory=2**34, free=2**33)
    assert (machine.device, machine.dtype, machine.free) == ("gpu", dtype, 2**33)
    assert str(capability) in machine.why


def test_a_device_that_is_not_here_has_all_of_its_memory_free():
    assert other_machine(None, None).device == this_machine().device
    there = other_machine(24 * 2**30, None)
    assert (there.device, there.memory, there.free) == ("gpu", 24 * 2**30, 24 * 2**30)
    assert other_machine(2**30, "cpu").device == "cpu"
    main = other_machine(None, "cpu")
    assert (main.device, main.memory) == ("cpu", main_memory()[0]), "not a GPU's"
    if this_machine().device == "cpu":
        assert other_machine(None, "gpu").memory is None, "main memory is not a GPU's"
