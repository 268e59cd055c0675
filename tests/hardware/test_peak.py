"""The peak behind MFU: known GPUs by name, everything else by measuring it."""

import pytest
import torch

from mypt.hardware import peak

BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name, teraflops):
    assert peak.data_sheet(name, BF16) == peak.data_sheet(name, torch.float16) == (teraflops and teraflops * 1e12)
    assert peak.data_sheet(name, torch.float32) is None


def test_a_gpu_without_units_for_bfloat16_has_a_peak_in_float16_alone():
    assert peak.data_sheet("Tesla T4", BF16) is None and peak.data_sheet("Tesla T4", torch.float32) is None
    assert peak.data_sheet("Tesla T4", torch.float16) == 65e12


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_cpu_is_measured_once_and_leaves_the_random_state_alone(dtype):
    state = torch.get_rng_state()
    peak._measured.cache_clear()
    found = peak.peak_of(torch.device("cpu"), dtype)
    assert peak.peak_of(torch.device("cpu"), dtype) is found and peak._measured.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < found.flops < 1e15
    threads = torch.get_num_threads()
    assert found.words == (
        f"a measured peak of {found.flops / 1e9:,.0f} GFLOP/s ({str(dtype)[6:]}, {threads} CPU thread"
        + ("s)" if threads > 1 else ")")
    )
