"""Handle NaN or infinite losses and gradients: stop, skip or roll back."""

import copy
import math
from pathlib import Path

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.checkpoints.complete import last_complete_checkpoint, newest_without_fault
from mypt.checkpoints.state import loaded_state
from mypt.checkpoints.verify import fault_of
from mypt.errors import Diverged, MyPTError, RecipeError
from mypt.hardware.processes import agreed
from mypt.terminal import say
from mypt.training.optim.schedules import scale_rates
from mypt.training.stability.loss_spikes import describe, worst_sample
from mypt.training.stability.step_monitor import StepStats

ACTIONS = ("stop", "skip", "rollback")
MOST_SKIPS = 5  # steps in a row
MOST_ROLLBACKS = 3  # of a run
CUT = 0.5  # factor on the learning rate in each rollback, and where forgetting lowers it


class SafetyCallback(TrainerCallback, ExportableState):
    """Handle a step whose loss or gradient is NaN or infinite, on all processes alike.

    The counts of skips and rollbacks are saved in trainer_state.json. A rollback does not repeat samples: the stream
    and the schedule continue where they were, so that a cooldown ends with the run.

    Args:
        on_nan: `stop`; `skip`: leave out the update, for at most 5 steps in a row; `rollback`: restore weights and
            optimizer state of the last complete checkpoint and halve the learning rate, at most 3 times.
    """

    def __init__(self, on_nan: str = "stop"):
        if on_nan not in ACTIONS:
            raise MyPTError(f"on_nan is {on_nan!r}, expected one of: {', '.join(ACTIONS)}")
        self.on_nan = on_nan
        self.skipped = 0  # in a row
        self.rollbacks = 0

    @property
    def rate_factor(self) -> float:
        """The factor of all rollbacks on the recipe's learning rate."""
        return CUT**self.rollbacks

    def state(self) -> dict:
        return {"args": {}, "attributes": {"skipped": self.skipped, "rollbacks": self.rollbacks}}

    def restore(self, trainer) -> None:
        """Take the counts of a checkpoint; a learning rate that the recipe changes is used without them."""
        state, args = trainer.state, trainer.args
        saved = loaded_state(state)
        counts = saved.safety or {}
        self.skipped, self.rollbacks = counts.get("skipped", 0), counts.get("rollbacks", 0)
        if saved.learning_rate not in (None, args.learning_rate):
            self.rollbacks = 0
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())  # Trainer saves only what it knows
        if self.rollbacks and state.is_world_process_zero:
            rate = args.learning_rate * self.rate_factor
            say(f"learning rate {rate:g}: halved by {self.rollbacks} of {MOST_ROLLBACKS} rollbacks so far")

    def act(self, trainer, stats: StepStats, in_step: bool) -> None:
        """Apply `on_nan`. Raises Diverged to stop.

        in_step: the optimizer has not yet updated the weights by this step's gradient.
        """
        worst = describe(worst_sample(trainer, stats))
        if self.on_nan == "skip" and in_step:
            self._skip(trainer, stats, worst)
        elif self.on_nan == "rollback":
            self._roll_back(trainer, stats, worst, in_step)
        else:
            self._stop(trainer, stats, worst)

    def _stop(self, trainer, stats: StepStats, worst: str, tried: str = "") -> None:
        checkpoint, _ = last_complete_checkpoint(trainer.args.output_dir)
        advice = f"lower training.learning_rate (now {trainer.args.learning_rate * trainer.rate_factor:g})"
        if self.on_nan == "stop":
            advice += " or set safety.on_nan to skip or rollback"
        raise Diverged(
            f"{_what(stats)} in {stats}; {worst}; {tried}"
            + (f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved before")
            + f": {advice}, and run again with --resume"
        )

    def _skip(self, trainer, stats: StepStats, worst: str) -> None:
        self.skipped += 1
        if self.skipped > MOST_SKIPS:
            self._stop(trainer, stats, worst, f"{MOST_SKIPS} steps before it were skipped; ")
        trainer.model.zero_grad()  # sets None; optimizers leave parameters without a gradient as they are
        trainer.note_event(stats.samples[0], {"skipped": _figures(stats)}, f"no update in {stats}; {worst}")

    def _roll_back(self, trainer, stats: StepStats, worst: str, in_step: bool) -> None:
        if self.rollbacks == MOST_ROLLBACKS:
            self._stop(trainer, stats, worst, f"{MOST_ROLLBACKS} rollbacks did not help; ")
        run, first = trainer.args.output_dir, trainer.is_world_process_zero()
        checkpoint: Path | None = agreed(newest_without_fault(run, fault_of)[0] if first else None)
        if checkpoint is None:
            self._stop(trainer, stats, worst, "there is nothing to go back to; ")
        before = trainer.args.learning_rate * trainer.rate_factor
        self.rollbacks += 1
        restore_weights(trainer, checkpoint)
        trainer.model.zero_grad()
        trainer.monitor.forget()
        rate = trainer.args.learning_rate * trainer.rate_factor
        event = {"changes": {"learning_rate": [before, rate]}, "rollback": {"to": checkpoint.name, **_figures(stats)}}
        line = f"back to the weights of {checkpoint} with learning rate {rate:g} after {stats}; {worst}"
        trainer.note_event(trainer.next_sample(in_step), event, line)


def require_lambda_schedule(scheduler, on_nan: str) -> None:
    """Raise RecipeError for a rollback under a schedule that sets the rate by metrics."""
    if on_nan == "rollback" and not isinstance(scheduler, LambdaLR):
        raise RecipeError(
            f"safety.on_nan rollback halves the learning rate, which {type(scheduler).__name__} sets by itself; use "
            "skip or stop, or another schedule"
        )


def restore_weights(trainer, checkpoint: Path) -> None:
    """Load weights and optimizer state of a checkpoint.

    The position in the schedule and the optimizer's settings stay; rates are multiplied by CUT.
    """
    scheduler = trainer.lr_scheduler
    place = copy.deepcopy(scheduler.state_dict())
    settings = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
    trainer.load_weights(str(checkpoint))
    trainer.load_states(str(checkpoint))
    scheduler.load_state_dict(place)
    for group, now in zip(trainer.optimizer.param_groups, settings, strict=True):
        group.update(now)
    scale_rates(scheduler, CUT)


def _what(stats: StepStats) -> str:
    if not stats.batches:
        return "the weights became nan or infinite by the update"
    if math.isfinite(stats.loss):
        return f"the gradient became {stats.grad_norm}"
    return f"the training loss became {stats.loss}"


def _figures(stats: StepStats) -> dict:
    """Figures as text, since JSON has no NaN and no infinity."""
    return {"samples": list(stats.samples), "loss": str(stats.loss), "grad_norm": str(stats.grad_norm)}
