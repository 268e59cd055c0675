"""The FLOP/s that a device reaches at most, of which MFU is a share."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mypt.planning.verdict import short

if TYPE_CHECKING:
    import torch

# Dense TFLOP/s of the matrix units in bfloat16 and float16, as the vendors publish them (half of what they print "with
# sparsity"; of GeForce with float32 accumulation). Written from memory: check the sheet before quoting a figure. The
# first pattern that is found in the device's name counts.
DATA_SHEETS = (
    (r"\bGB200\b", 2500.0),
    (r"\bB200\b", 2250.0),
    (r"\bH200\b|\bGH200\b", 989.4),
    (r"\bH100 NVL\b", 835.0),
    (r"\bH[18]00 PCIe\b", 756.0),
    (r"\bH[18]00\b", 989.4),
    (r"\bH20\b", 148.0),
    (r"\bA[18]00\b", 312.0),
    (r"\bA40\b", 149.7),
    (r"\bA30\b", 165.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.05),
    (r"\bL40\b", 181.05),
    (r"\bL20\b", 119.5),
    (r"\bL4\b", 121.0),
    (r"\bRTX 5090\b", 209.5),
    (r"\bRTX 4090\b", 165.2),
    (r"\bRTX 3090\b", 71.0),
    (r"\bMI300X\b|\bMI325X\b", 1307.4),
    (r"\bMI250X\b", 191.5),  # of each of its two dies, which torch counts as devices
)
ANOTHER_DEVICE = re.compile(r"Laptop|Max-Q|\bMIG\b| D$")  # shares a name, not the figure

_SECONDS = 0.15  # of matmuls, at most twice as much with the first one


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device, and in words where the figure is from."""

    flops: float
    words: str


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """From the data sheet of a known GPU in a 16-bit dtype, else measured once in this process, in about 0.2 s."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if known := data_sheet(name, dtype):
            return Peak(known, f"{short(known / 1e12)} TFLOP/s, {name}'s data sheet")
    return _measured(device, dtype, torch.get_num_threads(), torch.get_float32_matmul_precision())


def data_sheet(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of the GPU of this name, None if it is not known for this dtype."""
    if str(dtype) not in ("torch.bfloat16", "torch.float16") or ANOTHER_DEVICE.search(name):
        return None
    return next((teraflops * 1e12 for pattern, teraflops in DATA_SHEETS if re.search(pattern, name)), None)


@cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int, precision: str) -> Peak:
    """The fastest of many products of two square matrices; no random numbers, so that a run stays the run it is."""
    import torch

    on_cpu = device.type == "cpu"
    size = 512 * math.ceil(math.sqrt(threads)) if on_cpu else 4096
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    wait = (lambda: None) if on_cpu else torch.accelerator.synchronize
    # On a CPU without the time in which other processes had the core, where the system's clock is fine enough.
    fine = time.get_clock_info("thread_time").resolution < 1e-5
    clock = time.thread_time if on_cpu and fine else time.perf_counter
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < _SECONDS:
        wait()
        start = clock()
        torch.mm(matrix, matrix)
        wait()
        best = min(best, clock() - start)
    flops = 2 * size**3 / best
    where = f"{threads} CPU thread{'s' if threads > 1 else ''}" if on_cpu else device.type
    return Peak(flops, f"a measured peak of {flops / 1e9:,.0f} GFLOP/s ({str(dtype).removeprefix('torch.')}, {where})")
