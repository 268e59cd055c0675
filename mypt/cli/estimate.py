"""`mypt estimate`: parameters and memory of a model, part by part, and the largest micro-batch that fits."""

import argparse

from mypt.cli.numbers import byte_count, count
from mypt.cli.plan import given_step
from mypt.errors import MyPTError
from mypt.hardware.machine import other_machine
from mypt.planning.parameters import with_positions
from mypt.terminal import print_table, say, say_json
from mypt.training.target import DEFAULT_BLOCK, read_target

HELP = "count parameters, estimate memory, find the largest micro-batch"

# Dimensions that options of the same name change; the other switches of an architecture come with the target.
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mypt.planning.step import ATTENTIONS, BYTES, DEVICES, MICRO_BATCH, STATES

    add = parser.add_argument
    help_target = "a preset, a recipe, or a folder with a config.json"
    add("target", nargs="?", default="modern-tiny", help=help_target, metavar="TARGET")
    for name in SIZES:
        add(f"--{name.replace('_', '-')}", type=count, help="replaces the target's")
    batch = f"sequences per device and pass (micro-batch) (default: the recipe's, else {MICRO_BATCH})"
    add("--batch-size", type=count, help=batch)
    add("--block-size", type=count, help="tokens per sequence (default: the recipe's, else the model's)")
    add("--accumulation", type=count, help="passes per step (default: the recipe's, else 1)")
    add("--optimizer", choices=STATES, help="optimizer (default: the recipe's, else by Muon's share)")
    add("--weights", choices=BYTES, help="dtype of weights, gradients and states (default: the recipe's, else float32)")
    dtype = "dtype of matrix products, autocast (default: the recipe's, else bfloat16 where this machine has it)"
    add("--dtype", choices=BYTES, help=dtype)
    add("--checkpointing", action="store_true", default=None, help="compute the layers again in the backward pass")
    add("--attention", choices=ATTENTIONS, help="eager keeps the attention weights (default: as training chooses)")
    add("--lora-r", type=count, help="train adapters of this rank on frozen weights (default: the recipe's, else none)")
    targets = "linear layers that get adapters (default: the recipe's, else all but the head)"
    add("--lora-targets", nargs="+", metavar="NAME", help=targets)
    add("--fsdp", type=count, help="devices that share weights, gradients and states (full shard) (default: 1)")
    add("--memory", type=byte_count, help="bytes of one device (24G: GiB) (default: this machine's GPU or main memory)")
    add("--device", choices=DEVICES, help="kind of device (default: gpu with --memory, else this machine's)")
    add("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --data.block_size=2048"


def run(args: argparse.Namespace) -> None:
    from mypt.planning.fit import plan_memory
    from mypt.planning.parameters import frozen_parameters, parameter_report
    from mypt.planning.plan import as_dict
    from mypt.planning.plan_report import memory_tables, parameter_table

    machine = other_machine(args.memory, args.device)
    fields = {name: getattr(args, name) for name in SIZES if getattr(args, name)}
    given = given_step(args)
    if args.weights and not args.dtype and args.weights != "float32":
        given["compute_dtype"] = args.weights
    target = read_target(args.target, args.overrides, machine, fields=fields, given=given)
    if not target.dimensions:
        raise MyPTError(f"{args.target}: {'; '.join(target.notes)}")
    dimensions, step = _step(given, target, machine)
    frozen = frozen_parameters(dimensions, step.freeze_layers, step.freeze_embeddings)
    parameters = parameter_report(dimensions, step.lora, frozen)
    memory = plan_memory(dimensions, step, machine.memory, target.flags, target.smaller)
    if args.json:
        report = {"target": args.target, "notes": target.notes, "choices": target.choices, "dimensions": dimensions,
                  "step": step, "parameters": parameters, "memory": memory}  # fmt: skip
        say_json(as_dict(report))
        return
    for note in target.notes:
        say(f"note: {note}")
    for name, choice in target.choices.items():
        say(f"{name}: {choice.value} ({choice.reason})")
    print_table(*parameter_table(parameters))
    say("", _words(step))
    for table in memory_tables(memory):
        say()
        print_table(*table)
    if memory.advice:
        where = "" if args.memory else f" ({machine.name}; --memory for another device)"
        say("", f"Memory{where}: {memory.advice}")


def _step(given: dict, target, machine) -> tuple[dict, object]:
    """The dimensions, with positions for a longer block, and the step to be measured."""
    from mypt.planning.step import Step

    defaults = {
        "block_size": target.dimensions["max_position_embeddings"] or DEFAULT_BLOCK,
        "device": machine.device,
    }
    settings = defaults | target.settings | given
    return with_positions(target.dimensions, settings["block_size"]), Step(**settings)


def _words(step) -> str:
    """The step in one line."""
    parts = [
        f"{step.micro_batch_size:,} x {step.block_size:,} tokens per pass",
        step.optimizer,
        f"{step.weight_dtype} weights"
        + (f", {step.compute_dtype} autocast" if step.compute_dtype != step.weight_dtype else ""),
        f"{step.attention} attention",
        "activation checkpointing" if step.checkpointing else "",
        f"{step.accumulation} passes per step" if step.accumulation > 1 else "",
        f"LoRA of rank {step.lora_r}" if step.lora_r else "",
        f"{step.freeze_layers} layers frozen" if step.freeze_layers else "",
        "embeddings frozen" if step.freeze_embeddings else "",
        f"FSDP over {step.fsdp} devices" if step.fsdp > 1 else "",
        f"on a {step.device.upper()}",
    ]
    return ", ".join(part for part in parts if part)
