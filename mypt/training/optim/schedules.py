"""The learning rate over a run: a recipe's schedule in HF's terms, and the re-warming after a resume that raises it."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, TrainingArguments, get_scheduler

from mypt.errors import RecipeError, shown
from mypt.recipe import OptimizerSection

AHEAD_ALREADY = (SchedulerType.CONSTANT, SchedulerType.COSINE_WARMUP_WITH_MIN_LR)  # begin above zero
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

    The warm-up goes from f x r to r in a straight line: of w steps step n has r x (f + (1 - f) x n / w). The first
    step after it has p = 0, and p = 1 is where step `steps` + 1 would be. Raises RecipeError for a floor below a
    constant rate.
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


def require_schedule(args: TrainingArguments, steps: int) -> None:
    """Try the schedule of the arguments on one number, before anything is written.

    Raises RecipeError for `lr_scheduler_kwargs` that are missing or unknown, and for rates that are negative, NaN or
    infinite.
    """
    kind, warmup = args.lr_scheduler_type, args.get_warmup_steps(steps)
    named = f"training.lr_scheduler_type {kind.value} with lr_scheduler_kwargs {shown(args.lr_scheduler_kwargs or {})}"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        scheduler = get_scheduler(kind, optimizer, warmup, steps, args.lr_scheduler_kwargs)
        rewarmed(scheduler, kind, warmup)
        places = {0, warmup // 2, warmup, (warmup + steps) // 2, steps - 1, steps}
        curves = getattr(scheduler, "lr_lambdas", [])
        rates = [args.learning_rate * curve(place) for curve in curves for place in sorted(places) if place <= steps]
    except Exception as error:
        words = " ".join(str(error).split())
        raise RecipeError(f"{named} and {warmup:,} of {steps:,} steps of warm-up does not work: {words}") from error
    if wrong := [rate for rate in rates if not 0 <= rate < math.inf]:
        raise RecipeError(f"{named} leads to a learning rate of {wrong[0]:g}; change the arguments")


class RewarmSchedule:
    """A schedule whose first step already learns, and that re-warms where a resume would make it jump up.

    HF's curves begin at zero, so that the first of `warmup` steps would change no weight. Here step n of the warm-up
    has n / `warmup` of the peak, as HF's curve has one step later. The last step of the warm-up has the peak even if no
    step is left for the decay. After the warm-up the curve is HF's.

    torch's LambdaLR saves what such a callable has in its `__dict__`, here `climb` and `first`, so that a later resume
    takes them from the checkpoint. Checkpoints of versions without them continue with the rates that they had.

    Attributes:
        curve: Optimizer step, from 0 on -> share of the learning rate by the current recipe. It is never exceeded.
        warmup: Steps in which the curve is read one step ahead.
        climb: None, or {"step", "share", "steps", "first"}: the step and share at which the re-warming began, its steps
            to the peak, and how many of them its first step makes.
        first: The same for the warm-up; 0 in checkpoints of older versions.
        began: Whether this session began the re-warming.
    """

    __slots__ = ("__dict__", "began", "curve", "warmup")

    def __init__(self, curve: Callable[[int], float], warmup: int = 0):
        self.curve, self.warmup = curve, warmup
        self.began = False
        self.climb: dict | None = None
        self.first = 1

    def __call__(self, step: int) -> float:
        ahead = self.first if step < self.warmup else 0
        share = self.curve(step + ahead)
        if ahead and step + 1 == self.warmup and share < 1 - 1e-9:  # the run, or the decay, ends with the warm-up
            share = 1.0
        if self.climb is None:
            return share
        start, made = self.climb["share"], step - self.climb["step"] + self.climb.get("first", 0)
        return min(share, start + (1 - start) * made / self.climb["steps"]) if made < self.climb["steps"] else share

    def resume(self, step: int, share: float, steps: int) -> None:
        """Re-warm over `steps` steps from `step` on, if `share`, the one of the last session, was smaller than now."""
        if steps and self(step) > share * (1 + 1e-6):
            self.began, self.climb = True, {"step": step, "share": share, "steps": steps, "first": 1}


def rewarmed(scheduler: LRScheduler, kind: SchedulerType, warmup: int) -> LRScheduler:
    """HF's scheduler of this kind with its curves as `RewarmSchedule`; its optimizer gets the first step's rate.

    A scheduler that sets the rate by metrics is returned unchanged.
    """
    if isinstance(scheduler, LambdaLR):
        warmup = 0 if kind in AHEAD_ALREADY else warmup
        scheduler.lr_lambdas = [RewarmSchedule(curve, warmup) for curve in scheduler.lr_lambdas]
        set_rates(scheduler)
    return scheduler


def set_rates(scheduler: LambdaLR) -> None:
    """Set each parameter group's rate at the scheduler's position, after its curves or its peaks have changed."""
    for group, peak, curve in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group.update(initial_lr=peak, lr=peak * curve(scheduler.last_epoch))
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def scale_rates(scheduler: LambdaLR, factor: float) -> None:
    """Multiply the rates of all parameter groups, now and for the rest of the schedule."""
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    for group in scheduler.optimizer.param_groups:
        group.update(lr=group["lr"] * factor, initial_lr=group["initial_lr"] * factor)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def rewarm_of(scheduler) -> dict | None:
    """The re-warming that this session began, if there is one."""
    curve = next(iter(getattr(scheduler, "lr_lambdas", [])), None)
    return curve.climb if getattr(curve, "began", False) else None


def load_keeping_settings(
    load: Callable[[], None],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    rate: float,
    saved_rate: float | None,
    factor: float,
    warmup: int,
) -> None:
    """Take moments and the position in the schedule from a checkpoint, the settings from the recipe.

    Args:
        load: Loads the saved states into `optimizer` and `scheduler`, settings included.
        optimizer, scheduler: As the recipe describes them now.
        rate: The recipe's learning rate.
        saved_rate: The one that the checkpoint was trained with, if it is known.
        factor: The factor of all rollbacks on the learning rate.
        warmup: Steps over which a rate that would jump up re-warms.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if not isinstance(scheduler, LambdaLR):  # it sets the rate by metrics
        load()
        for group, fresh in zip(optimizer.param_groups, settings, strict=True):
            group.update(fresh, lr=group["lr"] * rate / (saved_rate or rate))
        return
    peaks = [peak * factor for peak in scheduler.base_lrs]
    for curve in scheduler.lr_lambdas:
        curve.first = 0  # unless the checkpoint has it otherwise: see `RewarmSchedule`
    load()
    position, before = scheduler.last_epoch, zip(scheduler.get_last_lr(), scheduler.base_lrs, strict=True)
    scheduler.base_lrs = peaks
    groups = zip(optimizer.param_groups, settings, scheduler.lr_lambdas, before, strict=True)
    for group, fresh, curve, (had, peak) in groups:
        if peak:
            curve.resume(position, had / peak, warmup)
        group.update(fresh)
    set_rates(scheduler)
