"""`mypt plan`: what a recipe, a preset or a checkpoint will cost and be worth, before any compute is spent."""

import argparse
import os
from dataclasses import fields, replace

from mypt.cli.numbers import byte_count, count, finite
from mypt.errors import MyPTError, shown
from mypt.hardware.devices import HERE, machine_like
from mypt.hardware.machine import Machine, other_machine
from mypt.planning.parameters import with_positions
from mypt.planning.step import BYTES, MICRO_BATCH, OWN_OPTIMIZERS, Step
from mypt.terminal import print_table, say, say_json
from mypt.training.target import DEFAULT_BLOCK, Target, read_target

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
    add("--steps", type=count, help="optimizer steps (default: the recipe's, else 3.5 passes over the data)")
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
    add("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def run(args: argparse.Namespace) -> None:
    from mypt.planning.plan import plan
    from mypt.planning.report import coverage_lines, measured_lines, plan_tables, time_lines
    from mypt.training.speed import expected_speed, measured_now

    _require_measurable(args)
    machine = _machine(args)
    target = _target(args, machine)
    settings = _settings(args, machine, target)
    settings["steps"], settings["reason"] = _steps(args, settings, target.steps)
    found = plan(**settings)
    here = not (args.memory or args.device)
    if args.measure and not args.json:
        say(f"measuring a few steps of {args.target}")
    speed = (
        measured_now(target, settings, found)
        if args.measure
        else expected_speed(target, machine, settings, found, here=here)
    )
    found = plan(**settings, **speed)
    if args.json:
        say_json(found.as_dict())
        return
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
    if found.measured:
        say("", *measured_lines(found.measured))
    if found.time:
        say("", *time_lines(found.time))
    if found.memory and found.memory.advice:
        where = "" if args.memory else f" ({machine.name}; --memory for another GPU)"
        where = f" ({machine.model})" if args.device and not args.memory else where
        say("", f"Memory{where}: {found.memory.advice}")
    if found.training.compute_optimal_tokens and not found.coverage:
        say("", f"Compute-optimal training data: about {found.training.compute_optimal_tokens:,} tokens")


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
                   "available": machine.memory, "flags": target.flags, "evaluation": target.evaluation,
                   "evaluation_batch": target.evaluation_batch,
                   "save_steps": target.save_steps, "text": 0 if args.tokens else target.text, "price": args.price,
                   "target": args.target, "notes": notes, "choices": target.choices}  # fmt: skip


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
    if price < 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} is below 0")
    return price


def given_step(args: argparse.Namespace) -> dict:
    """The fields of `Step` that options give, of this command or of `mypt estimate`, which has more of them."""
    named = {"micro_batch_size": "batch_size", "compute_dtype": "dtype", "weight_dtype": "weights"}
    given = {field.name: getattr(args, named.get(field.name, field.name), None) for field in fields(Step)}
    if args.lora_r and not args.optimizer:
        given["optimizer"] = "adamw"
    return {name: value for name, value in given.items() if value is not None}


def _target(args: argparse.Namespace, machine: Machine) -> Target:
    if args.target:
        processes = args.processes or _world_size()
        given, elsewhere = given_step(args), bool(args.device)
        return read_target(args.target, args.overrides, machine, given=given, processes=processes, elsewhere=elsewhere)
    if args.overrides:
        raise MyPTError(f"unrecognized arguments: {' '.join(args.overrides)}; only a recipe has keys to change")
    if not (args.tokens or args.params):
        raise MyPTError("nothing to plan: name a recipe, a preset or a checkpoint, or give --tokens and --params")
    return Target()


def _steps(args: argparse.Namespace, settings: dict, recipe_steps: dict) -> tuple[int | None, str | None]:
    """The rule by which training decides, too; None where the size of the data is needed and not known."""
    from mypt.planning.coverage import planned_steps

    if args.steps:
        return args.steps, "--steps"
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
    samples = -(-window_count(tokens, block_size) * PERIOD // mixture.counts[main])
    return samples, round(tokens / mixture.shares[main])


def _world_size() -> int:
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdigit() or int(value) < 1:
        raise MyPTError(f"WORLD_SIZE is {value!r}, expected a whole number; unset it or pass --processes")
    return int(value)
