"""`mypt report RUN --out report.html`: write one page about a run, to look at or to send."""

import argparse
from pathlib import Path

from mypt.terminal import say

HELP = "write one self-contained HTML page about a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="run folder, of a finished run or of one that is under way")
    add("--out", type=Path, metavar="FILE", help="page to write (default: report.html in RUN)")
    samples = "held-out texts of each set that the model continues, kept in RUN/samples.json; 0: no model is loaded"
    add("--samples", type=int, default=2, metavar="N", help=samples)


def run(args: argparse.Namespace) -> None:
    from mypt.errors import MyPTError
    from mypt.report.write import write_report

    if args.samples < 0:
        raise MyPTError(f"--samples is {args.samples}; it must be 0 or more")
    path = write_report(Path(args.run_folder), args.out, samples=args.samples)
    say(f"{path}: {path.stat().st_size / 1e3:,.0f} kB, one file that loads nothing else")
