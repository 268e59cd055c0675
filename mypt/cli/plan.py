"""`mypt plan`: what a recipe, a preset or a checkpoint will cost and be worth, before any compute is spent."""

import argparse
import os
from dataclasses import fields

from mypt.cli.numbers import byte_count, count
from mypt.cli.replay import add_replay_options, planned_probes, print_advice, run_probes
from mypt.errors import MyPTError
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
    add("--tokens-per-second", type=count, help="a measured rate over all processes, to estimate the time")
    add_replay_options(add)
    add("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def run(args: argparse.Namespace) -> None:
    from mypt.planning.plan import as_dict, plan
    from mypt.planning.report import coverage_lines, plan_tables

    machine = other_machine(args.memory, None)
    target = _target(args, machine)
    settings = _settings(args, machine, target)
    settings["steps"], settings["reason"] = _steps(args, settings, target.steps)
    found = plan(**settings)
    probes = planned_probes(args, settings, found)
    if args.json:
        say_json(found.as_dict() | ({"replay": as_dict(run_probes(probes))} if probes else {}))
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
    if found.memory and found.memory.advice:
        where = "" if args.memory else f" ({machine.name}; --memory for another GPU)"
        say("", f"Memory{where}: {found.memory.advice}")
    if found.training.compute_optimal_tokens and not found.coverage:
        say("", f"Compute-optimal training data: about {found.training.compute_optimal_tokens:,} tokens")
    if probes:
        print_advice(probes)


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
                   "target": args.target, "notes": notes, "choices": target.choices}  # fmt: skip


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
        return read_target(args.target, args.overrides, machine, given=given_step(args), processes=processes)
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
