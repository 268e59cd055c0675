"""Handle NaN or infinite losses and gradients: stop, skip or roll back."""

import copy
import math
from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.checkpoints.complete import last_complete_checkpoint, newest_without_fault
from mypt.checkpoints.verify import fault_of
from mypt.errors import Diverged, MyPTError, RecipeError
from mypt.terminal import say
from mypt.training.stability.loss_spikes import describe, worst_sample
from mypt.training.stability.step_monitor import StepStats

ACTIONS = ("stop", "skip", "rollback")
MOST_SKIPS = 5  # steps in a row
MOST_ROLLBACKS = 3  # of a run
CUT = 0.5  # what a rollback does to the learning rate


class SafetyCallback(TrainerCallback, ExportableState):
    """Holds to one of three answers, on all processes alike; counts what it did in trainer_state.json.

    on_nan: `stop`; `skip`: the update of that step is left out, at most 5 in a row; `rollback`: weights and
    optimizer state of the last complete checkpoint come back with half the learning rate, at most 3 times. The samples
    are never gone back to, and the schedule's shape stays with them, so that a cooldown ends with the run.
    """

    def __init__(self, on_nan: str = "stop"):
        if on_nan not in ACTIONS:
            raise MyPTError(f"on_nan is {on_nan!r}, expected one of: {', '.join(ACTIONS)}")
        self.on_nan = on_nan
        self.skipped = 0  # in a row
        self.rollbacks = 0

    @property
    def rate_factor(self) -> float:
        """What the learning rate of the recipe is multiplied with."""
        return CUT**self.rollbacks

    def state(self) -> dict:
        return {"args": {}, "attributes": {"skipped": self.skipped, "rollbacks": self.rollbacks}}

    def restore(self, trainer) -> None:
        """Take the counts of a checkpoint; a learning rate that was changed by hand holds as it is given."""
        state, args = trainer.state, trainer.args
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {"args": {}, "attributes": {}})["attributes"]
        self.skipped, self.rollbacks = saved.get("skipped", 0), saved.get("rollbacks", 0)
        coverage = state.stateful_callbacks.get("CoverageCallback", {}).get("attributes", {})
        if coverage.get("settings", {}).get("learning_rate", args.learning_rate) != args.learning_rate:
            self.rollbacks = 0
        if self.rollbacks and state.is_world_process_zero:
            rate = args.learning_rate * self.rate_factor
            say(f"learning rate {rate:g}: halved by {self.rollbacks} of {MOST_ROLLBACKS} rollbacks so far")

    def act(self, trainer, stats: StepStats, in_step: bool) -> None:
        """in_step: the gradient of a step is there and its update is not yet made. Raises MyPTError to stop."""
        worst = describe(worst_sample(trainer, stats))
        if self.on_nan == "skip" and in_step:
            self._skip(trainer, stats, worst)
        elif self.on_nan == "rollback":
            self._roll_back(trainer, stats, worst, in_step)
        else:
            self._stop(trainer, stats, worst)

    def _stop(self, trainer, stats: StepStats, worst: str, tried: str = "") -> None:
        checkpoint, _ = last_complete_checkpoint(trainer.args.output_dir)
        advice = f"lower training.learning_rate (now {trainer.args.learning_rate * self.rate_factor:g})"
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
        trainer.model.zero_grad()  # to None, and no optimizer touches a parameter without a gradient
        trainer.note_event(stats.samples[0], {"skipped": _figures(stats)}, f"no update in {stats}; {worst}")

    def _roll_back(self, trainer, stats: StepStats, worst: str, in_step: bool) -> None:
        if self.rollbacks == MOST_ROLLBACKS:
            self._stop(trainer, stats, worst, f"{MOST_ROLLBACKS} rollbacks did not help; ")
        run, first = trainer.args.output_dir, trainer.is_world_process_zero()
        found = [newest_without_fault(run, fault_of)[0] if first else None]
        checkpoint: Path | None = broadcast_object_list(found)[0]
        if checkpoint is None:
            self._stop(trainer, stats, worst, "there is nothing to go back to; ")
        before = trainer.args.learning_rate * self.rate_factor
        self.rollbacks += 1
        restore_weights(trainer, checkpoint, CUT)
        trainer.model.zero_grad()
        trainer.monitor.forget()
        rate = trainer.args.learning_rate * self.rate_factor
        event = {"changes": {"learning_rate": [before, rate]}, "rollback": {"to": checkpoint.name, **_figures(stats)}}
        line = f"back to the weights of {checkpoint} with learning rate {rate:g} after {stats}; {worst}"
        trainer.note_event(trainer.next_sample(in_step), event, line)


def require_lambda_schedule(scheduler, on_nan: str) -> None:
    """Raises RecipeError for a rollback under a schedule that sets the rate by what it sees."""
    if on_nan == "rollback" and not isinstance(scheduler, LambdaLR):
        raise RecipeError(
            f"safety.on_nan rollback halves the learning rate, which {type(scheduler).__name__} sets by itself; use "
            "skip or stop, or another schedule"
        )


def restore_weights(trainer, checkpoint: Path, cut: float) -> None:
    """Weights and optimizer state of a checkpoint.

    The place in the schedule and the optimizer's settings stay, rates are multiplied by `cut`.
    """
    scheduler = trainer.lr_scheduler
    place = copy.deepcopy(scheduler.state_dict())
    settings = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
    trainer.load_weights(str(checkpoint))
    trainer.load_states(str(checkpoint))
    scheduler.load_state_dict(place)
    scheduler.base_lrs = [rate * cut for rate in scheduler.base_lrs]
    for group, now in zip(trainer.optimizer.param_groups, settings, strict=True):
        group.update(now, lr=now["lr"] * cut, initial_lr=now["initial_lr"] * cut)
    scheduler._last_lr = [group["lr"] for group in trainer.optimizer.param_groups]


def _what(stats: StepStats) -> str:
    if not stats.batches:
        return "the weights became nan or infinite by the update"
    if math.isfinite(stats.loss):
        return f"the gradient became {stats.grad_norm}"
    return f"the training loss became {stats.loss}"


def _figures(stats: StepStats) -> dict:
    """For JSON, which has no NaN and no infinity."""
    return {"samples": list(stats.samples), "loss": str(stats.loss), "grad_norm": str(stats.grad_norm)}
