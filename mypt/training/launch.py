"""A launch, read from what its launcher leaves in the environment: the processes, DeepSpeed's ZeRO."""

import os

from mypt.errors import MyPTError, RecipeError
from mypt.terminal import say

# As accelerate reads them: of torchrun and its own launchers, of Intel MPI and MPICH, Open MPI, MVAPICH.
_RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_ACCELERATE = ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION")  # set by each of its launches
_INSTEAD = (
    "run `accelerate launch --config_file recipes/accelerate/cpu_2.yaml --num_processes N scripts/train.py RECIPE` "
    "(ddp.yaml for GPUs) or `torchrun --nproc_per_node N scripts/train.py RECIPE`"
)

WHY_NOT_ZERO = "DeepSpeed ZeRO-{} cuts matrices up, and Muon needs them whole"


def rank() -> int:
    """Number of this process in its launch; 0 where it trains alone."""
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), 0))


def zero_stage(training: dict) -> int:
    """The stage of DeepSpeed's ZeRO, as accelerate takes it; 0 without DeepSpeed. training: of a recipe."""
    if not (training.get("deepspeed") or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"):
        return 0
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))


def refuse_zero(optimizer: str, training: dict) -> None:
    """Raise RecipeError for Muon under DeepSpeed's ZeRO, whose optimizer gets pieces of one long vector."""
    stage = zero_stage(training)
    if optimizer == "muon" and stage:
        raise RecipeError(
            f"{WHY_NOT_ZERO.format(stage)}: set optimizer.name: adamw, or launch with recipes/accelerate/fsdp2.yaml"
        )


def require_processes() -> None:
    """Raise MyPTError where this process would train alone, or wait for others in vain, though several were asked for.

    `accelerate launch --num_processes 2` starts one process on a CPU, with or without `--cpu`, unless its config says
    MULTI_GPU. All that it leaves of the number are MASTER_ADDR and MASTER_PORT, behind its own variables; those that
    were exported before, as clusters do, stand in front of them, and then only a line is printed.
    """
    given = {name: os.environ[name] for name in (*_RANKS, *SIZES) if name in os.environ}
    for name, value in given.items():
        if not value.isascii() or not value.removeprefix("-").isdigit():
            raise MyPTError(f"{name} is {value!r}, expected a whole number; unset it, or {_INSTEAD}")
    has_rank = any(name in given for name in _RANKS)
    size = next((int(given[name]) for name in SIZES if name in given), 1)
    if size > 1 and not has_rank:
        raise MyPTError(
            f"the environment names {size} processes and not which of them this is: unset WORLD_SIZE to train in one, "
            f"or {_INSTEAD}"
        )
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "MASTER_ADDR" not in os.environ or has_rank:
        return
    names = list(os.environ)  # in the order in which they were set
    own = min(names.index(name) for name in _ACCELERATE if name in names)
    if any(name in names[own:] for name in ("MASTER_ADDR", "MASTER_PORT")):
        raise MyPTError(
            "accelerate was asked for several processes and has started one, since without a config it has no way to "
            f"start more of them on CPUs: {_INSTEAD}; for one process leave --num_processes out"
        )
    say(f"MASTER_ADDR is set, and accelerate has started one process, which trains alone; if you want more: {_INSTEAD}")
