"""The machine of a run or a plan: its device, memory, and the dtype that it multiplies fastest.

`this_machine` asks the system, without torch; `machine_of` asks torch for one device. The rules are the same.
"""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mypt.hardware.main_memory import main_memory

BFLOAT16_FROM, TENSOR_CORES_FROM = 8.0, 7.0  # CUDA compute capabilities: Ampere, Volta


@dataclass(frozen=True)
class Machine:
    """device: "gpu" (one) or "cpu". memory, free: its bytes in all, and now; None where they are not known.
    dtype: of matrix products under autocast, "float32" for none. why: the reason for it, in words. model: what the
    vendor calls the device, empty where that is not known."""

    device: str
    memory: int | None
    dtype: str
    why: str = ""
    free: int | None = None
    model: str = ""

    @property
    def name(self) -> str:
        return "this machine's GPU" if self.device == "gpu" else "this machine's main memory"


def this_machine() -> Machine:
    """The first GPU that nvidia-smi names, else the CPU and main memory."""
    return _smi() or _cpu()


def gpus() -> list[str]:
    """The devices that CUDA_VISIBLE_DEVICES names, else the numbers of all GPUs that nvidia-smi lists."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def other_machine(memory: int | None, device: str | None) -> Machine:
    """This machine; with `memory` (bytes) one that has so much, all free. device: None for a "gpu" with `memory`."""
    machine = this_machine()
    if not memory and device in (None, machine.device):
        return machine
    if not memory and device == "cpu":
        return _cpu()
    # Without `memory` a GPU that is not here has as much as nobody knows.
    return Machine(device or "gpu", memory, machine.dtype, "as on this machine", memory)


def machine_of(device) -> Machine:
    """That of a torch.device, as the process that trains on it sees it."""
    import torch

    if device.type == "cpu":
        return _cpu()
    if device.type != "cuda":
        return Machine("gpu", None, "float32", f"nothing else is known to be faster on {device.type}")
    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    return _cuda(float(f"{major}.{minor}"), total, free, torch.cuda.get_device_name(device))


def _smi() -> Machine | None:
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total,memory.free,compute_cap,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.splitlines()
        total, free, capability, name = answer[0].split(",", 3)
        return _cuda(float(capability), int(total) * 2**20, int(free) * 2**20, name.strip())
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def _cuda(capability: float, memory: int, free: int, model: str = "") -> Machine:
    if capability >= BFLOAT16_FROM:
        return Machine("gpu", memory, "bfloat16", f"compute capability {capability} multiplies it", free, model)
    before = f"compute capability {capability} is below {BFLOAT16_FROM}, from which on bfloat16 is multiplied"
    if capability >= TENSOR_CORES_FROM:
        return Machine("gpu", memory, "float16", before, free, model)
    return Machine("gpu", memory, "float32", f"{before}, and it has no tensor cores for float16", free, model)


def _cpu() -> Machine:
    (total, free), about = main_memory(), cpuinfo()
    named = re.search(r"^model name\s*: *(.+)$", about, re.MULTILINE)
    threads = f"{cpus()} thread{'s' if cpus() > 1 else ''}"
    model = f"{named[1] if named else platform.processor() or platform.machine()}, {threads}"
    if " avx512_bf16" in about:  # the flag that torch asks for, too
        return Machine("cpu", total, "bfloat16", "this CPU has instructions for it (avx512_bf16)", free, model)
    return Machine("cpu", total, "float32", "this CPU has no instructions for bfloat16 (avx512_bf16)", free, model)


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus() -> int:
    """CPUs that this process may use, at most OMP_NUM_THREADS."""
    found, threads = available_cpus(), os.environ.get("OMP_NUM_THREADS", "")
    return min(found, int(threads)) if threads.isdecimal() and int(threads) else found


def cpuinfo() -> str:
    """The processors' entry as Linux reports it; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
