"""Options and printing that the commands for datasets and tokenizers share."""

import argparse

from mypt.cli.numbers import positive, whole
from mypt.terminal import print_table, say


def given(args: argparse.Namespace, *names: str) -> dict:
    """Return the options of these names that were given or have a default."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def add_reading(parser: argparse.ArgumentParser, choice: argparse._ActionsContainer | None = None) -> None:
    """Add the options of reading text; `choice`: the group that --source belongs to."""
    add = parser.add_argument
    files = (
        "files (text, .jsonl, .json, .csv, .tsv, .parquet, .arrow; also .gz, .zst, .xz, .bz2), globs, directories of "
        "such records, HF dataset directories, hf://name[:config][@revision][#split], and such files, globs and "
        "directories in object stores (s3://, gs://, az://)"
    )
    (choice or parser).add_argument("--source", nargs="+", required=choice is None, metavar="PATH_OR_GLOB", help=files)
    add("--text-column", default="text", metavar="NAME", help="column of records that holds the text")
    add("--max-documents", type=int, metavar="N", help="read the first N documents only")
    skip = "at a record or file that cannot be read: stop, or skip it, count it and list it in DIR/skipped.jsonl"
    add("--on-error", choices=("stop", "skip"), default="stop", help=skip)
    add("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    add("--cache-dir", metavar="DIR", help="copies of files in object stores (default: ~/.cache/mypt)")
    add("--cache-limit", type=positive, default=50, metavar="GB", help="size of all these copies, GB")


def reading(args: argparse.Namespace) -> dict:
    """Return the options of `add_reading` but the source."""
    from mypt.hardware.machine import available_cpus
    from mypt.remote.cache import use_cache

    use_cache(args.cache_dir, args.cache_limit)
    return {"workers": available_cpus()} | given(args, "text_column", "max_documents", "on_error", "workers")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of training a tokenizer."""
    add = parser.add_argument
    add("--vocab-size", type=_ids_or_auto, default="auto", metavar="N|auto", help="ids of a bpe tokenizer")
    add("--min-vocab-size", type=int, default=5000, metavar="N", help="lower bound of an automatic vocabulary, ids")
    add("--max-vocab-size", type=int, default=50_000, metavar="N", help="upper bound of an automatic vocabulary, ids")
    examples = "examples that train a bpe, <= 10 kB each"
    add("--tokenizer-train-examples", type=int, default=10_000, metavar="N", help=examples)
    add("--seed", type=int, default=42, help="picks the examples that train a bpe")


def training(args: argparse.Namespace) -> dict:
    """Return the options of `add_training`, and --lowercase."""
    names = ("vocab_size", "min_vocab_size", "max_vocab_size", "tokenizer_train_examples", "seed", "lowercase")
    return given(args, *names)


def _ids_or_auto(text: str) -> int | str:
    return text if text == "auto" else whole(text)


def print_dataset(report: dict) -> None:
    """Print a `mypt.inspection.dataset.summary`: a dataset's splits, and its sources if there are several."""
    counts = ["documents", "tokens", "bytes", "shards"]
    rows = [[name, *(f"{split[count]:,}" for count in counts)] for name, split in report["splits"].items()]
    print_table(report["path"], ["split", *counts], rows)
    say()
    if len(report["sources"]) > 1:
        rows = [[source["name"], *(f"{source[count]:,}" for count in counts[:3])] for source in report["sources"]]
        print_table("", ["source", *counts[:3]], rows)
        say()
    say(f"token ids     {report['dtype']}, vocabulary {report['vocab_size']:,}")
