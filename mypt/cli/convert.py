"""`mypt convert PATH --out DIR`: convert checkpoints and datasets of the original MyPT, and datasets of nanoGPT."""

import argparse
from pathlib import Path

from mypt.cli.dataset_options import given, print_dataset
from mypt.errors import MyPTError
from mypt.terminal import print_table, say, say_error, say_json

HELP = "convert original MyPT checkpoints and datasets, nanoGPT datasets"
_OF_DATASETS = ("dtype",)
_OF_CHECKPOINTS = ("add_bytes", "rotary", "check", "dry_run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    path = (
        "checkpoint: .pt file, or folder with config.json and model.pt; dataset: folder with shard_00000.bin, "
        "train/shard_00000.bin or train.bin"
    )
    add("path", metavar="PATH", help=path)
    add("--out", required=True, metavar="DIR", help="folder to make")
    every = "PATH is a folder of checkpoints: convert each to a folder of its name in DIR"
    add("--all", action="store_true", help=every)
    dry = "checkpoints only: read and compare everything, print the findings, write nothing"
    add("--dry-run", action="store_true", default=None, help=dry)
    tokenizer = "gpt2, a directory or a hub id (default: PATH's own; where it has none gpt2, if the ids can be its)"
    add("--tokenizer", metavar="NAME", help=tokenizer)
    more = (
        "checkpoints only: give a model of characters the 257 ids more (end of text, bytes) that converted datasets "
        "have, so that it can be evaluated and trained on prepared data"
    )
    add("--add-bytes", action="store_true", default=None, help=more)
    rotary = "checkpoints only: pairs that rotary positions turn (default: halves, as the original)"
    add("--rotary", choices=("halves", "interleaved"), help=rotary)
    check = "checkpoints only: a .pt file with input_ids and the logits that the new model must give"
    add("--check", metavar="FILE", help=check)
    dtype = "datasets only: dtype of the shards (default: that of the metadata, else uint32; nanoGPT's are uint16)"
    add("--dtype", choices=("uint16", "uint32"), help=dtype)
    add("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> int:
    from mypt.conversion.original_checkpoint import find_all
    from mypt.folders import require_free
    from mypt.legacy.checkpoint import is_original
    from mypt.legacy.shards import find_shards

    path = Path(args.path)
    if args.all or (is_original(path) and not find_shards(path)):
        options = _chosen(args, _OF_CHECKPOINTS, _OF_DATASETS, "dataset")
        if args.all:
            find_all(path)
        elif "dry_run" not in options:
            require_free(args.out)

        from transformers import logging

        logging.disable_progress_bar()
        return _convert_all(args, options) if args.all else _convert_checkpoint(args, options)
    return _convert_dataset(args, _chosen(args, _OF_DATASETS, _OF_CHECKPOINTS, "checkpoint"))


def _chosen(args: argparse.Namespace, known: tuple[str, ...], others: tuple[str, ...], kind: str) -> dict:
    if wrong := [f"--{name.replace('_', '-')}" for name in given(args, *others)]:
        raise MyPTError(f"{', '.join(wrong)}: only for a {kind}, and {args.path} is none; leave it out")
    return given(args, *known, "tokenizer")


def _convert_dataset(args: argparse.Namespace, options: dict) -> int:
    from mypt.conversion.original_dataset import convert_dataset
    from mypt.inspection.dataset import summary

    manifest = convert_dataset(args.path, args.out, say=say_error, **options)
    (say_json if args.json else print_dataset)(summary(args.out, manifest))
    return 0


def _convert_checkpoint(args: argparse.Namespace, options: dict) -> int:
    from mypt.conversion.original_checkpoint import convert_checkpoint

    report = convert_checkpoint(args.path, args.out, **options)
    if args.json:
        say_json(report)
        return 0
    config, made = report["config"], "would make" if options.get("dry_run") else "made"
    rows = {
        made: report["out"],
        "from": f"{report['path']}: {report['form']}, {report['era']} attention, step {report['step']}",
        "shape": f"{config['num_hidden_layers']} layers x {config['num_attention_heads']} heads x "
        f"{config['hidden_size']}, context {config['max_position_embeddings']} tokens, vocabulary "
        f"{config['vocab_size']:,}",
        "switches": f"{config['position_embedding_type']} positions, {config['norm_type']}, "
        f"{'gated ' if config['mlp_gated'] else ''}{config['hidden_act']}, "
        f"{'tied' if config['tie_word_embeddings'] else 'untied'} head",
        "weights": f"{report['parameters']:,} parameters in {report['dtype']}",
    }
    if tokenizer := report["tokenizer"]:
        rows["tokenizer"] = f"{tokenizer['ids']:,} ids, EOS {tokenizer['eos_token']}"
    if report["max_logit_difference"] is not None:
        rows["check"] = f"logits differ by at most {report['max_logit_difference']:.3g}"
    for name, value in rows.items():
        say(f"{name:<12}{value}")
    for note in report["notes"]:
        say(f"note: {note}")
    return 0


def _convert_all(args: argparse.Namespace, options: dict) -> int:
    from mypt.conversion.original_checkpoint import convert_all

    outcomes = {}
    good = convert_all(args.path, args.out, lambda name, outcome: outcomes.update({name: outcome}), **options)
    if args.json:
        say_json({name: {"error": str(it)} if isinstance(it, MyPTError) else it for name, it in outcomes.items()})
        return 0 if good else 1
    from mypt.legacy.checkpoint import NotOriginal

    rows, failed = [], []
    for name, outcome in outcomes.items():
        if isinstance(outcome, MyPTError):
            rows.append([name, "skipped" if isinstance(outcome, NotOriginal) else "failed", "", "", ""])
            failed.append(f"{name}: {outcome}")
        else:
            state = "would convert" if options.get("dry_run") else "converted"
            rows.append([name, state, outcome["form"], f"{outcome['parameters']:,}", outcome["step"]])
    print_table("", ["checkpoint", "state", "form", "parameters", "step"], rows)
    for line in failed:
        say(line, error=True)
    return 0 if good else 1
