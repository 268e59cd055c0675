"""Trainer with MyPT's stream and evaluator that checks every step for signals, NaN and spikes."""

import functools
import itertools
import math
import os
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.checkpoints.load import load_model
from mypt.checkpoints.state import loaded_state
from mypt.checkpoints.tensors import list_tensors
from mypt.errors import MyPTError, RecipeError
from mypt.hardware.main_memory import keep_freed
from mypt.hardware.out_of_memory import explain_out_of_memory
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.streams.jit_stream import JitLoader, JitStream
from mypt.streams.shard_stream import ShardStream
from mypt.terminal import say
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.guard import LOWERS_THE_RATE
from mypt.training.callbacks.pictures import draw_what_ends_it
from mypt.training.model.compiled import compiled_layers
from mypt.training.model.flops import flops_per_token
from mypt.training.model.loading import loading, require_optimizer_state, require_rng_state, require_weights
from mypt.training.model.objective import TrainingLoss, next_tokens, training_loss
from mypt.training.model.precision import matmul_precision
from mypt.training.optim.optimizers import decayed_parameters
from mypt.training.optim.schedules import load_keeping_settings, rewarmed
from mypt.training.stability.loss_spikes import SpikeCallback
from mypt.training.stability.safety import SafetyCallback, require_lambda_schedule
from mypt.training.stability.signals import SignalCallback, outlast_signals
from mypt.training.stability.step_monitor import KeptNorm, LossWindow, StepMonitor, StepStats
from mypt.training.trainer import sharded
from mypt.training.trainer.saving import CompleteSave


class MyPTTrainer(Trainer):
    """Train a causal LM on a `ShardStream` or a `JitStream`, which yields this process's micro-batches.

    `SignalCallback` ends `train` with a checkpoint after a signal, `SafetyCallback` handles a step without a finite
    loss and gradient, `SpikeCallback` records steps whose loss stands out. Checkpoints under FSDP2 hold
    `model.safetensors` and `optimizer.pt` as all others do.

    Three private methods of HF's Trainer are overridden, since no public method or event has their moment
    (`tests/training/trainer/test_surface.py` pins their signatures):

    - `_load_from_checkpoint`: `train` loads the weights itself; FSDP2 and GPT-NeoX need other readers.
    - `_load_optimizer_and_scheduler`: the recipe's settings have to replace the saved ones.
    - `_save_optimizer_and_scheduler`: under FSDP2 Trainer writes a folder of shards that only one layout can read.

    Args:
        forgetting: The ForgettingCallback that measures the evaluation sets; None without evaluation sets.
        early_stopping, upload: Callbacks that `mypt.training.run.finish` uses at the end of the run.
        start: The `Start` from which it interpolates then; None: it does not.
        throughput: The ThroughputCallback, which becomes the first of all callbacks.
        hardware: The `Hardware` that was resolved for the run.
        compile_layers: Compile decoder layers during training.
        on_nan: `stop`, `skip` or `rollback`; see `SafetyCallback`.
        checkpoint: The checkpoint that the run resumes from.
        set_aside: Moves later checkpoints away, called once this one is loaded.
        give_back: Unlocks the run folder.
        args, kwargs: As for HF's Trainer.

    Raises:
        RecipeError: A launch with FSDP 1; under DeepSpeed `on_nan` other than stop, or an action that changes rates.
    """

    def __init__(
        self,
        *args,
        forgetting=None,
        early_stopping=None,
        upload=None,
        start=None,
        throughput=None,
        hardware=None,
        compile_layers: bool = False,
        on_nan: str = "stop",
        checkpoint: str | None = None,
        set_aside: Callable[[], None] | None = None,
        give_back: Callable[[], None] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.forgetting, self.early_stopping, self.upload, self.start = forgetting, early_stopping, upload, start
        self.checkpoint, self.set_aside, self.give_back = checkpoint, set_aside, give_back
        self.hardware, self.compile_layers, self.throughput = hardware, compile_layers, throughput
        if self.is_deepspeed_enabled and on_nan != "stop":
            raise RecipeError(f"safety.on_nan is {on_nan}, and DeepSpeed updates the weights by itself; use stop")
        if self.is_deepspeed_enabled and forgetting and forgetting.policy.action in LOWERS_THE_RATE:
            action = forgetting.policy.action
            raise RecipeError(f"forgetting.action is {action}, and DeepSpeed sets the rate by itself; use warn or stop")
        self.safety, self.spikes, self.signals = SafetyCallback(on_nan), SpikeCallback(), SignalCallback()
        for callback in (self.safety, self.spikes, self.signals):
            self.add_callback(callback)
        # TensorBoard's callback needs the throughput's numbers, and others need saves that are complete.
        first = [throughput] if throughput else []
        self.callback_handler.callbacks[:0] = [*first, _Events(weakref.proxy(self))]
        # To skip an update its step must be known before: only then each step waits for the GPU.
        late = self.args.device.type == "cuda" and on_nan != "skip"
        self.monitor, self.window = StepMonitor(self.args.world_size, late), LossWindow()
        self.batches: list[dict[str, torch.Tensor]] = []  # of the current step
        self.complete_save = CompleteSave(self.args)
        self.loss_parts: TrainingLoss | None = None
        if self.compute_loss_func is None and not isinstance(self.model, MyPTForCausalLM):
            self.loss_parts = self.compute_loss_func = training_loss(self.model, self.model_accepts_loss_kwargs)
        if self.loss_parts and self.loss_parts.note and self.is_world_process_zero():
            say(self.loss_parts.note)
        self.flops_per_token = functools.cache(functools.partial(flops_per_token, self.model))

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's; FSDP2 also on CPUs, with exact reductions; the norm of each step's gradient is kept."""
        sharded.before_accelerator()
        super().create_accelerator_and_postprocess()
        sharded.after_accelerator(self.accelerator)
        # Trainer calls it once in each step, with or without clipping, and passes the norm to no event.
        self.accelerator.clip_grad_norm_ = self.grad_norm = KeptNorm(self.accelerator.clip_grad_norm_)

    def free(self) -> None:
        """Free the memory of model and optimizer. Nothing can be trained or measured with this trainer any more."""
        self.model = self.model_wrapped = self.optimizer = self.lr_scheduler = self.flops_per_token = None
        self.loss_parts = self.compute_loss_func = None
        self.batches = []
        handler = self.callback_handler
        handler.model = handler.optimizer = handler.lr_scheduler = handler.train_dataloader = None
        self.accelerator.free_memory()

    # ---- training ----

    def train(self, *args, **kwargs):
        """As HF's, with the chosen precision of matrix products.

        SIGTERM, SIGHUP, SIGINT and SIGUSR1 end it with a checkpoint. The error for out of memory names a batch that
        fits, the one for a full disk reports that earlier checkpoints are complete.
        """
        if self.args.device.type == "cpu":
            keep_freed()
        precision = matmul_precision(self.hardware.matmul_precision) if self.hardware else nullcontext()
        layers = compiled_layers(self.model, self.compile_layers)
        with precision, layers, draw_what_ends_it(self), explain_out_of_memory(self), self.signals, self.complete_save:
            self.window = LossWindow()
            self.monitor.forget()
            output = super().train(*args, **kwargs)
        return output._replace(training_loss=self.window.run_mean)

    def get_train_dataloader(self) -> DataLoader:
        """A loader of the stream itself, which is sharded over ranks and workers and starts at its sample.

        The private generator does not touch the global random state, so that a resume restores it exactly.
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

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The micro-batches of a step, kept for `worst_sample`, and the number of targets in the global batch.

        The number is a constant for MyPT's streams, whose windows are full; Trainer counts it for other data.
        """
        if self.throughput:
            self.throughput.before_batches(self.state)
        if type(self.train_dataset) in (ShardStream, JitStream) and self.model.training:
            self.batches = list(itertools.islice(epoch_iterator, num_batches))
            processes = self.args.world_size if self.args.average_tokens_across_devices else 1
            return self.batches, sum(batch["shift_labels"].numel() for batch in self.batches) * processes
        self.batches, targets = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.batches, targets

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Without a cache: only then stock models detect the documents of a packed window."""
        if self.loss_parts:
            labels = next_tokens(inputs)
            inputs = {name: tensor for name, tensor in inputs.items() if "labels" not in name} | {"labels": labels}
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Train on the whole loss, and return its cross-entropy; the rest (`TrainingLoss`) is logged as `aux_loss`."""
        loss = super().training_step(*args, **kwargs)
        shown = self.loss_parts.cross_entropy_of(loss) if self.loss_parts else loss
        self.monitor.add(loss, shown)
        return shown

    def check_step(self) -> None:
        """Check loss and gradient of a step before its update."""
        stats = self.monitor.step(
            # fp16's loss scaler finds its scale by infinite norms, and leaves out such updates itself.
            self.grad_norm.take() if getattr(self.accelerator, "scaler", None) is None else None,
            stop=self.signals.received is not None,
            step=self.state.global_step + 1,
            samples=(self.next_sample(), self.next_sample(in_step=True) - 1),
            batches=self.batches,
        )
        self._look_at(stats, in_step=True)

    def _look_at(self, stats: StepStats | None, in_step: bool) -> None:
        if stats is None:
            return
        self.signals.stopping |= stats.stop
        if stats.finite:
            self.safety.skipped = 0
            self.window.add(stats)
            self.spikes.see(self, stats)
            return
        self.safety.act(self, stats, in_step)
        self.window.clear()
        if self.loss_parts:
            self.loss_parts.take_added()

    def require_sound(self) -> None:
        """Check the weights before they are measured or saved.

        An update with a finite gradient may break them, which the loss shows one step later.
        """
        self._look_at(self.monitor.flush(), in_step=False)
        own = (p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters() if p.requires_grad)
        sound = torch.stack([torch.isfinite(p).all().to(self.args.device) for p in own]).all().int()
        if self.args.world_size > 1:  # under FSDP2 each process has its part
            torch.distributed.all_reduce(sound, torch.distributed.ReduceOp.MIN)
        if not sound:
            samples = (2 * self.next_sample() - self.next_sample(in_step=True), self.next_sample() - 1)
            self._look_at(StepStats(self.state.global_step, samples, math.nan, math.nan, math.nan), in_step=False)

    def next_sample(self, in_step: bool = False) -> int:
        """The first global sample that is not trained on yet; in_step: the first one after the current step."""
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        coverage = self._coverage()
        done = coverage.next_sample if coverage else self.state.global_step * batch
        return done + batch * in_step

    def note_event(self, sample: int, event: dict, line: str) -> None:
        """Record in the ledger what was done to this run, and report it."""
        event = {"sample": sample, "step": self.state.global_step, "changes": {}} | event
        if coverage := self._coverage():
            coverage.changes.append(event)
        if self.is_world_process_zero():
            say(line)

    def _coverage(self) -> CoverageCallback | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, CoverageCallback)), None)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log the mean loss of the finite steps since the last entry (`LossWindow`); nothing without such a step.

        `aux_loss` is the mean of what was added to the cross-entropy.
        """
        if {"loss", "learning_rate"} <= logs.keys():  # Trainer's own
            self._look_at(self.monitor.flush(), in_step=False)
            if not self.window.steps:
                return
            if self.loss_parts and self.loss_parts.coefficient:
                added = self.loss_parts.take_added().to(self.args.device)
                if self.args.world_size > 1:
                    torch.distributed.all_reduce(added)
                logs["aux_loss"] = added.item() * self.args.gradient_accumulation_steps / self.args.world_size
            logs["loss"] = self.window.take_mean()
        if "train_loss" in logs:
            logs["train_loss"] = self.window.run_mean
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict) -> int:
        """By `mypt.training.model.flops`, counted once for each length of sequence."""
        ids = inputs["input_ids"]
        return ids.numel() * self.flops_per_token(ids.shape[-1])

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Measure every evaluation set with one log entry and one `on_evaluate` for all.

        Another `eval_dataset` is measured by HF's evaluation loop. Raises MyPTError without an evaluation set.
        """
        if eval_dataset is not None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.forgetting is None:
            raise MyPTError("there is no evaluation set: the recipe has none in data.eval, and none was given")
        if self.is_in_train:
            self.require_sound()
        metrics = self.forgetting.measure(self.model, self.args, self.state)
        self.log(dict(metrics))
        # As CallbackHandler.on_evaluate, with the trainer, by which the guard restores weights.
        self.control.should_evaluate = False
        self.control = self.callback_handler.call_event(
            "on_evaluate", self.args, self.state, self.control, metrics=metrics, trainer=self
        )
        return metrics

    # ---- optimizer and schedule ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As HF's; in `hyperparameter_search` by the arguments of the trial, not those this trainer was built with."""
        if self.hp_search_backend is not None and self.optimizer_cls_and_kwargs is not None:
            made, options = self.optimizer_cls_and_kwargs
            args = self.args
            now = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "eps": args.adam_epsilon,
                   "betas": (args.adam_beta1, args.adam_beta2)}  # fmt: skip
            self.optimizer_cls_and_kwargs = made, options | {name: now[name] for name in now.keys() & options.keys()}
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Decay the same parameters in HF's optimizers as in MyPT's: matrices outside embeddings and head."""
        decayed = {id(parameter) for parameter in decayed_parameters(model)}
        return [name for name, parameter in model.named_parameters() if id(parameter) in decayed]

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LRScheduler:
        """HF's schedule as a `RewarmSchedule`."""
        self.safety.restore(self)  # the checkpoint's trainer state is loaded, its optimizer state comes next
        if self.forgetting:
            self.forgetting.guard.restore(loaded_state(self.state), self.args.learning_rate)
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        require_lambda_schedule(scheduler, self.safety.on_nan)
        return rewarmed(scheduler, self.args.lr_scheduler_type, self.args.get_warmup_steps(num_training_steps))

    @property
    def rate_factor(self) -> float:
        """The factor of all rollbacks, and of all cuts by the guard, on the recipe's learning rate."""
        return self.safety.rate_factor * (self.forgetting.guard.rate_factor if self.forgetting else 1.0)

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer without Trainer's pickle of its arguments, which could hold a hub token.

        Trainer calls it first in every checkpoint, with `_internal_call` and a folder.
        """
        if not (_internal_call and output_dir):
            return self._save_model(output_dir or self.args.output_dir)
        self.require_sound()
        if isinstance(self.train_dataset, JitStream):
            self.train_dataset.gather()
        with self.complete_save.model_of(Path(output_dir)):
            self._save_model(output_dir)

    def _save_model(self, folder: str) -> None:
        weights = self._gathered_weights()
        if weights is None:
            super().save_model(folder, _internal_call=True)
        elif self.args.should_save:
            with sharded.own_class(self.model):
                self.model.save_pretrained(folder, state_dict=weights)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
        if self.args.should_save:
            Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)
            if coverage := self._coverage():
                coverage.save_lineage(folder, self.args, self.state)

    def _gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """Whole weights under FSDP2 and DeepSpeed, tied ones once; None where Trainer gathers them itself."""
        if self.is_fsdp_enabled:
            return sharded.whole_weights(self.model, kept=self.args.should_save)
        if not (self.is_deepspeed_enabled and isinstance(self.model, PreTrainedModel)):  # adapters are never tied
            return None
        try:
            weights = self.accelerator.get_state_dict(self.model_wrapped)
        except ValueError:  # stage3_gather_16bit_weights_on_model_save is false: Trainer saves the parts
            return None
        tied = sharded.tied_names(self.model)
        return {name: tensor for name, tensor in (weights or {}).items() if name not in tied}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = sharded.whole_state(self.optimizer, kept=self.args.should_save)
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """As HF's, which leaves out weights of a model that has other names on disk (GPT-NeoX)."""
        with loading(resume_from_checkpoint, "the model", self.args.world_size):
            if self.is_fsdp_enabled:
                return sharded.load_weights(self.model, Path(resume_from_checkpoint))
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if self.is_deepspeed_enabled:
                return
            saved, _ = list_tensors(Path(resume_from_checkpoint))
            if isinstance(self.model, PreTrainedModel) and saved.keys() - self.model.state_dict().keys():
                self.model.load_state_dict(load_model(resume_from_checkpoint, device="cpu").state_dict())
            else:
                require_weights(resume_from_checkpoint, self.model, saved.keys())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load moments and schedule position from the checkpoint; keep the recipe's settings."""
        if checkpoint is None:
            return
        with loading(checkpoint, "the state of optimizer and schedule", self.args.world_size):
            load_keeping_settings(
                lambda: self.load_states(checkpoint),
                self.optimizer,
                self.lr_scheduler,
                rate=self.args.learning_rate,
                saved_rate=loaded_state(self.state).learning_rate,
                factor=self.rate_factor,
                warmup=self.args.get_warmup_steps(self.args.max_steps),
            )
            if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                require_optimizer_state(checkpoint, self.optimizer, self.state.global_step)
        # Trainer loads both again later, where a damaged file would be a traceback.
        with loading(checkpoint, "the state of the loss scaler", self.args.world_size):
            if (scaler := Path(checkpoint, SCALER_NAME)).is_file() and getattr(self.accelerator, "scaler", None):
                self.accelerator.scaler.load_state_dict(torch.load(scaler, weights_only=True))
        with loading(checkpoint, "the random state", self.args.world_size):
            require_rng_state(checkpoint, self.args.process_index, self.args.world_size)

    def load_weights(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint into the model."""
        self._load_from_checkpoint(checkpoint)

    def load_states(self, checkpoint: str) -> None:
        """Load the saved states of optimizer and schedule, settings included."""
        if not self.is_fsdp_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        state = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(sharded.cut_state(state, self.optimizer))
        scheduler = torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)

    def release_later_checkpoints(self) -> None:
        """Move later checkpoints away, once the chosen one is loaded or needs no loading."""
        set_aside, self.set_aside = self.set_aside, None
        if set_aside:
            set_aside()


class _Events(TrainerCallback):
    """HF's events that need the trainer itself."""

    def __init__(self, trainer: MyPTTrainer):
        self.trainer = trainer
        self.best: tuple | None = None  # before an evaluation at a step that is not saved

    def on_train_begin(self, args, state, control, **kwargs):
        """Log, evaluate and save as often as the current recipe asks, not as the checkpoint's did."""
        state.compute_steps(args, state.max_steps)
        best = state.best_global_step
        # A resume from a chosen checkpoint moves a later best one away.
        if best and not Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{best}").is_dir():
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        self.best = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.release_later_checkpoints()  # everything is loaded
        self._forget_unsaved_best(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._forget_unsaved_best(state)

    def _forget_unsaved_best(self, state) -> None:
        """Only a step that is also saved can be the best checkpoint."""
        if self.best:
            state.best_metric, state.best_global_step, state.best_model_checkpoint = self.best
            self.best = None

    def on_evaluate(self, args, state, control, **kwargs):
        self.best = self.best or (state.best_metric, state.best_global_step, state.best_model_checkpoint)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check_step()

    def on_save(self, args, state, control, **kwargs):
        self.best = None
        self.trainer.complete_save.finish(state.best_model_checkpoint)
