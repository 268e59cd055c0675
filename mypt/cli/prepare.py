"""`mypt prepare`: text to a dataset directory."""

import argparse
import json
from pathlib import Path

from mypt.cli.numbers import whole
from mypt.terminal import print_table, say, say_json

HELP = "tokenize text files or HF datasets into a directory of shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_reading(parser)
    add("--out", required=True, metavar="DIR", help="dataset directory to make")
    add("--tokenizer", default="bpe", help="bpe (trained on the text), char, gpt2, a directory or a hub id")
    add_training(parser)
    add("--retrain", action="store_true", help="train the tokenizer and write the shards again even if they exist")
    add("--tokens-per-shard", type=int, default=10_000_000, metavar="N", help="tokens in a shard file")
    add("--val-fraction", type=float, default=0.1, metavar="F", help="share of the text held out as val; 0 for none")
    add("--val-split", choices=("hash", "tail"), default="hash", help="val documents: by hash, or the end of the text")
    # Where a default depends on the files or on another flag, the help says it itself.
    add(
        "--document",
        choices=("file", "block", "line"),
        default=argparse.SUPPRESS,
        help="what a document is; a block ends at a blank line (default: a file, or a block in a text file above 1 MB "
        "unless --val-split is tail)",
    )
    add(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="Unicode NFC, line ends, no blanks at line ends (default: yes, but no with --val-split tail)",
    )
    add(
        "--filter",
        choices=("document", "line"),
        default="document",
        help="drop documents, or lines, that are empty or not text",
    )
    add("--no-filter", action="store_true", help="keep what is empty or not text")
    add("--dedup", choices=("document", "line"), default="document", help="drop documents, or lines, that came before")
    add("--no-dedup", action="store_true", help="keep what occurs more than once")
    add(
        "--near-dedup",
        type=float,
        default=argparse.SUPPRESS,
        metavar="S",
        help="drop documents whose similarity (Jaccard, of word 5-grams) with an earlier one is S or more, e.g. 0.8",
    )
    add("--lowercase", action="store_true", help="lower-case all text")
    add("--show-dropped", action="store_true", help="print the beginnings of the first documents that were dropped")
    add("--json", action="store_true", help="print the report as JSON")


def add_training(parser: argparse.ArgumentParser) -> None:
    """What every command takes that trains a tokenizer."""
    add = parser.add_argument
    add("--vocab-size", type=_ids_or_auto, default="auto", metavar="N|auto", help="ids of a bpe tokenizer")
    add("--min-vocab-size", type=int, default=5000, metavar="N", help="lower bound of an automatic vocabulary, ids")
    add("--max-vocab-size", type=int, default=50_000, metavar="N", help="upper bound of an automatic vocabulary, ids")
    add(
        "--tokenizer-train-examples",
        type=int,
        default=10_000,
        metavar="N",
        help="examples that train a bpe, <= 10 kB each",
    )
    add("--seed", type=int, default=42, help="picks the examples that train a bpe")


def add_reading(parser: argparse.ArgumentParser, choice: argparse._ActionsContainer | None = None) -> None:
    """What every command takes that reads text; `choice` is a group of which --source is one."""
    add = parser.add_argument
    (choice or parser).add_argument(
        "--source",
        nargs="+",
        required=choice is None,
        default=argparse.SUPPRESS,
        metavar="PATH_OR_GLOB",
        help="files (text, .jsonl, .json, .csv, .tsv, .parquet, .arrow; also .gz, .zst, .xz, .bz2), globs, "
        "directories of such records, HF dataset directories, hf://name[:config][@revision][#split]",
    )
    add("--text-column", default="text", metavar="NAME", help="column of records that holds the text")
    add("--max-documents", type=int, default=argparse.SUPPRESS, metavar="N", help="read the first N documents only")
    add(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a record or file that cannot be read: stop, or skip it, count it and list it in DIR/skipped.jsonl",
    )
    add("--workers", type=int, default=argparse.SUPPRESS, metavar="N", help="processes (default: one for each core)")


def run(args: argparse.Namespace) -> None:
    from mypt.inspection.dataset import summary
    from mypt.preparation.prepare import prepare_dataset
    from mypt.preparation.workers import available_cores

    optional = ("document", "normalize", "max_documents", "near_dedup", "workers")
    chosen = {name: getattr(args, name) for name in optional if hasattr(args, name)}
    manifest = prepare_dataset(
        args.source,
        args.out,
        args.tokenizer,
        vocab_size=args.vocab_size,
        min_vocab_size=args.min_vocab_size,
        max_vocab_size=args.max_vocab_size,
        tokenizer_train_examples=args.tokenizer_train_examples,
        retrain=args.retrain,
        text_column=args.text_column,
        tokens_per_shard=args.tokens_per_shard,
        val_fraction=args.val_fraction,
        val_split=args.val_split,
        filter=None if args.no_filter else args.filter,
        dedup=None if args.no_dedup else args.dedup,
        lowercase=args.lowercase,
        seed=args.seed,
        on_error=args.on_error,
        **{"workers": available_cores(), **chosen},
    )
    if args.json:
        say_json(summary(args.out, manifest) | {"report": manifest.report})
        return
    _print_report(args.out, manifest)
    if args.show_dropped:
        _print_dropped(Path(args.out))


def _print_report(out: str, manifest) -> None:
    from mypt.tokenization.measure import describe_loss

    report = manifest.report
    rows = [[name, s.documents, s.tokens, s.bytes, len(s.shards)] for name, s in manifest.splits.items()]
    print_table(
        out,
        ["split", "documents", "tokens", "bytes", "shards"],
        [[row[0], *(f"{number:,}" for number in row[1:])] for row in rows],
    )
    dropped = {"duplicates": report["duplicates"], **report["dropped"]}
    if "near_duplicates" in report:
        dropped["near duplicates"] = report["near_duplicates"]
    dropped |= {f"{reason} lines": count for reason, count in report.get("dropped_lines", {}).items()}
    if "skipped" in report:
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in report["skipped"].items())
        say(f"skipped       {skipped} ({Path(out) / 'skipped.jsonl'})")
    say(f"tokenizer     {report['tokenizer']}, {manifest.vocab_size:,} ids, {manifest.dtype}")
    say(f"bytes/token   {report['bytes_per_token']:.3f}")
    say(f"dropped       {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())}")
    say(f"changed       {report['normalized']:,} normalized, {report['invalid_utf8']:,} bytes of invalid UTF-8")
    say(f"in both       {report['contaminated']:,} documents")
    if "dropped_ids" in report:
        say(f"special       {report['dropped_ids']:,} ids of special tokens in the text were dropped")
    if "unknown_ids" in report:
        say(
            f"unknown       {report['unknown_ids']:,} ids, {report['unknown_ids'] / report['tokens']:.2%} of the tokens"
        )
    if "loss" in report:
        say(f"round trip    {describe_loss(report['loss'])}")
    if "engine" in report:
        processes = f"{report['workers']} process" + "es" * (report["workers"] > 1)
        say(f"encoder       {report['engine']}, {report['encode_mb_per_second']:.0f} MB/s")
        say(f"time          {report['seconds']:.1f} s, {report['mb_per_second']:.2f} MB/s, {processes}")
        if report["peak_memory_mb"]:
            say(f"memory        {report['peak_memory_mb']:,} MB at most in a process")
    say(f"next          mypt plan --tokens {manifest.splits['train'].tokens}")


def _print_dropped(out: Path) -> None:
    """The beginnings of what was dropped, by reason, as JSON strings: what is no text must not reach the terminal."""
    from mypt.preparation.report import read_examples

    for reason, texts in read_examples(out).items():
        for text in texts:
            say(f"{reason:13} {json.dumps(text, ensure_ascii=False)}")


def _ids_or_auto(text: str) -> int | str:
    return text if text == "auto" else whole(text)
