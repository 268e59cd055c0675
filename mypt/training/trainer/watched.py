"""HF Trainer with an eye on every step: signals, losses that are no number, spikes, saves that are whole."""

import math

import torch
from torch.distributed.tensor import DTensor

from mypt.errors import RecipeError
from mypt.terminal import say
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.stability.loss_spikes import SpikeCallback
from mypt.training.stability.safety import SafetyCallback, require_lambda_schedule
from mypt.training.stability.signals import SignalCallback
from mypt.training.stability.step_monitor import Beat, Pulse
from mypt.training.trainer.saving import complete_save
from mypt.training.trainer.sharded import ShardedTrainer


class WatchedTrainer(ShardedTrainer):
    """For any causal LM and data.

    on_nan: what is done about a step without a finite loss and gradient (`SafetyCallback`). A signal ends `train` with
    a checkpoint (`SignalCallback`); spikes.jsonl has the steps whose loss stands out (`SpikeCallback`).
    """

    throughput = None  # a ThroughputCallback, which has to know when a step's batches are fetched

    def __init__(self, *args, on_nan: str = "stop", **kwargs):
        super().__init__(*args, **kwargs)
        self.safety, self.spikes, self.signals = SafetyCallback(on_nan), SpikeCallback(), SignalCallback()
        for callback in (self.safety, self.spikes, self.signals):
            self.add_callback(callback)
        if self.is_deepspeed_enabled and on_nan != "stop":
            raise RecipeError(f"safety.on_nan is {on_nan}, and DeepSpeed updates the weights by itself; use stop")
        # A step whose update may be left out must be known before it: then, and only then, the GPU is waited for.
        late = self.args.device.type == "cuda" and on_nan != "skip"
        self.pulse = Pulse(self.args.world_size, late)

    def train(self, *args, **kwargs):
        """As Trainer's; while it runs, SIGTERM, SIGHUP, SIGINT and SIGUSR1 end it with a checkpoint."""
        with self.signals:
            return super().train(*args, **kwargs)

    def _init_training_state(self, *args):
        progress = super()._init_training_state(*args)
        self.safety.restore(self)
        return progress

    def create_scheduler(self, *args, **kwargs):
        scheduler = super().create_scheduler(*args, **kwargs)
        require_lambda_schedule(scheduler, self.safety.on_nan)
        return scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As Trainer's, and kept: they are what a spike is looked for in."""
        if self.throughput:
            self.throughput.before_batches(self.state)
        self._batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._batches, num_items

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.pulse.add(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The step's gradient is complete and nothing is updated yet: the moment to look at both."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        first = self.next_sample()
        beat = self.pulse.beat(
            # With fp16 an infinite norm is how the scaler finds its scale; it leaves out such an update itself.
            grad_norm if getattr(self.accelerator, "scaler", None) is None else None,
            stop=self.signals.received is not None,
            step=self.state.global_step + 1,
            samples=(first, self.next_sample(in_step=True) - 1),
            batches=self._batches,
        )
        self._look_at(beat, in_step=True)
        return grad_norm

    def _look_at(self, beat: Beat | None, in_step: bool) -> None:
        if beat is None:
            return
        self.signals.stopping |= beat.stop
        if beat.finite:
            self.safety.skipped = 0
            self.spikes.see(self, beat)
        else:
            self.safety.act(self, beat, in_step)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        """Whatever is logged is of steps that are known to be sound, and what is measured or saved of sound weights."""
        keeps = self.control.should_evaluate or self.control.should_save
        if self.control.should_log or keeps:
            self._look_at(self.pulse.flush(), in_step=False)
        if keeps:
            self._look_at_weights()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _look_at_weights(self) -> None:
        """An update may break what a finite gradient did not; the next loss would only show it one step later."""
        own = (p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters() if p.requires_grad)
        sound = torch.stack([torch.isfinite(p).all().to(self.args.device) for p in own]).all().int()
        if self.args.world_size > 1:  # under FSDP2 each process has its part
            torch.distributed.all_reduce(sound, torch.distributed.ReduceOp.MIN)
        if not sound:
            samples = (2 * self.next_sample() - self.next_sample(in_step=True), self.next_sample() - 1)
            lost = Beat(self.state.global_step, samples, math.nan, math.nan, stop=False, batches=[])
            self.safety.act(self, lost, in_step=False)

    def next_sample(self, in_step: bool = False) -> int:
        """The first global sample that is not trained on yet; in_step: behind the step under way."""
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        coverage = self._coverage()
        done = coverage.next_sample if coverage else self.state.global_step * batch
        return done + batch * in_step

    def note_event(self, sample: int, event: dict, line: str) -> None:
        """Record in the ledger what was done to this run, and say it."""
        event = {"sample": sample, "step": self.state.global_step, "changes": {}} | event
        if coverage := self._coverage():
            coverage.changes.append(event)
        if self.is_world_process_zero():
            say(line)

    def _coverage(self) -> CoverageCallback | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, CoverageCallback)), None)

    def forget_log_window(self, in_step: bool) -> None:
        """Begin the mean of the next log line anew: what was summed up is no number."""
        last = self.state.global_step + in_step
        # The run's mean is without these steps, too; transformers 5.17 keeps no such number, and means over all steps.
        if hasattr(self, "_initial_global_step"):
            self._initial_global_step += last - self._globalstep_last_logged
        self._globalstep_last_logged = last
        self._tr_loss.zero_()

    def _save_checkpoint(self, model, trial) -> None:
        """Whole or not at all."""
        with complete_save(self):
            super()._save_checkpoint(model, trial)
