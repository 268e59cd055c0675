"""`mypt subset DIR --out DIR2`: a reproducible part of a dataset."""

import argparse
from functools import partial

from mypt.cli.table import print_dataset
from mypt.terminal import say, say_json

HELP = "copy a reproducible sample of a dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="dataset directory to take from")
    add("--out", required=True, metavar="DIR", help="dataset directory to make")
    size = parser.add_mutually_exclusive_group()
    # Which size is meant is known from which is given, so only the help names the default.
    size.add_argument(
        "--samples", type=int, metavar="N", default=argparse.SUPPRESS, help="documents of train (default: 10000)"
    )
    size.add_argument(
        "--tokens", type=int, metavar="N", default=argparse.SUPPRESS, help="as many documents as fit in N tokens"
    )
    size.add_argument(
        "--fraction", type=float, metavar="F", default=argparse.SUPPRESS, help="share of the documents of train"
    )
    add(
        "--val",
        choices=("whole", "proportional"),
        default="whole",
        help="keep all of val, or the same share as of train",
    )
    add("--seed", type=int, default=42, help="picks the documents")
    add("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.inspection.dataset import summary
    from mypt.preparation.subset import subset_dataset

    size = {name: getattr(args, name) for name in ("samples", "tokens", "fraction") if hasattr(args, name)}
    manifest = subset_dataset(
        args.directory, args.out, seed=args.seed, val=args.val, say=partial(say, error=True), **size
    )
    if args.json:
        say_json(summary(args.out, manifest))
    else:
        print_dataset(summary(args.out, manifest))
