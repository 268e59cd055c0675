"""`mypt inspect PATH [OTHER]`: show a run folder, a checkpoint or a dataset directory, or compare two of them."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from mypt.errors import MyPTError
from mypt.files import what_to_do_with_gguf
from mypt.terminal import print_table, say, say_json

HELP = "show a run, a checkpoint or a dataset; compare two of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    path = (
        "run folder, checkpoint folder, adapter, checkpoint of the original MyPT, dataset directory, or a hub id whose "
        "files are in the cache"
    )
    add("path", metavar="PATH", help=path)
    add("other", metavar="OTHER", nargs="?", help="a second one: show the differences")
    add("--weights", action="store_true", help="with OTHER: compare all weights, too, one pair of tensors at a time")
    add("--show", type=int, default=0, metavar="N", help="datasets only: print the first N training windows as text")
    add("--block-size", type=int, default=128, metavar="N", help="tokens in a window of --show")
    reproduce = "runs only: print the commands that repeat the run, and what differs here"
    add("--reproduce", action="store_true", help=reproduce)
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    from mypt.inspection.describe import describe, describe_dataset, describe_diff

    if args.reproduce:
        return _reproduce(args)
    if args.other is not None:
        report, words = _diff(args), describe_diff
    elif args.weights:
        raise MyPTError("--weights compares two checkpoints; name a second one")
    elif _is_dataset(path := _found(args.path)):
        report, words = _dataset_report(path, args), describe_dataset
    else:
        report, words = _checkpoint_report(path, args), describe
    if args.json:
        say_json(report)
    else:
        _print_blocks(words(report))
    return 1 if report.get("problems") else 0


def _reproduce(args: argparse.Namespace) -> int:
    from mypt.inspection.reproduce import describe_reproduction, reproduce

    if args.other is not None or args.weights or args.show:
        raise MyPTError("--reproduce is about one run; leave out OTHER, --weights and --show")
    if not Path(args.path).is_dir():
        raise MyPTError(f"there is no folder {args.path}; name a run folder")
    report = reproduce(Path(args.path))
    if args.json:
        say_json(report)
    else:
        say(*describe_reproduction(report))
    return 1 if report["problems"] else 0


def _found(name: str) -> Path:
    """The path itself, or the folder of the hub's cache where `name` is the id of a model in it."""
    from mypt.checkpoints.model_config import cached_model
    from mypt.inspection.checkpoint import is_model_or_run
    from mypt.legacy.checkpoint import is_original
    from mypt.shards.format import METADATA_NAME

    path = Path(name)
    kinds = "a run folder, a checkpoint folder or a dataset directory"
    if not path.exists():
        if found := cached_model(name):
            return found
        raise MyPTError(f"{path} does not exist, nor is it a model in the hub's cache; name {kinds}")
    if not (_is_dataset(path) or is_original(path) or is_model_or_run(path)):
        raise MyPTError(
            what_to_do_with_gguf(path)
            or f"{path} holds neither config.json nor checkpoint-N (a model) nor {METADATA_NAME} (a dataset); "
            f"name {kinds}"
        )
    return path


def _is_dataset(path: Path) -> bool:
    from mypt.legacy.shards import find_shards
    from mypt.shards.format import METADATA_NAME

    return (path / METADATA_NAME).is_file() or find_shards(path) is not None


def _diff(args: argparse.Namespace) -> dict:
    first, second = _found(args.path), _found(args.other)
    datasets = _is_dataset(first) + _is_dataset(second)
    if datasets == 1:
        raise MyPTError(f"{first} and {second}: one is a dataset, the other a model; name two of a kind")
    if args.show or (datasets and args.weights):
        raise MyPTError(f"{'--show' if args.show else '--weights'} has no meaning here; leave it out")
    from mypt.inspection.diff import diff_checkpoints, diff_datasets

    return diff_datasets(first, second) if datasets else diff_checkpoints(first, second, weights=args.weights)


def _dataset_report(path: Path, args: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from mypt.inspection.dataset import inspect_dataset

    report = inspect_dataset(path)
    if args.show:
        from mypt.streams.shard_stream import decoded_windows
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
    from mypt.streams.ledger import saved_ledger

    report = inspect_checkpoint(path)
    if report["coverage"]:
        report["coverage"]["seen"] = saved_ledger(report["coverage"])
    return report


def _print_blocks(blocks: Iterable) -> None:
    for block in blocks:
        if isinstance(block, str):
            say(block)
        else:
            print_table("", *block)
