"""`mypt train RECIPE`: train, or go on training, what a recipe describes."""

import argparse

HELP = "train a recipe: pretraining, or adapting a model while several evaluation sets are watched"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML recipe, or a run folder to repeat or resume")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last complete checkpoint; start if there is none"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask when the data would be seen less than once")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def run(args: argparse.Namespace) -> None:
    from mypt.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)

    from mypt.training.run import train

    train(recipe, resume=args.resume, assume_yes=args.yes)
