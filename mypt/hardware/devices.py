"""Devices that a run may be planned for: memory and peak speed of one, as its vendor publishes them.

Sources: NVIDIA's data sheets (GB200, B200, H200, H100, H20, A100, A40, A30, A10, L40S, L40, L20, L4, T4, V100) and
white papers (Blackwell GeForce, Ada, GA102), AMD's data sheets (Instinct MI300X, MI325X, MI250X), Apple (M2: float32
only). TFLOP/s are dense, half of what is printed "with sparsity", and of GeForce with float32 accumulation. Written
from memory; H100, 4090, 3090, L4 and T4 were compared with listings of the sheets. Memory is what nvidia-smi reports
in all, which is a little less than the sheet's where error correction takes some.
"""

import difflib
import re
from dataclasses import dataclass

from mypt.errors import MyPTError
from mypt.hardware.machine import Machine


@dataclass(frozen=True)
class Device:
    """One device. pattern: finds it in the name that torch and nvidia-smi give. memory: GiB.

    bfloat16, float16, float32: dense TFLOP/s of matrix products in it; None where its units do not have the dtype.
    """

    title: str
    pattern: str
    memory: float
    bfloat16: float | None
    float16: float | None
    float32: float

    @property
    def dtype(self) -> str:
        """Dtype of matrix products under autocast, as `mypt.hardware.machine` chooses it; "float32" for none."""
        return "bfloat16" if self.bfloat16 else "float16" if self.float16 else "float32"

    def flops(self, dtype: str) -> float | None:
        """FLOP/s in this dtype, None if it has no units for it."""
        teraflops = getattr(self, dtype)
        return teraflops and teraflops * 1e12


# The first pattern that is found counts.
DEVICES = {
    "gb200": Device("NVIDIA GB200", r"\bGB200\b", 184.0, 2500.0, 2500.0, 80.0),
    "b200": Device("NVIDIA B200", r"\bB200\b", 179.1, 2250.0, 2250.0, 75.0),
    "h200": Device("NVIDIA H200", r"\bH200\b|\bGH200\b", 140.4, 989.4, 989.4, 66.9),
    "h100-nvl": Device("NVIDIA H100 NVL", r"\bH100 NVL\b", 93.6, 835.0, 835.0, 60.0),
    "h100-pcie": Device("NVIDIA H100 PCIe", r"\bH[18]00 PCIe\b", 79.6, 756.0, 756.0, 51.2),
    "h100": Device("NVIDIA H100 SXM", r"\bH[18]00\b", 79.6, 989.4, 989.4, 66.9),
    "h20": Device("NVIDIA H20", r"\bH20\b", 95.6, 148.0, 148.0, 44.0),
    "a100-40g": Device("NVIDIA A100 40GB", r"\bA100.*\b40GB\b", 40.0, 312.0, 312.0, 19.5),
    "a100": Device("NVIDIA A100 80GB", r"\bA[18]00\b", 80.0, 312.0, 312.0, 19.5),
    "a40": Device("NVIDIA A40", r"\bA40\b", 45.0, 149.7, 149.7, 37.4),
    "a30": Device("NVIDIA A30", r"\bA30\b", 23.7, 165.0, 165.0, 10.3),
    "a10": Device("NVIDIA A10", r"\bA10\b", 22.5, 125.0, 125.0, 31.2),
    "l40s": Device("NVIDIA L40S", r"\bL40S\b", 45.0, 362.05, 362.05, 91.6),
    "l40": Device("NVIDIA L40", r"\bL40\b", 45.0, 181.05, 181.05, 90.5),
    "l20": Device("NVIDIA L20", r"\bL20\b", 45.0, 119.5, 119.5, 59.8),
    "l4": Device("NVIDIA L4", r"\bL4\b", 22.5, 121.0, 121.0, 30.3),
    "t4": Device("NVIDIA T4", r"\bT4\b", 15.0, None, 65.0, 8.1),
    "v100": Device("NVIDIA V100 SXM2 16GB", r"\bV100-SXM", 15.8, None, 125.0, 15.7),
    "5090": Device("NVIDIA GeForce RTX 5090", r"\bRTX 5090\b", 31.8, 209.5, 209.5, 104.8),
    "4090": Device("NVIDIA GeForce RTX 4090", r"\bRTX 4090\b", 24.0, 165.2, 165.2, 82.6),
    "3090": Device("NVIDIA GeForce RTX 3090", r"\bRTX 3090\b", 24.0, 71.0, 71.0, 35.6),
    "mi300x": Device("AMD Instinct MI300X", r"\bMI300X\b", 192.0, 1307.4, 1307.4, 163.4),
    "mi325x": Device("AMD Instinct MI325X", r"\bMI325X\b", 256.0, 1307.4, 1307.4, 163.4),
    # Each of its two dies, which torch counts as devices.
    "mi250x": Device("AMD Instinct MI250X (one die)", r"\bMI250X\b", 64.0, 191.5, 191.5, 23.9),
    # Of 16 GB that it shares with the system, Metal recommends to use so much. torch has no faster dtype on MPS.
    "mps": Device("Apple M2, 16 GB", r"\bApple M2$", 10.7, None, None, 3.6),
}
HERE = "cpu"  # the name of this machine's CPU, whose speed no table has
ANOTHER_DEVICE = re.compile(r"Laptop|Max-Q|\bMIG\b| D$")  # shares a name, not the figures


def known_device(name: str) -> Device | None:
    """The device that torch or nvidia-smi calls `name`; None if it is not known."""
    if ANOTHER_DEVICE.search(name):
        return None
    return next((device for device in DEVICES.values() if re.search(device.pattern, name)), None)


def machine_like(name: str) -> Machine:
    """A machine with the device that `--device` calls `name`, all of its memory free.

    Raises MyPTError with the nearest name for one that is not known.
    """
    key = re.sub(r"^(nvidia|geforce|rtx|tesla)[ -]*", "", name.strip().lower().replace(" ", "-"))
    device = DEVICES.get(key)
    if device is None:
        names = [*DEVICES, HERE]
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise MyPTError(f"--device {name!r} is no device that is known{hint} (known: {', '.join(names)})")
    memory = int(device.memory * 2**30)
    if device.dtype == "float32":
        why = f"nothing else is known to be faster on {device.title}"
    else:
        without = "" if device.bfloat16 else ", which has no bfloat16"
        why = f"{device.title}{without}"
    return Machine("gpu", memory, device.dtype, why, memory, device.title)
