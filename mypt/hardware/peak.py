"""The FLOP/s that a device reaches at most: of which MFU is a share, and a plan assumes one."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mypt.formatting import short
from mypt.hardware.devices import DEVICES, known_device
from mypt.hardware.machine import Machine, cpuinfo, cpus
from mypt.planning.time import Assumption

if TYPE_CHECKING:
    import torch

# Shares of the peak that a run reaches: least, expected, most. Of GPUs nothing was measured here: large models in
# published runs reach 38 to 46% (PaLM: 2204.02311, Llama 3: 2407.21783), small ones wait for memory and kernels.
LARGE = 100_000_000  # parameters
UTILISATION = {"large": (0.2, 0.35, 0.5), "small": (0.05, 0.15, 0.35), "cpu": (0.1, 0.25, 0.5)}
_REASONS = {
    "large": "published runs of large models reach 38 to 46%",
    "small": f"models below {short(LARGE)} parameters reach less than large ones",
    "cpu": "a guess, which --measure replaces",
}
# float32 FLOPs per cycle of a core, by its instructions: two units that multiply and add 16 or 8 numbers.
_PER_CYCLE = (("avx512f", 64), ("avx2", 32))
_PLAIN, _GIGAHERTZ = 16, 3.0  # where nothing is known

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


def assumption(machine: Machine, dtype: str, processes: int, parameters: int) -> Assumption | None:
    """The peak of a machine and the share that a plan assumes; None for a GPU that no table has.

    dtype: of matrix products. processes: one per GPU; on a CPU they share it. parameters: of the model.
    """
    if machine.device == "cpu":
        return Assumption(
            flops=_cpu_flops(dtype),
            utilisation=UTILISATION["cpu"],
            words=f"{_cpu_flops(dtype) / 1e9:,.0f} GFLOP/s in {dtype}, by clock and instructions of {machine.model},",
            reason=_REASONS["cpu"],
        )
    device = known_device(machine.model) or next((d for d in DEVICES.values() if d.title == machine.model), None)
    if device is None:
        return None
    kind = "large" if parameters >= LARGE else "small"
    used = dtype if device.flops(dtype) else "float32"
    flops = device.flops(used)
    why = "" if used == dtype else f" (it has no {dtype})"
    words = f"{short(flops / 1e12)} TFLOP/s in {used}{why}, {device.title}'s data sheet,"
    return Assumption(flops=flops, utilisation=UTILISATION[kind], words=words, reason=_REASONS[kind], devices=processes)


def _cpu_flops(dtype: str) -> float:
    """FLOP/s of all CPUs that this process may use; twice as many in a 16-bit dtype (AMX, faster still, is left out,
    since only large products keep it busy)."""
    about = cpuinfo()
    per_cycle = next((number for flag, number in _PER_CYCLE if f" {flag}" in about), _PLAIN)
    clock = re.search(r"^cpu MHz\s*: *([0-9.]+)$", about, re.MULTILINE)
    hertz = 1e6 * float(clock[1]) if clock else 1e9 * _GIGAHERTZ
    return cpus() * hertz * per_cycle * (1 if dtype == "float32" else 2)


def data_sheet(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of the GPU of this name, None if it is not known for this dtype, or float32, which may run as TF32."""
    kind, device = str(dtype).removeprefix("torch."), known_device(name)
    return device.flops(kind) if device and kind in ("bfloat16", "float16") else None


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
