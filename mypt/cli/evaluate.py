"""`mypt evaluate MODEL ...`: exact losses on whole evaluation splits, BLEU and chrF on references, lm-eval's tasks."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.terminal import say, say_json

HELP = "measure loss, bits per byte, BLEU and tasks of models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    models = "run or checkpoint folders or hub ids; changes are relative to the first"
    add("models", nargs="+", metavar="MODEL", help=models)
    several = {"nargs": "+", "action": "extend", "default": []}
    data = "dataset directories by name, several of one text joined by commas, or text files"
    add("--data", **several, metavar="NAME=DIR", help=data)
    add("--split", choices=("val", "train"), default="val", help="split of each directory")
    add("--rolling", action="store_true", help="count as lm-eval does: each document from its first token, without EOS")
    add("--block-size", type=int, help="context in tokens (default: the models' shortest context)")
    add("--batch-size", type=int, default=8, help="windows or texts computed at once")
    add("--guard", **several, metavar="NAME", help="sets whose change is judged")
    add("--tolerance", type=float, help="nats per token that a guarded set may lose (default: the run's, else 0.05)")
    mask = "tokens see their own document only, as with data.document_mask"
    add("--document-mask", action="store_true", help=mask)
    add("--by", **several, choices=("position", "source"), help="divide each loss by place in the window, or source")
    references = ".jsonl files with prompts and references, by name: BLEU and chrF of what the model writes"
    add("--references", **several, metavar="NAME=FILE", help=references)
    add("--max-new-tokens", type=int, default=128, metavar="N", help="tokens of a text at most, with --references")
    add("--texts", metavar="FILE", help="write the texts of --references, a JSON line each")
    add("--tasks", **several, metavar="TASK", help="tasks of lm-eval, by name or as .yaml files")
    add("--out", metavar="FILE", help="JSON file for the figures (default: evaluation.json in each model's folder)")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from mypt.evaluation.compare import Settings, parse_data
    from mypt.evaluation.evaluate import Request, evaluate, save

    names = ("split", "block_size", "batch_size", "guard", "tolerance", "document_mask", "by")
    named = {name: getattr(args, name) for name in names}
    settings = Settings(**named, definition="rolling" if args.rolling else "windows")
    request = Request(
        args.models,
        parse_data(args.data),
        settings,
        references=parse_data(args.references, "--references"),
        tasks=args.tasks,
        max_new_tokens=args.max_new_tokens,
        texts=args.texts,
        out=args.out,
    )
    request.check()

    load_transformers()
    from mypt.evaluation.tables import print_figures

    found = evaluate(request)
    if args.json:
        say_json([asdict(figure) for figure in found])
    else:
        print_figures(found)
    written = save(request, found)
    if not args.json:
        say(f"saved: {', '.join(map(str, written))}" if written else "not saved: name a file by --out")
