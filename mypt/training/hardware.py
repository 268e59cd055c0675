"""What this machine is to a plan: the memory of a device and whether it multiplies bfloat16, told without torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """device: "gpu" (the first one) or "cpu". memory: its bytes, None where the system does not tell. bfloat16: whether
    it has instructions for it, so that training uses autocast (`mypt.training.arguments`)."""

    device: str
    memory: int | None
    bfloat16: bool

    @property
    def name(self) -> str:
        return "this machine's GPU" if self.device == "gpu" else "this machine's main memory"


def this_machine() -> Machine:
    """The first GPU that nvidia-smi names, else the CPU and main memory."""
    return _gpu() or Machine("cpu", _main_memory(), _cpu_multiplies_bfloat16())


def _gpu() -> Machine | None:
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.splitlines()
        mebibytes, capability = answer[0].split(",")
        return Machine("gpu", int(mebibytes) * 2**20, float(capability) >= 8)  # from Ampere on
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _cpu_multiplies_bfloat16() -> bool:
    """The processor's flag that torch asks for, too; False where /proc does not tell."""
    try:
        return " avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
