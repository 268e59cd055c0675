"""`mypt verify DIR ...`: check datasets and checkpoints against their records; find text that datasets share."""

import argparse
from itertools import combinations
from pathlib import Path

from mypt.terminal import print_table, say, say_json

HELP = "check integrity; find text that two datasets share"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    directories = "dataset directories (two or more are also compared pair by pair), run or checkpoint folders"
    add("directories", nargs="+", metavar="DIR", help=directories)
    add("--no-lines", action="store_true", help="compare whole documents only, not lines of 40 characters or more")
    add("--workers", type=int, default=1, metavar="N", help="shards read at once")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mypt.checkpoints.verify import verify_model
    from mypt.errors import DataError
    from mypt.inspection.checkpoint import is_model_or_run
    from mypt.preparation.overlap import overlaps
    from mypt.shards.verify import verify_dataset

    if args.workers < 1:
        raise DataError(f"--workers is {args.workers}; it must be 1 or more")
    datasets = [directory for directory in args.directories if not is_model_or_run(Path(directory))]
    models = [one for folder in args.directories if folder not in datasets for one in verify_model(Path(folder))]
    reports = [verify_dataset(directory, workers=args.workers) for directory in datasets]
    damaged = any(report["problems"] for report in reports)
    pairs = [] if damaged else combinations(datasets, 2)  # damaged text is worth no comparison
    shared = [found for pair in pairs for found in overlaps(*pair, lines=not args.no_lines)]
    leaks = [found for found in shared if found.leaks]
    damaged = damaged or any(model["problem"] for model in models)
    if args.json:
        report = {"directories": reports, "checkpoints": models, "shared": [asdict(found) for found in shared]}
        say_json(report | {"ok": not damaged and not leaks})
        return 1 if damaged or leaks else 0
    for model in models:
        _print_model(model)
    for report in reports:
        _print_report(report)
    if shared:
        _print_shared(shared)
    for found in leaks:
        say(f"PROBLEM: {found.shared_documents:,} val documents of {found.directory} are in train of {found.other}: "
              f"a model trained there is measured on text that it has seen")  # fmt: skip
    return 1 if damaged or leaks else 0


def _print_report(report: dict) -> None:
    counts = ["shards", "tokens", "documents"]
    rows = [[name, *(f"{split[count]:,}" for count in counts)] for name, split in report["splits"].items()]
    print_table(report["path"], ["split", *counts], rows)
    for problem in report["problems"]:
        say(f"PROBLEM: {problem['file']}: {problem['problem']}")
    for note in report["notes"]:
        say(f"note: {note}")
    if not report["problems"]:
        say(f"ok: {report['bytes'] / 1e6:,.1f} MB" + (f", {report['seconds']:.1f} s" if report["seconds"] else ""))
    say()


def _print_model(report: dict) -> None:
    if report["problem"]:
        say(f"PROBLEM: {report['path']}: {report['problem']}")
    elif report["files"]:
        count = f"{report['files']} file{'s' * (report['files'] != 1)}"
        say(f"{report['path']}: ok: {count}, {report['bytes'] / 1e6:,.1f} MB")
    else:
        say(f"{report['path']}: no checksums were recorded; its files are complete")


def _print_shared(shared: list) -> None:
    columns = ["text of", "also in", "documents", "of", "share", "long lines", "of", "share"]
    rows = []
    for found in shared:
        lines = ("", "", "") if found.lines is None else _share(found.shared_lines, found.lines)
        places = (f"{found.directory} {found.split}", f"{found.other} {found.other_split}")
        rows.append([*places, *_share(found.shared_documents, found.documents), *lines])
    print_table("shared text, val text in train first", columns, rows)


def _share(part: int, whole: int) -> tuple[str, str, str]:
    return f"{part:,}", f"{whole:,}", f"{part / whole:.2%}" if whole else ""
