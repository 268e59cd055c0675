"""Gather and cut what FSDP2 shards: checkpoints are those of one process, so that any layout resumes any."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mypt.checkpoints.tensors import ADAPTER_WEIGHTS, weight_files
from mypt.errors import CheckpointError, RecipeError


def before_accelerator() -> None:
    """Allow FSDP2 on CPUs. Raises RecipeError for a launch with FSDP 1, which flattens matrices."""
    state = PartialState()
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return
    _require_second(int(os.environ.get("FSDP_VERSION", 1)))
    if state.distributed_type == DistributedType.MULTI_CPU:
        # accelerate 1.15 silently takes DDP instead of FSDP for this kind of processes alone.
        state.distributed_type = DistributedType.MULTI_GPU


def after_accelerator(accelerator: Accelerator) -> None:
    """Reduce gradients and return the loss in float32, not in accelerate's bfloat16. Raises RecipeError for FSDP 1."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    _require_second(plugin.fsdp_version)
    if plugin.mixed_precision_policy:
        exact = {"reduce_dtype": torch.float32, "output_dtype": torch.float32}
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, **exact)


def _require_second(version: int) -> None:
    if version != 2:
        raise RecipeError(f"the launch config has fsdp_version {version}, expected 2: change it there")


def whole_weights(model: nn.Module, kept: bool = True) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors in main memory, empty ones unless `kept`. All processes call it together."""
    tied = tied_names(model)
    return {name: _whole(tensor, kept) for name, tensor in model.state_dict().items() if name not in tied}


def whole_state(optimizer: torch.optim.Optimizer, kept: bool = True) -> dict:
    """The optimizer's state dict, gathered as in `whole_weights`."""
    content = optimizer.state_dict()
    return content | {
        "state": {
            index: {key: _whole(value, kept) for key, value in values.items()}
            for index, values in content["state"].items()
        }
    }


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Fill each process's shards from the whole weights, or adapter, of a checkpoint.

    Raises CheckpointError if a trained parameter is not in it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward without backward leaves some whole
    adapter = (checkpoint / ADAPTER_WEIGHTS).exists()
    wanted = {name.replace(".default.", ".") if adapter else name: p for name, p in model.named_parameters()}
    for file in [ADAPTER_WEIGHTS] if adapter else weight_files(checkpoint):
        for name, tensor in load_file(checkpoint / file).items():
            if name in wanted:
                parameter = wanted.pop(name).detach()
                parameter.copy_(_cut_like(tensor.to(parameter.dtype), parameter))
    if missing := [name for name, parameter in wanted.items() if parameter.requires_grad]:
        raise CheckpointError(f"{checkpoint} lacks {len(missing)} of the model's trained weights, such as {missing[0]}")


def cut_state(content: dict, optimizer: torch.optim.Optimizer) -> dict:
    """A whole optimizer state dict, cut like the parameters that this process's optimizer has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return content | {
        "state": {
            index: {key: _cut_like(value, parameters[index]) for key, value in values.items()}
            for index, values in content["state"].items()
        }
    }


def tied_names(model: nn.Module) -> set[str]:
    """The names of parameters that have several, without the first of each."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def _whole(value: object, kept: bool) -> object:
    """The whole tensor if it is `kept`, else an empty one; other values unchanged."""
    if not isinstance(value, torch.Tensor):
        return value
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu() if kept else whole.new_empty(0)


def _cut_like(value: object, parameter: torch.Tensor) -> object:
    """This process's part of a tensor of the parameter's shape, cloned to free the whole; other values unchanged."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None).clone()


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Give the model its own class for a save, which would record the class that FSDP2 derives from it."""
    sharded = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(one for one in sharded.__mro__[1:] if one is not FSDPModule)
    try:
        yield
    finally:
        model.__class__ = sharded
