"""The speed that a plan counts with: measured now, recorded by an earlier run on this machine, or assumed."""

from dataclasses import replace
from pathlib import Path

from mypt.errors import MyPTError
from mypt.hardware.machine import Machine
from mypt.hardware.peak import assumption
from mypt.hardware.speeds import identify, recorded_speed
from mypt.planning.parameters import is_measured
from mypt.planning.plan import PlannedRun, plan
from mypt.planning.time import measured_speed
from mypt.training.target import Target

UNKNOWN_STEPS = 1_000  # of a run to measure, where the size of its data is not known


def with_expected_speed(run: PlannedRun, target: Target, machine: Machine, *, here: bool) -> PlannedRun:
    """The run with a speed that was recorded, else with an assumption. here: `machine` is this one, which records."""
    folder = target.recipe.training.get("output_dir") if target.recipe else None
    if here and folder and run.dimensions and not is_measured(run.dimensions):
        identity = identify(machine, run.dimensions, run.step, run.processes)
        if recorded := recorded_speed(Path(folder), identity):
            return replace(run, speed=recorded)
    parameters = plan(run).parameters
    if not parameters:
        return run
    dtype = run.settings.get("compute_dtype") or machine.dtype
    return replace(run, assumption=assumption(machine, dtype, run.processes, parameters["total"]))


def with_measured_speed(run: PlannedRun, target: Target) -> PlannedRun:
    """The run with the speed of real steps of the recipe in one process, with the sizes of the plan.

    Raises:
        MyPTError: There is no recipe, its step does not fit in memory, or `measure` raises it.
    """
    from mypt.training.measured_steps import measure

    if target.recipe is None:
        raise MyPTError("--measure needs a recipe, whose model and data it can train; name one")
    memory = plan(run).memory
    if memory and memory.fits is False:
        raise MyPTError(f"--measure: a step {memory.advice}")
    sizes = {"per_device_train_batch_size": run.batch_size, "gradient_accumulation_steps": run.accumulation}
    training, data = target.recipe.training | sizes, replace(target.recipe.data, tokens_per_step=None)
    measured = measure(replace(target.recipe, training=training, data=data), run.steps or UNKNOWN_STEPS)
    return replace(run, measured=measured, speed=measured_speed(measured, run.processes))
