"""Load a checkpoint into a trainer: whatever its files provoke is one error, in all processes alike."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object

from mypt.errors import UnreadableCheckpoint

# Of a parameter's optimizer state: tensors of the parameter's own shape.
_SHAPED = ("exp_avg", "exp_avg_sq", "momentum_buffer")


@contextmanager
def loading(checkpoint: str | None, what: str, processes: int) -> Iterator[None]:
    """Around what loads a part of a checkpoint; all processes call it alike.

    Raises UnreadableCheckpoint in all of them for anything that was raised in one, out of memory apart.
    """
    if checkpoint is None:
        yield
        return
    fault = None
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except UnreadableCheckpoint as error:  # of a part of it
        fault = error.reason
    except Exception as error:  # whatever damaged or foreign files provoke
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
    expected = 0
    for group in optimizer.param_groups:
        keeps = group.get("muon") or "betas" in group or group.get("momentum")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            expected += bool(keeps)
            if not float(state.get("step", 0)) <= steps:
                raise UnreadableCheckpoint(checkpoint, f"the optimizer state is of step {float(state['step']):g}")
            for name in _SHAPED:
                if name in state and state[name].shape != parameter.shape:
                    shapes = f"{tuple(state[name].shape)} for a parameter of {tuple(parameter.shape)}"
                    raise UnreadableCheckpoint(checkpoint, f"the optimizer state has {shapes}")
    if expected and not optimizer.state:
        raise UnreadableCheckpoint(checkpoint, f"the optimizer state is empty, for {expected} parameters")
