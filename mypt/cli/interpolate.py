"""`mypt interpolate BASE ADAPTED --out DIR`: the largest step towards an adapted model that keeps every guard."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.evaluation.forgetting import TOLERANCE
from mypt.terminal import print_table, say, say_json

HELP = "interpolate between a base model and one adapted from it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", metavar="BASE", help="folder or hub id of the model that training started from")
    add("adapted", metavar="ADAPTED", help="folder of the adapted model or of a LoRA adapter")
    add("--out", required=True, metavar="DIR", help="folder to make; it must not exist, or be empty")
    add("--alpha", type=float, help="share of the way from BASE (0) to ADAPTED (1)")
    add(
        "--guard",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=DIR",
        help="dataset directories to keep: the largest alpha that does is searched",
    )
    add(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=DIR",
        help="dataset directories to measure as well",
    )
    add("--tolerance", type=float, default=TOLERANCE, help="nats per token that a guarded set may lose against BASE")
    add("--block-size", type=int, help="context in tokens (default: the model's)")
    add("--batch-size", type=int, default=8, help="windows evaluated at once")
    add("--extrapolate", action="store_true", help="allow an --alpha above 1")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.evaluation.compare import parse_data
    from mypt.evaluation.interpolate import interpolate, require_interpolation

    options = {name: getattr(args, name) for name in ("alpha", "tolerance", "batch_size", "extrapolate")}
    options |= {name: parse_data(getattr(args, name), f"--{name}") for name in ("guard", "target")}
    require_interpolation(args.base, args.adapted, args.out, **options)

    load_transformers()
    report = interpolate(args.base, args.adapted, args.out, block_size=args.block_size, **options)
    if args.json:
        say_json(report)
        return
    if report["alpha"] > 1:
        say(f"alpha {report['alpha']:g} is beyond the adapted model: it extrapolates", error=True)
    if report["curve"]:
        names = [*report["curve"][0]["sets"]]
        rows = [
            [f"{point['alpha']:.2f}", *(_cell(point["sets"][name], name in report["guard"]) for name in names)]
            for point in report["curve"]
        ]
        print_table("", ["alpha", *names], rows)
    say(f"alpha {report['alpha']:g} between {report['base']} (0) and {report['adapted']} (1): {report['out']}")


def _cell(reading: dict, guarded: bool) -> str:
    change = f"{reading['loss']:.4f} ({reading['delta']:+.4f} +/- {reading['delta_error']:.4f}"
    return f"{change}, {reading['state']})" if guarded else f"{change})"
