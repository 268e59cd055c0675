"""Whether a launcher has started the processes that it was asked for, read from what it leaves in the environment."""

import os

from mypt.errors import MyPTError

# As accelerate reads them: of torchrun and its own launchers, of MPI implementations.
_RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_INSTEAD = (
    "run `accelerate launch --config_file recipes/accelerate/cpu_2.yaml --num_processes N scripts/train.py RECIPE` "
    "(ddp.yaml for GPUs) or `torchrun --nproc_per_node N scripts/train.py RECIPE`"
)


def require_processes() -> None:
    """Raise MyPTError where this process would train alone, or wait for others in vain, though several were asked for.

    `accelerate launch --num_processes 2` starts one process on a CPU, with or without `--cpu`, unless its config says
    MULTI_GPU. All that it leaves of the number is MASTER_ADDR.
    """
    given = {name: os.environ[name] for name in (*_RANKS, *_SIZES) if name in os.environ}
    for name, value in given.items():
        if not value.isascii() or not value.removeprefix("-").isdigit():
            raise MyPTError(f"{name} is {value!r}, expected a whole number; unset it, or {_INSTEAD}")
    has_rank = any(name in given for name in _RANKS)
    size = next((int(given[name]) for name in _SIZES if name in given), 1)
    if size > 1 and not has_rank:
        raise MyPTError(
            f"the environment names {size} processes and not which of them this is: unset WORLD_SIZE to train in one, "
            f"or {_INSTEAD}"
        )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and not has_rank:
        raise MyPTError(
            "accelerate was asked for several processes and has started one, since without a config it has no way to "
            f"start more of them on CPUs: {_INSTEAD}; for one process leave --num_processes out and unset MASTER_ADDR"
        )
