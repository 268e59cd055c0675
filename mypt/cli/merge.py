"""`mypt merge ADAPTER --out DIR`: merge an adapter and its base model into one checkpoint."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.terminal import say, say_json

HELP = "merge a LoRA adapter into its base model and compare the two"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", help="folder of a LoRA run, its best or a checkpoint of it")
    add("--out", required=True, metavar="DIR", help="folder to make; it must not exist, or be empty")
    base = "folder or hub id of the base model (default: the one that the adapter names)"
    add("--base", metavar="MODEL", help=base)
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.conversion.merge import merge_adapter, require_merge

    require_merge(args.adapter, args.out, args.base)

    load_transformers()
    report = merge_adapter(args.adapter, args.out, args.base)
    if args.json:
        say_json(report)
        return
    say(f"{report['adapter']} merged into {report['base']}")
    say(f"{report['architecture']}, {report['parameters']:,} parameters, {report['dtype']}: {report['out']}")
    say(f"largest difference of a logit: {report['difference']:.1e} (the largest: {report['largest_logit']:.1f})")
