"""Load a checkpoint into a trainer: whatever its files provoke is one error, in all processes alike."""

import errno
import random
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.trainer_pt_utils import safe_globals

from mypt.errors import UnreadableCheckpoint
from mypt.hardware.out_of_memory import is_out_of_memory
from mypt.training.optim.optimizers import MuonAdamW

# These keep tensors of a parameter's own shape under these names; others (GaLore, APOLLO) may keep smaller ones.
_SHAPING = (MuonAdamW, torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
_SHAPED = ("exp_avg", "exp_avg_sq", "momentum_buffer")
# Error numbers of files that are not there, or not what they should be.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def is_of_machine(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is about this machine and not about the files to load.

    No memory, an accelerator or a connection that fails, a package that is not there, a file system that does not read.
    """
    if error is None:
        return False
    if is_out_of_memory(error) or isinstance(error, ImportError | torch.AcceleratorError):
        return True
    number = re.search(r"\(os error (\d+)\)", str(error))  # of a library in Rust
    code = int(number[1]) if number else getattr(error, "errno", None)
    return (isinstance(code, int) and code not in _ABSENT) or is_of_machine(error.__cause__)


@contextmanager
def loading(checkpoint: str | None, what: str, processes: int) -> Iterator[None]:
    """Around what loads a part of a checkpoint; all processes call it alike.

    Raises UnreadableCheckpoint in all of them for anything that was raised in one, faults of the machine apart.
    """
    if checkpoint is None:
        yield
        return
    fault = None
    try:
        yield
    except UnreadableCheckpoint as error:  # of a part of it
        fault = error.reason
    except Exception as error:  # whatever damaged or foreign files provoke
        if is_of_machine(error):
            raise
        reason = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())  # torch prints some words bold
        fault = f"{what} cannot be loaded ({type(error).__name__}: {reason[:150]})"
    for found in gather_object([fault]) if processes > 1 else [fault]:
        if found:
            raise UnreadableCheckpoint(checkpoint, found)


def require_weights(checkpoint: str, model: torch.nn.Module, saved: Collection[str]) -> None:
    """Raise UnreadableCheckpoint if a trained parameter is in `saved`, the names in the file, by none of its names."""
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).extend((name, name.replace(".default.", ".")))  # peft leaves that out
    if missing := [known[0] for known in names.values() if not any(name in saved for name in known)]:
        raise UnreadableCheckpoint(checkpoint, f"{len(missing)} of its weights are missing, {missing[0]} first")


def require_optimizer_state(checkpoint: str, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Raise UnreadableCheckpoint for a loaded state that is empty, has other shapes or is further than `steps`."""
    expected, kind = 0, type(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it
    for group in optimizer.param_groups:
        keeps = group.get("muon") or "betas" in group or group.get("momentum")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            expected += bool(keeps)
            if not float(state.get("step", 0)) <= steps:
                raise UnreadableCheckpoint(checkpoint, f"the optimizer state is of step {float(state['step']):g}")
            for name in _SHAPED if kind in _SHAPING else ():
                if name in state and state[name].shape != parameter.shape:
                    shapes = f"{tuple(state[name].shape)} for a parameter of {tuple(parameter.shape)}"
                    raise UnreadableCheckpoint(checkpoint, f"the optimizer state has {shapes}")
    if expected and not optimizer.state:
        raise UnreadableCheckpoint(checkpoint, f"the optimizer state is empty, for {expected} parameters")


def require_rng_state(checkpoint: str, process: int, processes: int) -> None:
    """Restore the random states of a checkpoint, as Trainer does later; raise whatever a damaged file provokes."""
    path = Path(checkpoint, "rng_state.pth" if processes == 1 else f"rng_state_{process}.pth")
    if path.is_file():
        with safe_globals():
            state = torch.load(path, weights_only=True)
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.random.set_rng_state(state["cpu"])
