"""Checkpoints of a model that FSDP2 shards: the same files as one process writes, so that any layout resumes any."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from mypt.checkpoints.complete import ADAPTER_WEIGHTS, weight_files
from mypt.errors import CheckpointError, RecipeError


class ShardedTrainer(Trainer):
    """HF Trainer, whose checkpoints under FSDP2 hold `model.safetensors` and `optimizer.pt` as all others do.

    Raises RecipeError for a launch with FSDP 1, which knows no single matrices.
    """

    def create_accelerator_and_postprocess(self) -> None:
        state = PartialState()
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            _require_second(int(os.environ.get("FSDP_VERSION", 1)))
            if state.distributed_type == DistributedType.MULTI_CPU:
                # accelerate 1.15 knows FSDP for all kinds of processes but this one, for which it silently takes DDP.
                state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin:
            _require_second(plugin.fsdp_version)
        if plugin and plugin.mixed_precision_policy:
            # accelerate would also add up gradients in bfloat16, and round the loss to it.
            exact = {"reduce_dtype": torch.float32, "output_dtype": torch.float32}
            plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, **exact)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        weights = whole_weights(self.model, kept=self.args.should_save)
        with _own_class(self.model):
            self._save(output_dir, state_dict=weights)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A weight that is gathered or copied under two names is saved once, as where it is one in memory."""
        if state_dict:
            tied = _tied_names(self.model)
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = whole_state(self.optimizer, kept=self.args.should_save)
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        state = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(cut_state(state, self.optimizer))
        scheduler = torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)


def _require_second(version: int) -> None:
    if version != 2:
        raise RecipeError(f"the launch config has fsdp_version {version}, expected 2: change it there")


def refuse_flattened(optimizer: str, args: TrainingArguments) -> None:
    """Raises RecipeError for Muon under DeepSpeed's ZeRO, which hands its optimizer pieces of one long vector."""
    if optimizer == "muon" and args.deepspeed_plugin and args.deepspeed_plugin.zero_stage:
        raise RecipeError(
            f"DeepSpeed ZeRO-{args.deepspeed_plugin.zero_stage} cuts matrices up, and Muon needs them whole: set "
            "optimizer.name: adamw, or launch with recipes/accelerate/fsdp2.yaml"
        )


def whole_weights(model: nn.Module, kept: bool = True) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors in main memory.

    All processes call it alike; the tensors of one that has not `kept` them are empty.
    """
    tied = _tied_names(model)
    return {name: _whole(tensor, kept) for name, tensor in model.state_dict().items() if name not in tied}


def whole_state(optimizer: torch.optim.Optimizer, kept: bool = True) -> dict:
    """The optimizer's state dict with whole tensors in main memory; as `whole_weights`."""
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
            module.reshard()  # after a forward without backward some are whole
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


def _tied_names(model: nn.Module) -> set[str]:
    """Names, beyond its first, of every parameter that has several."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def _whole(value: object, kept: bool) -> object:
    """A tensor's whole content if it is `kept`; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu() if kept else whole.new_empty(0)


def _cut_like(value: object, parameter: torch.Tensor) -> object:
    """This process's part of a tensor of the parameter's shape, cloned, so that the whole can go; else as it is."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None).clone()


@contextmanager
def _own_class(model: nn.Module) -> Iterator[None]:
    """The class that FSDP2 put in front of the model's own would be saved, with its code, as the model's."""
    sharded = type(model)
    model.__class__ = next(one for one in sharded.__mro__[1:] if one is not FSDPModule)
    try:
        yield
    finally:
        model.__class__ = sharded
