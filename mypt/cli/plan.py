"""`mypt plan`: what a recipe, a preset or a checkpoint will cost and be worth, before any compute is spent."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.cli.numbers import byte_count, count
from mypt.errors import CheckFailed, MyPTError, shown
from mypt.hardware.machine import Machine, other_machine
from mypt.planning.parameters import with_positions
from mypt.planning.step import BYTES, MICRO_BATCH, OWN_OPTIMIZERS, Step
from mypt.terminal import print_table, say, say_json
from mypt.training.target import DEFAULT_BLOCK, Target, is_recipe, read_target

if TYPE_CHECKING:
    from mypt.planning.plan import Plan

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
    add("--tokens-per-second", type=count, help="a measured rate over all processes, to estimate the time")
    add("--plot", type=Path, metavar="FILE.png", help="draw coverage and effective data against steps")
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
    from mypt.planning.report import alternatives_table, coverage_lines, plan_tables, verdict_lines

    found, settings = _compared(args, other_machine(args.memory, None))
    drawn = _draw(found, args.plot) if args.plot else None
    if args.json:
        say_json(found.as_dict())
        _require_works(found)
        return
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
        layout = {
            name.removesuffix("_size"): settings[name]
            for name in ("batch_size", "block_size", "accumulation", "processes")
        }
        say(*coverage_lines(found.coverage, layout))
    for table in plan_tables(found):
        say()
        print_table(*table)
    _require_works(found)


def _require_works(found: Plan) -> None:
    from mypt.planning.checks import FAILED

    if not found.works:
        failed = ", ".join(check.name for check in found.checks if check.level == FAILED)
        raise CheckFailed(f"this run cannot work as it is planned ({failed}); the first lines say what to change")


def _compared(args: argparse.Namespace, machine: Machine) -> tuple[Plan, dict]:
    """The plan, with its alternatives if options ask for them, and its settings."""
    from mypt.planning.plan import alternative

    steps, presets = args.steps or [None], list(args.compare or [])
    if len(steps) > 1 and presets:
        raise MyPTError("--compare and several --steps: compare one of the two at a time")
    if presets and not args.target:
        args.target = presets.pop(0)
        own = args.target
    else:
        own = "this run"
    found, settings = _planned(args, machine, steps[0], reading=True)
    if len(steps) == 1 and not args.compare:
        return found, settings
    if presets and settings["init_from"]:
        raise MyPTError(f"--compare plans presets, and {args.target} starts from {settings['init_from']}")
    rows = [alternative(f"{steps[0]:,} steps" if steps[0] else own, found)]
    rows += [alternative(f"{count:,} steps", _planned(args, machine, count)[0]) for count in steps[1:]]
    rows += [alternative(name, _planned(args, machine, steps[0], name)[0]) for name in presets]
    return replace(found, alternatives=rows), settings


def _planned(
    args: argparse.Namespace, machine: Machine, steps: int | None, preset: str | None = None, reading: bool = False
) -> tuple[Plan, dict]:
    """The plan with a number of steps and the preset in the place of the target's, and its settings.

    A speed that was measured is the target's alone. reading: compare the text of evaluation sets with that of the
    training data.
    """
    from mypt.planning.plan import plan

    target = _target(args, machine, preset)
    settings = _settings(args, machine, target)
    settings["steps"], settings["reason"] = _steps(steps, settings, target.steps)
    if preset:
        settings["tokens_per_second"] = None
    settings["shared_text"] = target.shared_text() if reading else {}
    return plan(**settings), settings


def _draw(found: Plan, path: Path) -> str:
    """Draw the plan's curve; a line about the picture. Raises MyPTError where there is none to draw."""
    from mypt.planning.curve import draw_coverage

    if path.suffix.lower() != ".png":
        raise MyPTError(f"--plot {path}: expected a name that ends in .png")
    if not found.coverage:
        raise MyPTError("--plot needs the size of the data: give --tokens")
    if not draw_coverage(found.coverage, path):
        raise MyPTError("--plot needs matplotlib: pip install mypt[plots]")
    return f"picture: {path}"


def _settings(args: argparse.Namespace, machine: Machine, target: Target) -> dict:
    """Arguments of `plan`, but the number of steps."""
    from mypt.planning.verdict import DataSource

    notes, dimensions = [*target.notes], target.dimensions
    if args.params and dimensions:
        raise MyPTError(f"--params {args.params:,}: {args.target} has a number of parameters already; leave one out")
    step = {"accumulation": 1} | target.settings | given_step(args)
    for name, option, default in (
        ("micro_batch_size", "--batch-size", MICRO_BATCH),
        ("block_size", "--block-size", DEFAULT_BLOCK),
    ):
        if name not in step:
            step[name] = default
            notes.append(f"no {option} given: {default} assumed")
    if dimensions:
        longer = with_positions(dimensions, step["block_size"])
        if longer is not dimensions:
            limit, block_size = dimensions["max_position_embeddings"], step["block_size"]
            notes.append(f"the model has {limit:,} positions, fewer than the block size: planned with {block_size:,}")
        dimensions = longer
    sources = [DataSource("data", args.tokens)] if args.tokens else target.sources
    if not sources:
        notes.append("the size of the data is not known: give --tokens to plan coverage")
    step |= {"batch_size": step.pop("micro_batch_size"), "device": machine.device}
    return step | {"processes": args.processes or _world_size(), "sources": sources, "dimensions": dimensions,
                   "parameters": args.params, "tokens_per_second": args.tokens_per_second,
                   "available": machine.memory,
                   "device_name": "" if args.memory else machine.name, "flags": target.flags,
                   "evaluation": target.evaluation, "eval_sets": target.eval_sets, "saving": target.saving,
                   "init_from": target.init_from, "smaller": target.smaller,
                   "target": args.target, "notes": notes, "choices": target.choices}  # fmt: skip


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
        return read_target(target, overrides, machine, given=given_step(args), processes=processes)
    if args.overrides:
        raise MyPTError(f"unrecognized arguments: {' '.join(args.overrides)}; only a recipe has keys to change")
    if not (args.tokens or args.params):
        raise MyPTError("nothing to plan: name a recipe, a preset or a checkpoint, or give --tokens and --params")
    return Target()


def _steps(given: int | None, settings: dict, recipe_steps: dict) -> tuple[int | None, str | None]:
    """The rule by which training decides, too; None where the size of the data is needed and not known."""
    from mypt.planning.coverage import planned_steps

    if given:
        return given, "--steps"
    sources = settings["sources"]
    if not sources:
        steps = recipe_steps.get("max_steps")
        return (steps, "training.max_steps") if isinstance(steps, int) and steps > 0 else (None, None)
    samples, tokens = _epoch(sources, settings["block_size"])
    return planned_steps(
        recipe_steps.get("max_steps"),
        recipe_steps.get("num_train_epochs"),
        recipe_steps.get("coverage_target"),
        samples,
        tokens,
        settings["batch_size"] * settings["accumulation"] * settings["processes"],
        settings["block_size"],
    )


def _epoch(sources: list, block_size: int) -> tuple[int, int]:
    """Samples and tokens of the whole mixture in which its main source is seen once, as `ShardStream` counts them."""
    from mypt.streams.mixture import PERIOD, Mixture
    from mypt.streams.windows import window_count

    weights = [source.weight for source in sources]
    main = weights.index(max(weights))
    mixture, tokens = Mixture(weights), sources[main].tokens
    windows = window_count(tokens, block_size) if tokens > block_size else 1  # fewer tokens: a check of the plan fails
    samples = -(-windows * PERIOD // mixture.counts[main])
    return samples, round(tokens / mixture.shares[main])


def _world_size() -> int:
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdigit() or int(value) < 1:
        raise MyPTError(f"WORLD_SIZE is {value!r}, expected a whole number; unset it or pass --processes")
    return int(value)
