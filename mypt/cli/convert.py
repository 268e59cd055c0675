"""`mypt convert PATH --out DIR`: what the original MyPT made, in today's format."""

import argparse
import json
import sys

from mypt.cli.table import print_dataset

HELP = "turn a dataset of the original MyPT or of nanoGPT into today's format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="directory with shard_00000.bin, train/shard_00000.bin or train.bin")
    add("--out", required=True, metavar="DIR", help="directory to make")
    add(
        "--dtype",
        choices=("uint16", "uint32"),
        default=argparse.SUPPRESS,
        help="what the shards hold (default: what the metadata says, else uint32; nanoGPT's are uint16)",
    )
    add(
        "--tokenizer",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="gpt2, a directory or a hub id (default: the directory's own; for train.bin without meta.pkl gpt2)",
    )
    add("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.shards.convert import convert_dataset
    from mypt.shards.inspect import summary

    chosen = {name: getattr(args, name) for name in ("dtype", "tokenizer") if hasattr(args, name)}
    manifest = convert_dataset(args.path, args.out, say=lambda line: print(line, file=sys.stderr), **chosen)
    if args.json:
        print(json.dumps(summary(args.out, manifest), indent=1, ensure_ascii=False))
    else:
        print_dataset(summary(args.out, manifest))
