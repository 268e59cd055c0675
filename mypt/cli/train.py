"""`mypt train RECIPE`: train or resume a run that a recipe describes."""

import argparse

from mypt.cli.frameworks import quick_imports
from mypt.errors import RecipeError

HELP = "pretrain, adapt or resume a run described by a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = "%(prog)s RECIPE [--resume [CHECKPOINT]] [--yes] [--section.key=value ...]"
    add("recipe", nargs="?", metavar="RECIPE", help="a YAML recipe, or a run folder to repeat or resume")
    resume = (
        "resume from the last good checkpoint, start if there is none; or from this one, by its name in the run "
        "folder or its path"
    )
    add("--resume", nargs="?", const=True, default=False, metavar="CHECKPOINT", help=resume)
    add("--yes", action="store_true", help="do not ask when the data would be seen less than once")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def run(args: argparse.Namespace) -> None:
    from mypt.recipe import load_recipe
    from mypt.training.launch import require_processes

    require_processes()  # here, too: before the imports that take seconds
    sort_out(args)
    recipe = load_recipe(args.recipe, args.overrides)

    from mypt.training.request import accepted, output_dir

    with accepted(recipe, args.resume):
        with quick_imports():
            from mypt.report.callback import ReportCallback
            from mypt.report.write import report_at_end
            from mypt.training.run import train

        with report_at_end(output_dir(recipe)):
            train(recipe, [ReportCallback()], resume=args.resume, assume_yes=args.yes)


def sort_out(args: argparse.Namespace) -> None:
    """Give back what `--resume`, whose value may be left out, took of the words after it."""
    if isinstance(args.resume, str) and args.resume.startswith("--"):  # argparse takes a word with blanks for a value
        args.overrides, args.resume = [args.resume, *args.overrides], True
    if args.recipe is None and isinstance(args.resume, str):
        args.recipe, args.resume = args.resume, True
    if args.recipe is None:
        raise RecipeError("a recipe is missing: give a YAML file or a run folder")
