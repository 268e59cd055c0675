"""HF Trainer, changed where a promise needs it: the stream as loader, the exact evaluator, honest checkpoints."""

import functools
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.checkpoints.load import load_model
from mypt.checkpoints.tensors import list_tensors
from mypt.errors import MyPTError
from mypt.hardware.main_memory import keep_freed
from mypt.hardware.out_of_memory import explain_out_of_memory
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.streams.jit_stream import JitLoader, JitStream
from mypt.streams.shard_stream import ShardStream
from mypt.training.callbacks.curves import draw_what_ends_it
from mypt.training.callbacks.progress import say
from mypt.training.model.compiled import compiled_layers
from mypt.training.model.flops import flops_per_token
from mypt.training.model.loading import loading, require_optimizer_state, require_weights
from mypt.training.model.objective import TrainingLoss, next_tokens, training_loss
from mypt.training.model.precision import matmul_precision
from mypt.training.optim.optimizers import decayed_parameters
from mypt.training.optim.schedules import climbing, set_rates
from mypt.training.stability.signals import outlast_signals
from mypt.training.trainer.watched import WatchedTrainer


class MyPTTrainer(WatchedTrainer):
    """Trains on a `ShardStream` or a `JitStream` that yields this rank's ready micro-batches.

    forgetting: the ForgettingCallback that measures the evaluation sets, or None when there are none. throughput: the
    ThroughputCallback, to be the first of all callbacks. hardware: the `Hardware` that was settled for the run.
    compile_layers: whether decoder layers are compiled while it trains. early_stopping, upload: callbacks that `finish`
    asks when the run ends. checkpoint: that the run resumes from. set_aside: moves later checkpoints out of the way,
    once this one is loaded. give_back: unlocks the run folder.
    Other arguments: as of `WatchedTrainer`.
    """

    def __init__(
        self,
        *args,
        forgetting=None,
        early_stopping=None,
        upload=None,
        throughput=None,
        hardware=None,
        compile_layers=False,
        checkpoint: str | None = None,
        set_aside: Callable[[], None] | None = None,
        give_back: Callable[[], None] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.forgetting, self.early_stopping, self.upload = forgetting, early_stopping, upload
        self.checkpoint, self.set_aside, self.give_back = checkpoint, set_aside, give_back
        self.hardware = hardware
        self.compile_layers = compile_layers
        self.throughput = throughput
        if throughput:
            self.callback_handler.callbacks.insert(0, throughput)  # before TensorBoard's, which gets its numbers
        self._loss: TrainingLoss | None = None
        if self.compute_loss_func is None and not isinstance(self.model, MyPTForCausalLM):
            self._loss = self.compute_loss_func = training_loss(self.model, self.model_accepts_loss_kwargs)
        if self._loss and self._loss.note and self.is_world_process_zero():
            say(self._loss.note)
        self._flops_per_token = functools.cache(functools.partial(flops_per_token, self.model))

    def train(self, *args, **kwargs):
        """With the precision of matrix products that was settled; out of memory says what would have fitted."""
        if self.args.device.type == "cpu":
            keep_freed()
        precision = matmul_precision(self.hardware.matmul_precision) if self.hardware else nullcontext()
        layers = compiled_layers(self.model, self.compile_layers)
        with precision, layers, draw_what_ends_it(self), explain_out_of_memory(self):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """The stream as it is: sharded over ranks and workers, placed at its start sample.

        The private generator leaves the global random state alone, so that a resume restores it exactly.
        """
        options = {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available(),
            "generator": torch.Generator(),
            "worker_init_fn": outlast_signals,
        }
        if self.args.dataloader_num_workers:
            options["prefetch_factor"] = self.args.dataloader_prefetch_factor
        if isinstance(self.train_dataset, JitStream):
            return JitLoader(self.train_dataset, **options)
        return DataLoader(self.train_dataset, batch_size=None, **options)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int:
        """Targets in the global batch: of our streams, whose windows are full, a constant; else counted and summed."""
        if type(self.train_dataset) not in (ShardStream, JitStream) or not self.model.training:
            return super()._get_num_items_in_batch(batch_samples, device)
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        return sum(batch["shift_labels"].numel() for batch in batch_samples) * processes

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss of every evaluation set by the exact evaluator, one log entry and one `on_evaluate` for all of them.

        Another `eval_dataset` is measured as by Trainer. Raises MyPTError when there is nothing to measure.
        """
        if eval_dataset is not None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.forgetting is None:
            raise MyPTError("there is no evaluation set: the recipe has none in data.eval, and none was given")
        metrics = self.forgetting.measure(self.model, self.args, self.state)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Never with a cache: stock models look for the documents of a packed window only without one."""
        if self._loss:
            labels = next_tokens(inputs)
            inputs = {name: tensor for name, tensor in inputs.items() if "labels" not in name} | {"labels": labels}
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """The cross-entropy; what the model adds (`TrainingLoss`) is trained on, too, and logged as `aux_loss`."""
        loss = super().training_step(*args, **kwargs)
        return self._loss.cross_entropy_of(loss) if self._loss else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """With `aux_loss`, the mean of what was added to the cross-entropy since the last entry with a loss."""
        if "loss" in logs and self._loss and self._loss.coefficient:
            added = self._loss.take_added().to(self.args.device)
            if self.args.world_size > 1:
                torch.distributed.all_reduce(added)
            logs["aux_loss"] = added.item() * self.args.gradient_accumulation_steps / self.args.world_size
        super().log(logs, *args, **kwargs)

    def forget_log_window(self, in_step: bool) -> None:
        super().forget_log_window(in_step)
        if self._loss:
            self._loss.take_added()

    def get_decay_parameter_names(self, model) -> list[str]:
        """The same parameters for HF's optimizers as for ours: matrices outside embeddings and head."""
        decayed = {id(parameter) for parameter in decayed_parameters(model)}
        return [name for name, parameter in model.named_parameters() if id(parameter) in decayed]

    def _init_training_state(self, max_steps, *args):
        """After a resume, log, evaluate and save as often as the recipe says now, not as it said then."""
        progress = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        best = self.state.best_global_step
        # A resume from a chosen checkpoint set the best one aside, if that came later.
        if best and not Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{best}").is_dir():
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        return progress

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """Only a step that is also saved can be the best checkpoint."""
        return self.control.should_save and super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, model, trial) -> None:
        if isinstance(self.train_dataset, JitStream):
            self.train_dataset.gather()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model and tokenizer without Trainer's pickle of its arguments, which could hold a hub token."""
        super()._save(output_dir, state_dict)
        pickle = os.path.join(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
        if self.args.should_save and os.path.exists(pickle):
            os.remove(pickle)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """As Trainer's; and a model whose weights have other names on disk (GPT-NeoX), of which it leaves some out."""
        with loading(resume_from_checkpoint, "the model", self.args.world_size):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                return
            saved, _ = list_tensors(Path(resume_from_checkpoint))
            if isinstance(self.model, PreTrainedModel) and saved.keys() - self.model.state_dict().keys():
                self.model.load_state_dict(load_model(resume_from_checkpoint, device="cpu").state_dict())
            else:
                require_weights(resume_from_checkpoint, self.model, saved.keys())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer's, which loads it last."""
        with loading(checkpoint, "the random state", self.args.world_size):
            super()._load_rng_state(checkpoint)
        self.settle()

    def settle(self) -> None:
        """Once the checkpoint is loaded, or known to need no loading: set later ones aside."""
        set_aside, self.set_aside = self.set_aside, None
        if set_aside:
            set_aside()

    def _load_scaler(self, checkpoint: str | None) -> None:
        with loading(checkpoint, "the state of the loss scaler", self.args.world_size):
            super()._load_scaler(checkpoint)

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LRScheduler:
        """HF's schedule, whose first step learns; where a resume would make it jump up, it climbs."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        return climbing(scheduler, self.args.lr_scheduler_type, self.args.get_warmup_steps(num_training_steps))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take the moments and the position in the schedule from the checkpoint, the settings from the recipe."""
        if checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        with loading(checkpoint, "the state of optimizer and schedule", self.args.world_size):
            self._load_moments(checkpoint)
            if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                require_optimizer_state(checkpoint, self.optimizer, self.state.global_step)

    def _load_moments(self, checkpoint: str) -> None:
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        if not isinstance(self.lr_scheduler, LambdaLR):  # it sets the rate by what it sees
            super()._load_optimizer_and_scheduler(checkpoint)
            ledger = self.state.stateful_callbacks.get("CoverageCallback", {}).get("attributes", {})
            before = ledger.get("settings", {}).get("learning_rate") or self.args.learning_rate
            for group, fresh in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(fresh, lr=group["lr"] * self.args.learning_rate / before)
            return
        rates = [rate * self.safety.rate_factor for rate in self.lr_scheduler.base_lrs]
        curves = self.lr_scheduler.lr_lambdas
        for curve in curves:
            curve.first = 0  # unless the checkpoint has it otherwise: see `Climbing`
        super()._load_optimizer_and_scheduler(checkpoint)
        position, warmup = self.lr_scheduler.last_epoch, self.args.get_warmup_steps(self.args.max_steps)
        before = zip(self.lr_scheduler.get_last_lr(), self.lr_scheduler.base_lrs, strict=True)
        self.lr_scheduler.base_lrs = rates
        for group, fresh, curve, (had, peak) in zip(self.optimizer.param_groups, settings, curves, before, strict=True):
            if peak:
                curve.go_on(position, had / peak, warmup)
            group.update(fresh)
        set_rates(self.lr_scheduler)

    def floating_point_ops(self, inputs: dict) -> int:
        """By `mypt.training.model.flops`, counted once for each length of sequence."""
        ids = inputs["input_ids"]
        return ids.numel() * self._flops_per_token(ids.shape[-1])
