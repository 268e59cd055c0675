"""The learning rate over a run: a recipe's schedule in HF's terms, and the climb where a resume would make it jump."""

import math
from collections.abc import Callable

from mypt.errors import RecipeError
from mypt.recipe import OptimizerSection

REWARM_FLOOR = 0.1  # the share of the peak at which the runs of Ibrahim et al. 2024 (2403.08763) end and begin again


def warmup_length(given: float, steps: int) -> int:
    """Steps of a warm-up given as a number of steps, or below 1 as a share of the run's `steps`, rounded up.

    Raises RecipeError for a negative number, and for one above 1 that is not whole.
    """
    if not (0 <= given < math.inf and (given < 1 or given == int(given))):
        raise RecipeError(
            f"training.warmup_steps is {given}, expected a whole number of steps, or a share of all steps below 1"
        )
    return int(given) if given >= 1 else math.ceil(steps * given)


def schedule_arguments(section: OptimizerSection, steps: int, warmup: int) -> dict:
    """`lr_scheduler_type` and `lr_scheduler_kwargs` of TrainingArguments for a run of `steps` steps.

    With r the learning rate, c the share of `cooldown`, f the floor and p from 0 to 1 over the decay, the rate is
    r x (f + (1 - f) x g) after the warm-up, where g is

        wsd       1, in the last c x steps 1 - sqrt(p)     (Hägele et al. 2024, 2405.18392)
        linear    1 - p
        cosine    (1 + cos(pi p)) / 2
        rewarm    as cosine, f is 0.1 unless given         (Ibrahim et al. 2024, 2403.08763)
        constant  1, and there is no floor

    The warm-up goes from f x r to r in a straight line. Raises RecipeError for a floor below a constant rate.
    """
    name, floor = section.schedule, section.floor
    if floor is None:
        floor = REWARM_FLOOR if name == "rewarm" else 0.0
    if name == "constant":
        if floor:
            raise RecipeError(f"optimizer.floor {floor:g} has no meaning for the schedule constant: leave it out")
        return {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {}}
    shape, decay = "linear" if name == "linear" else "cosine", max(1, steps - warmup)
    if name == "wsd":
        shape, decay = "1-sqrt", min(max(1, math.floor(steps * section.cooldown)), decay)
    elif not floor:
        return {"lr_scheduler_type": shape, "lr_scheduler_kwargs": {}}
    return {
        "lr_scheduler_type": "warmup_stable_decay",  # HF's only one that has a floor for every shape
        "lr_scheduler_kwargs": {"num_decay_steps": decay, "decay_type": shape}
        | ({"min_lr_ratio": floor} if floor else {}),
    }


class Climbing:
    """A schedule that does not jump up where a resume changes it, but climbs as in a warm-up.

    curve: optimizer step -> share of the learning rate, as the recipe has it now. climb: None, or {"step", "share",
    "steps"}: where the climb began, from what share, and how many steps it takes to the peak; the curve is never
    exceeded. torch's LambdaLR saves the attributes in `__dict__` of such a callable: of this one the climb, so that a
    later resume takes it from the checkpoint.
    """

    __slots__ = ("__dict__", "curve")

    def __init__(self, curve: Callable[[int], float]):
        self.curve = curve
        self.climb: dict | None = None

    def __call__(self, step: int) -> float:
        share = self.curve(step)
        if self.climb is None or step >= self.climb["step"] + self.climb["steps"]:
            return share
        start = self.climb["share"]
        return min(share, start + (1 - start) * (step - self.climb["step"]) / self.climb["steps"])

    def go_on(self, step: int, share: float, steps: int) -> None:
        """Begin a climb of `steps` steps at `step`, if the rate there was a smaller share than it would be now."""
        if steps and self(step) > share * (1 + 1e-6):
            self.climb = {"step": step, "share": share, "steps": steps}


def climb_of(scheduler) -> dict | None:
    """The climb that begins at the step that an LR scheduler stands at, if there is one."""
    climb = getattr(next(iter(getattr(scheduler, "lr_lambdas", [])), None), "climb", None)
    return climb if climb and climb["step"] == scheduler.last_epoch else None
