"""`mypt inspect PATH [OTHER]`: what is in a run folder, a checkpoint or a dataset directory, or how two differ."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from mypt.errors import MyPTError
from mypt.terminal import print_table, say, say_json

_TOLD = ("of", "from", "samples", "tokens", "fraction", "val", "seed")  # of what made a dataset of another one

HELP = "show a run, a checkpoint or a dataset; compare two of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "path",
        metavar="PATH",
        help="run folder, checkpoint folder, adapter, checkpoint of the original MyPT, dataset directory, or a hub id "
        "whose files are in the cache",
    )
    add("other", metavar="OTHER", nargs="?", help="a second one: show the differences")
    add("--weights", action="store_true", help="with OTHER: compare all weights, too, one pair of tensors at a time")
    add("--show", type=int, default=0, metavar="N", help="datasets only: print the first N training windows as text")
    add("--block-size", type=int, default=128, metavar="N", help="tokens in a window of --show")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    if args.other is not None:
        return _diff(args)
    if args.weights:
        raise MyPTError("--weights compares two checkpoints; name a second one")
    path = _found(args.path)
    if _is_dataset(path):
        report = _dataset_report(path, args)
        show = _print_dataset
    else:
        report = _checkpoint_report(path, args)
        show = _print_checkpoint
    if args.json:
        say_json(report)
    else:
        show(report)
    return 1 if report["problems"] else 0


def _found(name: str) -> Path:
    """The path itself, or the folder of the hub's cache where `name` is the id of a model in it."""
    from mypt.checkpoints.config import cached_model
    from mypt.inspection.checkpoint import is_checkpoint
    from mypt.legacy.checkpoint import is_original
    from mypt.shards.format import METADATA_NAME

    path = Path(name)
    kinds = "a run folder, a checkpoint folder or a dataset directory"
    if not path.exists():
        if found := cached_model(name):
            return found
        raise MyPTError(f"{path} does not exist, nor is it a model in the hub's cache; name {kinds}")
    if not (_is_dataset(path) or is_original(path) or is_checkpoint(path)):
        raise MyPTError(
            f"{path} holds neither config.json nor checkpoint-N (a model) nor {METADATA_NAME} (a dataset); name {kinds}"
        )
    return path


def _is_dataset(path: Path) -> bool:
    from mypt.legacy.shards import find_shards
    from mypt.shards.format import METADATA_NAME

    return (path / METADATA_NAME).is_file() or find_shards(path) is not None


def _diff(args: argparse.Namespace) -> int:
    first, second = _found(args.path), _found(args.other)
    datasets = _is_dataset(first) + _is_dataset(second)
    if datasets == 1:
        raise MyPTError(f"{first} and {second}: one is a dataset, the other a model; name two of a kind")
    if args.show or (datasets and args.weights):
        raise MyPTError(f"{'--show' if args.show else '--weights'} has no meaning here; leave it out")
    from mypt.inspection.describe import describe_diff, describe_fields
    from mypt.inspection.diff import diff_checkpoints, differing_fields

    if datasets:
        from mypt.inspection.dataset import inspect_dataset

        a, b = ({k: v for k, v in inspect_dataset(path).items() if k not in ("path", "files")}
                for path in (first, second))  # fmt: skip
        report = {"kind": "diff", "a": str(first), "b": str(second), "fields": differing_fields(a, b)}
        blocks = describe_fields(report["a"], report["b"], report["fields"])
    else:
        report = diff_checkpoints(first, second, weights=args.weights)
        blocks = describe_diff(report)
    if args.json:
        say_json(report)
    else:
        _print_blocks(blocks)
    return 0


def _dataset_report(path: Path, args: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from mypt.inspection.dataset import inspect_dataset

    report = inspect_dataset(path)
    if args.show:
        from mypt.streams.show import decoded_windows
        from mypt.tokenization.data_tokenizer import load_data_tokenizer

        windows = decoded_windows(path, load_data_tokenizer(path), args.show, block_size=args.block_size)
        report["windows"] = [asdict(window) for window in windows]
    return report


def _checkpoint_report(path: Path, args: argparse.Namespace) -> dict:
    from mypt.legacy.checkpoint import is_original

    if args.show:
        raise MyPTError(f"--show prints windows of a dataset, and {path} is a model; name a dataset directory")
    if is_original(path):
        from mypt.inspection.original import inspect_original

        return inspect_original(path)
    from mypt.inspection.checkpoint import inspect_checkpoint
    from mypt.streams.show import saved_ledger

    report = inspect_checkpoint(path)
    if report["coverage"]:
        report["coverage"]["seen"] = saved_ledger(report["coverage"])
    return report


def _print_checkpoint(report: dict) -> None:
    from mypt.inspection.describe import describe

    _print_blocks(describe(report))


def _print_dataset(report: dict) -> None:
    from mypt.inspection.describe import files, line, pairs, plain

    columns = ["split", "tokens", "documents", "bytes of text", "bytes/token", "shards"]
    rows = [
        [name, *_numbers(s["tokens"], s["documents"], s["bytes"]), _figure(s["bytes_per_token"]), s["shards"]]
        for name, s in report["splits"].items()
    ]
    print_table(f"{report['path']}: dataset", columns, rows)
    tokenizer = report["tokenizer"]
    say()
    say(line("tokenizer", f"{tokenizer['name']}, {tokenizer['vocab_size']:,} ids, EOS is {tokenizer['eos_token_id']}"))
    say(line("token ids", report["dtype"]))
    say(line("format", report["format"]))
    for entry in report["history"]:
        told = {name: value for name, value in entry.items() if name in _TOLD}
        texts = ", ".join(source["name"] for source in entry.get("text", ()))
        say(line(entry["did"], plain({"of": texts} | told if texts else told)))
    say()
    sources = [[s["name"], *_numbers(s["documents"], s["bytes"], s["tokens"])] for s in report["sources"]]
    print_table("", ["source", "documents", "bytes of text", "tokens"], sources)
    _print_blocks(pairs("settings", report["settings"]))
    _print_blocks(pairs("while preparing", report["report"]))
    say()
    _print_blocks(files(report))
    for window in report.get("windows", ()):
        count = len(window["input_ids"])
        say("", f"--- sample {window['sample']}: {count} tokens from token {window['first_token']:,}")
        say(*window["text"].split("\n"))


def _print_blocks(blocks: Iterable) -> None:
    for block in blocks:
        if isinstance(block, str):
            say(block)
        else:
            print_table("", *block)


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
