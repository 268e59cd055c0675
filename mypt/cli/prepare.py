"""`mypt prepare`: tokenize text into a dataset directory."""

import argparse
import json
from pathlib import Path

from mypt.cli.dataset_options import add_reading, add_training, given, reading, training
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
    # Where a default depends on the files or on another flag, the help states it.
    document = "what a document is; a block ends at a blank line (default: a file, or a block in a text file above "
    add("--document", choices=("file", "block", "line"), help=f"{document}1 MB unless --val-split is tail)")
    normalize = "Unicode NFC, line ends, no blanks at line ends (default: yes, but no with --val-split tail)"
    add("--normalize", action=argparse.BooleanOptionalAction, help=normalize)
    units = ("document", "line")
    add("--filter", choices=units, default="document", help="drop documents, or lines, that are empty or not text")
    add("--no-filter", action="store_true", help="keep what is empty or not text")
    add("--dedup", choices=units, default="document", help="drop documents, or lines, that came before")
    add("--no-dedup", action="store_true", help="keep what occurs more than once")
    near = "drop documents whose similarity (Jaccard, of word 5-grams) with an earlier one is S or more, e.g. 0.8"
    add("--near-dedup", type=float, metavar="S", help=near)
    add("--lowercase", action="store_true", help="lower-case all text")
    add("--show-dropped", action="store_true", help="print the beginnings of the first documents that were dropped")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.inspection.dataset import summary
    from mypt.preparation.prepare import prepare_dataset

    names = ("document", "normalize", "near_dedup", "retrain", "tokens_per_shard", "val_fraction", "val_split")
    manifest = prepare_dataset(
        args.source,
        args.out,
        args.tokenizer,
        filter=None if args.no_filter else args.filter,
        dedup=None if args.no_dedup else args.dedup,
        **reading(args),
        **training(args),
        **given(args, *names),
    )
    if args.json:
        say_json(summary(args.out, manifest) | {"report": manifest.report})
        return
    _print_report(args.out, manifest)
    if args.show_dropped:
        _print_dropped(Path(args.out))


def _print_report(out: str, manifest) -> None:
    from mypt.tokenization.statistics import describe_loss

    report = manifest.report
    counts = {name: (s.documents, s.tokens, s.bytes, len(s.shards)) for name, s in manifest.splits.items()}
    rows = [[name, *(f"{number:,}" for number in numbers)] for name, numbers in counts.items()]
    print_table(out, ["split", "documents", "tokens", "bytes", "shards"], rows)
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
        unknown = report["unknown_ids"]
        say(f"unknown       {unknown:,} ids, {unknown / report['tokens']:.2%} of the tokens")
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
