"""`mypt plan`: what a recipe, a preset or a checkpoint will cost and be worth, before any compute is spent."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.cli.ladder import with_ladder
from mypt.cli.numbers import byte_count, count, finite
from mypt.cli.replay import add_replay_options, planned_probes, print_advice, run_probes
from mypt.errors import CheckFailed, MyPTError, shown
from mypt.hardware.devices import HERE, machine_like
from mypt.hardware.machine import Machine, other_machine
from mypt.planning.step import BYTES, MICRO_BATCH, OWN_OPTIMIZERS, Step
from mypt.terminal import print_table, say, say_json
from mypt.training.target import DEFAULT_BLOCK, Target, is_recipe, planned_run, read_target

if TYPE_CHECKING:
    from mypt.planning.plan import Plan, PlannedRun

HELP = "show coverage, memory and compute of a run before it starts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", nargs="?", help="a recipe, the name of a preset, or a folder with a config.json; or none")
    add("--tokens", type=count, help="size of the dataset in tokens (500_000_000, 5e8, 500M), instead of the recipe's")
    add("--params", type=count, help="parameters of the model (124M), where no model is named")
    add("--block-size", type=count, help=f"tokens per sequence (default: the model's, else {DEFAULT_BLOCK})")
    add("--batch-size", type=count, help=f"sequences per process and pass (default: the recipe's, else {MICRO_BATCH})")
    add("--accumulation", type=count, help="passes per step (default: the recipe's, else 1)")
    add("--processes", type=count, help="processes, one per device (default: WORLD_SIZE, else 1)")
    steps = "optimizer steps (default: the recipe's, else 3.5 passes over the data); several are compared: 500,1000"
    add("--steps", type=counts, metavar="N[,N...]", help=steps)
    add("--compare", type=names, metavar="PRESET[,...]", help="plan the same run with these presets, side by side")
    optimizer = "optimizer (default: the recipe's, else by Muon's share of a step)"
    add("--optimizer", choices=OWN_OPTIMIZERS, help=optimizer)
    dtype = "dtype of matrix products (default: the recipe's, else bfloat16 where this machine has it)"
    add("--dtype", choices=BYTES, help=dtype)
    add("--checkpointing", action="store_true", default=None, help="compute the layers again in the backward pass")
    add("--lora-r", type=count, help="for the memory: adapters of this rank on frozen weights (default: the recipe's)")
    add("--fsdp", type=count, help="devices that share weights, gradients and states (full shard) (default: 1)")
    memory = "memory of a GPU in bytes (24G: GiB) (default: this machine's GPU or main memory)"
    add("--memory", type=byte_count, help=memory)
    add("--device", metavar="NAME", help="plan for this device: h100, a100, 4090, l4, t4, mps, cpu ... (default: here)")
    add("--price", type=_price, help="of one device for one hour, to plan the cost")
    add("--measure", action="store_true", help="take a few real steps of the recipe on this machine, for the time")
    add("--tokens-per-second", type=count, help="a measured rate over all processes, to estimate the time")
    add("--plot", type=Path, metavar="FILE.png", help="draw coverage and effective data against steps")
    ladder = "predict the loss by the law of this ladder (default: the one at training.output_dir with -ladder added)"
    add("--ladder", type=Path, metavar="DIR", help=ladder)
    add_replay_options(add)
    add("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def counts(text: str) -> list[int]:
    """500,1_000,2k as whole numbers."""
    return [count(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """The words between commas. Raises ArgumentTypeError for an empty one."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{shown(text)} has an empty name, expected names such as tiny,small")
    return found


def run(args: argparse.Namespace) -> None:
    from mypt.planning.plan import as_dict

    _require_measurable(args)
    found, planned = _compared(args, _machine(args))
    probes = planned_probes(args, planned, found)
    drawn = _draw(found, args.plot) if args.plot else None
    if args.json:
        say_json(found.as_dict() | ({"replay": as_dict(run_probes(probes))} if probes else {}))
    else:
        _print(found, planned, drawn)
    _require_works(found)
    if probes and not args.json:
        print_advice(probes)


def _print(found: Plan, planned: PlannedRun, drawn: str | None) -> None:
    """Print the checks first, then the figures; drawn: a line about a picture."""
    from mypt.planning.coverage_report import coverage_lines
    from mypt.planning.plan_report import alternatives_table, measured_lines, plan_tables, verdict_lines

    say(*verdict_lines(found))
    if found.alternatives:
        say()
        print_table(*alternatives_table(found.alternatives))
    say()
    if drawn:
        say(drawn)
    for note in found.notes:
        say(f"note: {note}")
    for name, choice in found.choices.items():
        say(f"{name}: {choice.value} ({choice.reason})")
    if found.training.steps:
        say(f"{found.training.steps:,} steps: {found.reason}")
    if found.evaluation:
        say(found.evaluation)
    if found.coverage:
        layout = {"batch": planned.batch_size, "block": planned.block_size}
        layout |= {"accumulation": planned.accumulation, "processes": planned.processes}
        say(*coverage_lines(found.coverage, layout, found.ladder))
    for table in plan_tables(found):
        say()
        print_table(*table)
    if found.measured:
        say("", *measured_lines(found.measured))


def _require_works(found: Plan) -> None:
    from mypt.planning.checks import FAILED

    if not found.works:
        failed = ", ".join(check.name for check in found.checks if check.level == FAILED)
        raise CheckFailed(f"this run cannot work as it is planned ({failed}); the first lines name the changes")


def _compared(args: argparse.Namespace, machine: Machine) -> tuple[Plan, PlannedRun]:
    """The plan, with its alternatives if options ask for them, and the run that it is of."""
    from mypt.planning.plan import alternative

    steps, presets = args.steps or [None], list(args.compare or [])
    if len(steps) > 1 and presets:
        raise MyPTError("--compare and several --steps: compare one of the two at a time")
    if presets and not args.target:
        args.target = presets.pop(0)
        own = args.target
    else:
        own = "this run"
    if args.measure and not args.json:
        say(f"measuring a few steps of {args.target}")
    found, planned = _planned(args, machine, steps[0], is_first=True)
    if len(steps) == 1 and not args.compare:
        return found, planned
    if presets and planned.init_from:
        raise MyPTError(f"--compare plans presets, and {args.target} starts from {planned.init_from}")
    rows = [alternative(f"{steps[0]:,} steps" if steps[0] else own, found)]
    rows += [alternative(f"{count:,} steps", _planned(args, machine, count, same=planned)[0]) for count in steps[1:]]
    rows += [alternative(name, _planned(args, machine, steps[0], name)[0]) for name in presets]
    return replace(found, alternatives=rows), planned


def _planned(
    args: argparse.Namespace,
    machine: Machine,
    steps: int | None,
    preset: str | None = None,
    *,
    is_first: bool = False,
    same: PlannedRun | None = None,
) -> tuple[Plan, PlannedRun]:
    """The plan with a number of steps and the preset in the place of the target's, and the run that it is of.

    A speed that was given or is measured is the target's alone. is_first: measure if it is asked for, and compare the
    text of evaluation sets with that of the training data. same: a run of the same speed.
    """
    from mypt.planning.plan import plan
    from mypt.training.speed import with_expected_speed, with_measured_speed

    target = _target(args, machine, preset)
    found = _run(args, machine, target)
    length, reason = _steps(steps, found, target.steps)
    found = replace(found, steps=length, reason=reason, shared_text=target.shared_text() if is_first else {})
    if preset:
        found = replace(found, tokens_per_second=None)
    if same:
        found = replace(found, speed=same.speed, assumption=same.assumption)
    elif is_first and args.measure:
        found = with_measured_speed(found, target)
    else:
        found = with_expected_speed(found, target, machine, here=not (args.memory or args.device))
    return with_ladder(plan(found), target, args.ladder), found


def _draw(found: Plan, path: Path) -> str:
    """Draw the plan's curve; a line about the picture. Raises MyPTError where there is none to draw."""
    from mypt.planning.coverage_report import draw_coverage

    if path.suffix.lower() != ".png":
        raise MyPTError(f"--plot {path}: expected a name that ends in .png")
    if not found.coverage:
        raise MyPTError("--plot needs the size of the data: give --tokens")
    if not draw_coverage(found.coverage, path):
        raise MyPTError("--plot needs matplotlib: pip install mypt[plots]")
    return f"picture: {path}"


def _run(args: argparse.Namespace, machine: Machine, target: Target) -> PlannedRun:
    """All that is planned but the number of steps and the speed."""
    from mypt.planning.verdict import DataSource

    if args.params and target.dimensions:
        raise MyPTError(f"--params {args.params:,}: {args.target} has a number of parameters already; leave one out")
    found = planned_run(target, machine, given=given_step(args), processes=args.processes or _world_size())
    if args.tokens:
        found = replace(found, sources=[DataSource("data", args.tokens)], text=0)
    unknown = "the size of the data is not known: give --tokens to plan coverage"
    return replace(
        found,
        parameters=args.params,
        tokens_per_second=args.tokens_per_second,
        device_name="" if args.memory else machine.model if args.device else machine.name,
        price=args.price,
        target=args.target,
        notes=found.notes if found.sources else [*found.notes, unknown],
    )


def _machine(args: argparse.Namespace) -> Machine:
    """The machine that is planned for; --memory wins over what a device has."""
    if not args.device:
        return other_machine(args.memory, None)
    if args.device == HERE:
        return other_machine(args.memory, HERE)
    machine = machine_like(args.device)
    return replace(machine, memory=args.memory, free=args.memory) if args.memory else machine


def _require_measurable(args: argparse.Namespace) -> None:
    """Raise MyPTError for options that are of another run than the recipe's, or of another machine."""
    if not args.measure:
        return
    names = ("tokens", "params", "optimizer", "dtype", "checkpointing", "lora_r", "fsdp", "memory", "device",
             "tokens_per_second")  # fmt: skip
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if given:
        raise MyPTError(
            f"--measure runs the recipe itself on this machine: leave out {', '.join(given)}; --section.key=value "
            "changes the recipe"
        )


def _price(text: str) -> float:
    price = finite(text)
    if not 0 <= price < 2**63:
        raise argparse.ArgumentTypeError(f"{shown(text)} is below 0 or no price of an hour")
    return price


def given_step(args: argparse.Namespace) -> dict:
    """The fields of `Step` that options give, of this command or of `mypt estimate`, which has more of them."""
    named = {"micro_batch_size": "batch_size", "compute_dtype": "dtype", "weight_dtype": "weights"}
    given = {field.name: getattr(args, named.get(field.name, field.name), None) for field in fields(Step)}
    if args.lora_r and not args.optimizer:
        given["optimizer"] = "adamw"
    return {name: value for name, value in given.items() if value is not None}


def _target(args: argparse.Namespace, machine: Machine, preset: str | None = None) -> Target:
    """preset: in the place of the target's."""
    if args.target:
        target, overrides = args.target, args.overrides
        if preset and is_recipe(target):
            overrides = [*overrides, f"--model.preset={preset}"]
        elif preset:
            target = preset
        processes = args.processes or _world_size()
        given, elsewhere = given_step(args), bool(args.device)
        return read_target(target, overrides, machine, given=given, processes=processes, elsewhere=elsewhere)
    if args.overrides:
        raise MyPTError(f"unrecognized arguments: {' '.join(args.overrides)}; only a recipe has keys to change")
    if not (args.tokens or args.params):
        raise MyPTError("nothing to plan: name a recipe, a preset or a checkpoint, or give --tokens and --params")
    return Target()


def _steps(given: int | None, found: PlannedRun, recipe_steps: dict) -> tuple[int | None, str | None]:
    """The rule by which training decides, too; None where the size of the data is needed and not known."""
    from mypt.planning.coverage import planned_steps
    from mypt.streams.mixture import epoch_size

    if given:
        return given, "--steps"
    if not found.sources:
        steps = recipe_steps.get("max_steps")
        return (steps, "training.max_steps") if isinstance(steps, int) and steps > 0 else (None, None)
    samples, tokens = epoch_size(found.sources, found.block_size)
    return planned_steps(
        recipe_steps.get("max_steps"),
        recipe_steps.get("num_train_epochs"),
        recipe_steps.get("coverage_target"),
        samples,
        tokens,
        found.sequences,
        found.block_size,
    )


def _world_size() -> int:
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdigit() or int(value) < 1:
        raise MyPTError(f"WORLD_SIZE is {value!r}, expected a whole number; unset it or pass --processes")
    return int(value)
