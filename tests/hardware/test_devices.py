"""Devices by name, each with the dtype that it multiplies."""

import pytest

from mypt.errors import MyPTError
from mypt.hardware.choices import choose_attention, choose_dtype
from mypt.hardware.devices import DEVICES, known_device, machine_like
from mypt.hardware.machine import Machine, this_machine
from mypt.hardware.peak import UTILISATION, assumption


@pytest.mark.parametrize(
    ("name", "dtype", "gibibytes"),
    [("h100", "bfloat16", 79.6), ("RTX 4090", "bfloat16", 24), ("t4", "float16", 15), ("v100", "float16", 15.8),
     ("mps", "float32", 10.7)],
)  # fmt: skip
def test_a_device_brings_its_own_dtype_and_memory(name, dtype, gibibytes):
    machine = machine_like(name)
    assert (machine.device, machine.dtype, machine.memory) == ("gpu", dtype, int(gibibytes * 2**30))
    assert choose_dtype(machine).value == dtype
    assert choose_attention(machine, 64, dtype)[0].value == "sdpa", "on a CPU it would be eager"


@pytest.mark.parametrize(("name", "near"), [("h10", "h100"), ("a1000", "a100"), ("rtx-4080", "4090"), ("t5", "t4")])
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(MyPTError, match=f"did you mean {near}"):
        machine_like(name)


@pytest.mark.parametrize("name", ["", "?", "nan"])
def test_a_name_like_no_other_gets_the_list(name):
    with pytest.raises(MyPTError, match=r"known: .*h100.*cpu"):
        machine_like(name)


def test_the_table_is_consistent():
    for key, device in DEVICES.items():
        assert key == key.lower() and device.memory > 0 and device.float32 > 0
        assert (device.bfloat16 or 0) <= (device.float16 or 0) or device.dtype == "float32"
        assert (device.float16 or device.float32) >= device.float32
    for name, key in {"NVIDIA A100-SXM4-40GB": "a100-40g", "NVIDIA A100 80GB PCIe": "a100", "Tesla T4": "t4"}.items():
        assert known_device(name) is DEVICES[key]
    assert known_device("NVIDIA GeForce RTX 4090 Laptop GPU") is None


def test_an_assumption_is_of_the_dtype_that_the_device_has():
    t4 = assumption(machine_like("t4"), "bfloat16", 2, 10**9)
    assert (t4.flops, t4.devices, t4.utilisation) == (8.1e12, 2, UTILISATION["large"])
    assert "no bfloat16" in t4.words
    assert assumption(machine_like("t4"), "float16", 1, 10**6).flops == 65e12
    assert assumption(machine_like("t4"), "float16", 1, 10**6).utilisation == UTILISATION["small"]


def test_a_cpu_has_a_peak_that_its_processes_share():
    machine = this_machine()
    if machine.device == "cpu":
        one, two = (assumption(machine, "float32", processes, 10**6) for processes in (1, 2))
        assert one == two and one.flops > 1e9 and machine.model in one.words
        assert assumption(machine, "bfloat16", 1, 10**6).flops == 2 * one.flops


def test_of_a_gpu_that_nobody_knows_no_speed_is_assumed():
    assert assumption(Machine("gpu", 2**34, "bfloat16", model="GPU 9000"), "bfloat16", 1, 10**6) is None
