"""What a plan takes this machine to be is what torch finds."""

import os

import torch

from mypt.training.hardware import this_machine


def test_the_machine_is_the_one_that_torch_sees():
    machine = this_machine()
    assert machine.device == ("gpu" if torch.cuda.is_available() else "cpu")
    if machine.device == "cpu":
        assert machine.bfloat16 == torch.cpu._is_avx512_bf16_supported()
        assert machine.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
