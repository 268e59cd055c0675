"""`mypt export MODEL --to llama --out DIR`: a checkpoint that loads without mypt, with its parity."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.conversion.families import TARGETS
from mypt.conversion.formats import FORMATS
from mypt.terminal import print_table, say, say_json

HELP = "write a stock GPT-2, Llama, Qwen2 or Qwen3 checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, checkpoint folder or hub id")
    target = "architecture; auto: the one that computes the same with the fewest parameters added"
    add("--to", choices=("auto", *TARGETS), default="auto", help=target)
    add("--format", choices=FORMATS, default="safetensors", help="file format")
    add("--out", required=True, metavar="DIR", help="folder to make; it must not exist, or be empty")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the weights (default: as they are)")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.conversion.export import export_model, require_export

    require_export(args.model, args.out)

    load_transformers()
    report = export_model(args.model, args.out, args.to, args.dtype, args.format)
    (say_json if args.json else _print_report)(report)


def _print_report(report: dict) -> None:
    say(f"{report['from']} -> {report['to']}, {report['parameters']:,} parameters, {report['dtype']}: {report['out']}")
    if report["added_biases"]:
        say(f"biases that the model does not have, written as zeros: {', '.join(report['added_biases'])}")
    say()
    rows = [[name, f"{difference:.1e}"] for name, difference in report["differences"].items()]
    print_table("", ["largest difference of a logit", "float32"], rows)
    say()
    say(f"tolerance     {report['tolerance']:.1e} (the largest logit is {report['largest_logit']:.1f})")
    say(f"greedy text   {'equal' if report['greedy_equal'] else 'NOT equal'}, {report['greedy_tokens']} tokens")
    if report["rounding"] is not None:
        say(f"rounding      {report['rounding']:.1e}: what {report['dtype']} changes in a logit")
