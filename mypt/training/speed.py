"""The speed that a plan counts with: measured now, recorded by an earlier run on this machine, or assumed."""

from dataclasses import fields, replace
from pathlib import Path

from mypt.errors import MyPTError
from mypt.hardware.machine import Machine
from mypt.hardware.peak import assumption
from mypt.hardware.speeds import identify, recorded_speed
from mypt.planning.parameters import is_measured
from mypt.planning.plan import Plan
from mypt.planning.step import Step
from mypt.planning.time import measured_speed
from mypt.training.target import Target

UNKNOWN_STEPS = 1_000  # of a run to measure, where the size of its data is not known


def expected_speed(target: Target, machine: Machine, settings: dict, found: Plan, *, here: bool) -> dict:
    """Arguments of `mypt.planning.plan.plan` about the speed: one that was recorded, else an assumption.

    Args:
        settings: The other arguments. found: the plan without a speed.
        here: Whether `machine` is this one, whose runs recorded speeds.
    """
    dimensions = settings["dimensions"]
    run = target.recipe.training.get("output_dir") if target.recipe else None
    if here and run and dimensions and not is_measured(dimensions):
        names = {field.name for field in fields(Step)}
        step = Step(
            micro_batch_size=settings["batch_size"], **{name: settings[name] for name in settings if name in names}
        )
        identity = identify(machine, dimensions, step, settings["processes"])
        if recorded := recorded_speed(Path(run), identity):
            return {"speed": recorded}
    if not found.parameters:
        return {}
    dtype = settings.get("compute_dtype") or machine.dtype
    return {"assumption": assumption(machine, dtype, settings["processes"], found.parameters["total"])}


def measured_now(target: Target, settings: dict, found: Plan) -> dict:
    """Arguments of `plan` about the speed of real steps of the recipe in one process, with the sizes of the plan.

    Raises:
        MyPTError: There is no recipe, its step does not fit in memory, or `measure` raises it.
    """
    from mypt.training.measured_steps import measure

    if target.recipe is None:
        raise MyPTError("--measure needs a recipe, whose model and data it can train; name one")
    if found.memory and found.memory.fits is False:
        raise MyPTError(f"--measure: a step {found.memory.advice}")
    sizes = {
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["accumulation"],
    }
    training, data = target.recipe.training | sizes, replace(target.recipe.data, tokens_per_step=None)
    recipe = replace(target.recipe, training=training, data=data)
    measured = measure(recipe, found.training.steps or UNKNOWN_STEPS)
    return {"measured": measured, "speed": measured_speed(measured, settings["processes"])}
