"""HF Trainer, changed where a promise needs it: the stream as loader, the exact evaluator, honest checkpoints."""

import math
import os
import shutil

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.errors import CheckpointError, MyPTError
from mypt.streams.jit_loader import JitLoader
from mypt.streams.jit_stream import JitStream
from mypt.training.optimizers import decayed_parameters

# A full disk in the words of Python and safetensors, and of torch.save, which does not pass the reason on.
DISK_FULL = ("No space left", "PytorchStreamWriter failed", "file write failed")


class MyPTTrainer(Trainer):
    """Trains on a `ShardStream` or a `JitStream` that yields this rank's ready micro-batches.

    forgetting: the ForgettingCallback that measures the evaluation sets, or None when there are none.
    """

    def __init__(self, *args, forgetting=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.forgetting = forgetting

    def get_train_dataloader(self) -> DataLoader:
        """The stream as it is: sharded over ranks and workers, placed at its start sample.

        The private generator leaves the global random state alone, so that a resume restores it exactly.
        """
        options = {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available(),
            "generator": torch.Generator(),
        }
        if isinstance(self.train_dataset, JitStream):
            return JitLoader(self.train_dataset, **options)
        return DataLoader(self.train_dataset, batch_size=None, **options)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> int:
        """Targets in the global batch: a constant, since every window of the stream is full; no device sync."""
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        return sum(batch["shift_labels"].numel() for batch in batch_samples) * processes

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss of every evaluation set by the exact evaluator, one log entry and one `on_evaluate` for all of them."""
        metrics = self.forgetting.measure(self.model, self.args, self.state)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Never with a cache: stock models look for the documents of a packed window only without one."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def get_decay_parameter_names(self, model) -> list[str]:
        """The same parameters for HF's optimizers as for ours: matrices outside embeddings and head."""
        decayed = {id(parameter) for parameter in decayed_parameters(model)}
        return [name for name, parameter in model.named_parameters() if id(parameter) in decayed]

    def _init_training_state(self, max_steps, *args):
        """After a resume, log, evaluate and save as often as the recipe says now, not as it said then."""
        progress = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        return progress

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """Only a step that is also saved can be the best checkpoint."""
        return self.control.should_save and super()._determine_best_metric(metrics, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Stop at a loss that is no number, before it is taken for a result."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._refuse_loss(logs["loss"])
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial) -> None:
        """Save unless the weights are already lost; a full disk is one clear error and the older checkpoints stay."""
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            self._refuse_loss(math.nan)
        if isinstance(self.train_dataset, JitStream):
            self.train_dataset.gather()
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if not any(words in str(error) for words in DISK_FULL):
                raise
            half = os.path.join(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            shutil.rmtree(half, ignore_errors=True)
            raise CheckpointError(
                f"no room on the disk to save step {self.state.global_step} in {self.args.output_dir}; earlier "
                "checkpoints are untouched: free some space and run the same command with --resume"
            ) from error

    def _refuse_loss(self, loss: float) -> None:
        raise MyPTError(
            f"the training loss became {loss} by step {self.state.global_step}, and nothing was saved since; lower "
            f"training.learning_rate (now {self.args.learning_rate:g}) and run again with --resume to go on from the "
            "last checkpoint"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model and tokenizer without Trainer's pickle of its arguments, which could hold a hub token."""
        super()._save(output_dir, state_dict)
        pickle = os.path.join(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
        if self.args.should_save and os.path.exists(pickle):
            os.remove(pickle)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take the moments and the position in the schedule from the checkpoint, the settings from the recipe."""
        if checkpoint is None or not isinstance(self.lr_scheduler, LambdaLR):
            return super()._load_optimizer_and_scheduler(checkpoint)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        rates = list(self.lr_scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        position = self.lr_scheduler.last_epoch
        self.lr_scheduler.base_lrs = rates
        for group, fresh, rate, curve in zip(
            self.optimizer.param_groups, settings, rates, self.lr_scheduler.lr_lambdas, strict=True
        ):
            group.update(fresh, initial_lr=rate, lr=rate * curve(position))
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def floating_point_ops(self, inputs: dict) -> int:
        """As Trainer's, 6 for a parameter and token, but 4 for a frozen one, which gets no gradient; counted once."""
        if not hasattr(self, "_flops_per_token"):
            total = self.model.num_parameters(exclude_embeddings=True)
            trained = self.model.num_parameters(exclude_embeddings=True, only_trainable=True)
            self._flops_per_token = 4 * total + 2 * trained
        return self._flops_per_token * inputs["input_ids"].numel()
