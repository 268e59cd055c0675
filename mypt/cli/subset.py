"""`mypt subset DIR --out DIR2`: copy a reproducible part of a dataset."""

import argparse

from mypt.cli.dataset_options import given, print_dataset
from mypt.terminal import say_error, say_json

HELP = "copy a reproducible sample of a dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="dataset directory to take from")
    add("--out", required=True, metavar="DIR", help="dataset directory to make")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--samples", type=int, metavar="N", help="documents of train (default: 10000)")
    size.add_argument("--tokens", type=int, metavar="N", help="as many documents as fit in N tokens")
    size.add_argument("--fraction", type=float, metavar="F", help="share of the documents of train")
    share = "keep all of val, or the same share as of train"
    add("--val", choices=("whole", "proportional"), default="whole", help=share)
    add("--seed", type=int, default=42, help="picks the documents")
    add("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.inspection.dataset import summary
    from mypt.preparation.subset import subset_dataset

    options = given(args, "samples", "tokens", "fraction", "seed", "val")
    manifest = subset_dataset(args.directory, args.out, say=say_error, **options)
    (say_json if args.json else print_dataset)(summary(args.out, manifest))
