"""`mypt evaluate MODEL ... --data NAME=DIR ...`: exact losses on whole evaluation splits."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.terminal import print_table, say_json

HELP = "measure exact loss, perplexity and bits per byte of models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    models = "run or checkpoint folders or hub ids; changes are relative to the first"
    add("models", nargs="+", metavar="MODEL", help=models)
    several = {"nargs": "+", "action": "extend"}
    add("--data", **several, required=True, metavar="NAME=DIR", help="dataset directories by name")
    add("--split", choices=("val", "train"), default="val", help="split of each directory")
    add("--block-size", type=int, help="context in tokens (default: the models' shortest context)")
    add("--batch-size", type=int, default=8, help="windows evaluated at once")
    add("--guard", **several, default=[], metavar="NAME", help="sets whose change is judged")
    add("--tolerance", type=float, help="nats per token that a guarded set may lose (default: the run's, else 0.05)")
    mask = "tokens see their own document only, as with data.document_mask"
    add("--document-mask", action="store_true", help=mask)
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from mypt.evaluation.compare import compare, parse_data, require_comparable

    data = parse_data(args.data)
    options = {name: getattr(args, name) for name in ("split", "block_size", "batch_size", "guard", "tolerance")}
    require_comparable(args.models, data, **options)

    load_transformers()
    scores = compare(args.models, data, **options, document_mask=args.document_mask)
    if args.json:
        say_json([asdict(score) for score in scores])
        return
    columns = ["model", "data", "tokens", "nats/token", "perplexity", "bits/byte", "change", "forgetting"]
    rows = []
    for score in scores:
        loss = f"{score.loss:.4f} +/- {score.standard_error:.4f}"
        change = "" if score.delta is None else f"{score.delta:+.4f} +/- {score.delta_error:.4f}"
        figures = (f"{score.tokens:,}", loss, f"{score.perplexity:.2f}", f"{score.bits_per_byte:.4f}", change)
        model = score.model if score.alpha is None else f"{score.model} (alpha {score.alpha:g})"
        rows.append([model, score.data, *figures, score.state or ""])
    print_table("", columns, rows)
