"""`mypt presets`: list the model sizes that have a name."""

import argparse

from mypt.errors import MyPTError
from mypt.terminal import print_table, say, say_json

HELP = "list model sizes with exact parameter counts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="preset to show in full (default: a table of all)")
    parser.add_argument("--json", action="store_true", help="print dimensions and parameter counts as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.models.presets import PRESETS, preset_dimensions
    from mypt.planning.parameters import count_parameters

    try:
        presets = {name: preset_dimensions(name) for name in ([args.name] if args.name else PRESETS)}
    except ValueError as error:
        raise MyPTError(error) from None
    counts = {name: count_parameters(dimensions) for name, dimensions in presets.items()}
    if args.json:
        say_json({name: {"dimensions": presets[name], "parameters": counts[name]} for name in presets})
    elif args.name:
        _print_one(args.name, presets[args.name], counts[args.name])
    else:
        _print_all(presets, counts)


def _print_all(presets: dict[str, dict], counts: dict[str, dict[str, int]]) -> None:
    columns = ["preset", "layers", "heads", "kv heads", "width", "mlp width", "block", "vocabulary", "parameters"]
    fields = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size",
              "max_position_embeddings", "vocab_size")  # fmt: skip
    rows = [
        [name, *(dimensions[field] for field in fields), f"{counts[name]['total']:,}"]
        for name, dimensions in presets.items()
    ]
    print_table("", columns, rows)
    say("block and vocabulary in tokens; `mypt presets NAME` shows where the parameters are")


def _print_one(name: str, dimensions: dict, counts: dict[str, int]) -> None:
    print_table(name, ["parameters", "number"], [[part, f"{count:,}"] for part, count in counts.items()])
    say()
    print_table("", ["field of MyPTConfig", "value"], [[field, value] for field, value in dimensions.items()])
