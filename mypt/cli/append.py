"""`mypt append DIR --source ...` or `--from OTHER_DIR`: add data to a dataset directory."""

import argparse
from pathlib import Path

from mypt.cli.dataset_options import add_reading, print_dataset, reading
from mypt.terminal import say, say_error, say_json

HELP = "add text, or the shards of another dataset, to a dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="dataset directory that grows")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="other", metavar="OTHER_DIR", help="dataset to add")
    add_reading(parser, source)
    add("--no-overlap", action="store_true", help="do not look for documents of --from that DIR already has")
    add("--json", action="store_true", help="print the contents of the directory as JSON")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from mypt.inspection.dataset import summary
    from mypt.preparation.append import append_dataset
    from mypt.preparation.overlap import overlaps

    shared = []
    if args.source:
        from mypt.preparation.prepare import append_text

        manifest = append_text(args.directory, args.source, **reading(args))
    else:
        if not args.no_overlap:
            found = overlaps(args.directory, args.other, lines=False)
            shared = [entry for entry in found if entry.directory == str(Path(args.other))]
        manifest = append_dataset(args.directory, args.other, say=say_error)
    if args.json:
        say_json(summary(args.directory, manifest) | {"shared": [asdict(entry) for entry in shared]})
        return
    print_dataset(summary(args.directory, manifest))
    for entry in shared:
        if entry.shared_documents:
            say(f"in both       {entry.shared_documents:,} of {entry.documents:,} {entry.split} documents of "
                f"{entry.directory} are in {entry.other_split} of {entry.other}")  # fmt: skip
