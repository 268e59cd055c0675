"""What a recipe may leave to the machine, decided from facts and each with its reason: no torch, nothing measured here.

docs/hardware.md has the figures behind the limits.
"""

from typing import NamedTuple

from mypt.training.hardware.machine import Machine

# The longest sequences for which plain products beat SDPA on a CPU, by what they are computed in.
EAGER_UP_TO = {"bfloat16": 256, "float16": 256, "float32": 128}
STEPS_WORTH_COMPILING = {"cpu": 3_000, "gpu": 1_000}  # the GPU's was not measured
GIVEN = "as the recipe says"


class Choice(NamedTuple):
    """A value for a key of the recipe, and why it is this one."""

    value: object
    reason: str


def autocast_dtype(training: dict) -> str | None:
    """That of the keys `bf16` and `fp16`, "float32" for bf16: false alone; None where they leave it open."""
    if training.get("fp16"):
        return "float16"
    if training.get("bf16") is not None:
        return "bfloat16" if training["bf16"] else "float32"
    return None


def choose_dtype(machine: Machine, weights: str = "float32") -> Choice:
    """Of matrix products under autocast, "float32" for none; weights: the dtype that the model is held in."""
    if machine.dtype == "float16" and weights != "float32":
        return Choice("float32", f"float16 needs float32 weights, and model.dtype is {weights}")
    return Choice(machine.dtype, machine.why)


def choose_attention(
    machine: Machine, length: int, compute: str, document_mask: bool = False, flash: bool = False
) -> list[Choice]:
    """Implementations in order of preference: a model or a machine may lack one. length: tokens per sequence.

    flash: whether the package flash_attn is installed.
    """
    sdpa, eager = Choice("sdpa", "torch's fused kernels"), Choice("eager", "plain products, which every model has")
    if machine.device == "cpu":
        limit = EAGER_UP_TO[compute]
        words = f"on a CPU in {compute}, up to {limit} tokens"
        if length <= limit:
            return [Choice("eager", f"sequences of {length}: {words}, plain products are faster than SDPA"), sdpa]
        return [Choice("sdpa", f"sequences of {length}: faster than plain products, which win {words}"), eager]
    if document_mask:
        return [Choice("flex_attention", "it skips what document masks hide"), sdpa, eager]
    if flash and compute != "float32":
        return [Choice("flash_attention_2", "flash_attn is installed"), sdpa, eager]
    return [sdpa, eager]


def choose_compile(
    machine: Machine, steps: int, *, curriculum: bool, special: str | None, obstacle: str | None
) -> Choice:
    """special: something with which it was never tried, such as adapters; obstacle: why it cannot work at all."""
    if obstacle:
        return Choice(False, obstacle)
    if curriculum:
        return Choice(False, "data.curriculum changes the lengths, and each would be compiled anew")
    if special:
        return Choice(False, f"not tried together with {special}")
    enough = STEPS_WORTH_COMPILING[machine.device]
    if steps < enough:
        return Choice(False, f"{steps:,} steps, and it pays from about {enough:,}")
    return Choice(True, f"{steps:,} steps are worth the seconds of compiling a layer")


def choose_liger(machine: Machine, model_type: str, known: frozenset[str] | None) -> Choice:
    """known: model types that the installed liger-kernel patches, None without it."""
    if machine.device == "cpu":
        return Choice(False, "its kernels are for GPUs")
    if known is None:
        return Choice(False, "liger-kernel is not installed")
    if model_type not in known:
        return Choice(False, f"liger-kernel has none for models of type {model_type}")
    return Choice(True, f"liger-kernel has them for {model_type}")
