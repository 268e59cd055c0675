"""`mypt ladder RECIPE`: predict the loss of a run from small runs of its recipe."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.errors import MyPTError
from mypt.terminal import print_table, say, say_json

if TYPE_CHECKING:
    from mypt.forecasting.ladder import Ladder
    from mypt.planning.plan import Plan
    from mypt.training.target import Target

HELP = "predict a run's loss from small runs, and the best size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = "%(prog)s RECIPE [options] [--section.key=value ...]"
    add("recipe", metavar="RECIPE", help="a YAML recipe of a run that trains from scratch")
    add("--out", type=Path, metavar="DIR", help="the ladder's folder (default: training.output_dir with -ladder added)")
    factor = "compute of the planned run by that of the largest rung (default: 8)"
    add("--factor", type=float, metavar="F", help=factor)
    add("--runs", type=Path, nargs="+", default=[], metavar="RUN", help="finished runs of the same data, as more rungs")
    add("--dry-run", action="store_true", help="print the rungs with their expected time; train nothing")
    add("--json", action="store_true", help="print rungs, law and prediction as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def run(args: argparse.Namespace) -> None:
    from mypt.forecasting.ladder import commands, plan_lines, read_ladder
    from mypt.forecasting.ladder_law import FACTOR

    tell = partial(say, error=args.json)
    factor = FACTOR if args.factor is None else args.factor
    ladder = read_ladder(args.recipe, args.overrides, args.out, factor=factor, tell=tell)
    for line in plan_lines(ladder):
        tell(line)
    if args.dry_run:
        tell(*commands(ladder))
        return
    _report(ladder, args, tell)


def with_ladder(found: Plan, target: Target, folder: Path | None) -> Plan:
    """A plan with a ladder's forecast. folder: as `mypt plan --ladder` gives it; None: next to the run's folder.

    A ladder that was not asked for and does not fit the run is named in a note.

    Raises:
        MyPTError: The ladder of `folder` is missing, or of other data.
    """
    given, recipe = folder, target.recipe
    if not given and not (recipe and recipe.training.get("output_dir")):
        return found
    from mypt.forecasting.ladder_record import default_folder, find_difference, read_record

    folder = given or default_folder(recipe)
    record = read_record(folder)
    if record is None and given:
        raise MyPTError(f"{folder} holds no finished ladder; make one with: mypt ladder RECIPE --out {folder}")
    if record is None:
        return found
    fault = find_difference(record, recipe, found)
    if fault and given:
        raise MyPTError(f"the ladder in {folder} does not apply to this run: {fault}")
    if fault:
        return replace(found, notes=[*found.notes, f"the ladder in {folder} does not apply to this run: {fault}"])
    from mypt.forecasting.ladder_report import forecast

    law, tokens = record.law(), found.training.steps * found.training.tokens_per_step
    return replace(found, ladder=forecast(record, law, found.parameters["total"], tokens, str(folder)))


def _report(ladder: Ladder, args: argparse.Namespace, tell) -> None:
    from mypt.files import replace_text
    from mypt.forecasting.ladder import run_ladder
    from mypt.forecasting.ladder_record import RECORD_NAME
    from mypt.forecasting.ladder_report import PICTURE_NAME, draw_ladder, ladder_lines, ladder_table, summary

    record = run_ladder(ladder, runs=args.runs, tell=tell)
    law = record.law()
    found = summary(record, law)
    replace_text(ladder.out / RECORD_NAME, json.dumps(found, indent=1) + "\n")
    drawn = draw_ladder(found, record, law, ladder.out / PICTURE_NAME)
    if args.json:
        say_json(found)
        return
    print_table(*ladder_table(found))
    say(*ladder_lines(record, law))
    say(f"{ladder.out / RECORD_NAME}{f', {ladder.out / PICTURE_NAME}' if drawn else ''}")
