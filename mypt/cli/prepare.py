"""`mypt prepare`: text files to a dataset directory."""

import argparse
import json

HELP = "turn text files into a dataset directory of token shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", nargs="+", required=True, metavar="PATH_OR_GLOB", help="text, .jsonl(.gz) or .parquet files")
    add("--out", required=True, metavar="DIR", help="dataset directory to make")
    add("--tokenizer", default="bpe", help="bpe (trained on the text), char, gpt2, a directory or a hub id")
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
    add("--retrain", action="store_true", help="train the tokenizer and write the shards again even if they are there")
    add("--text-column", default="text", metavar="NAME", help="column of .jsonl and .parquet files that holds the text")
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
    add("--no-filter", action="store_true", help="keep documents that are empty or not text")
    add("--no-dedup", action="store_true", help="keep documents that occur more than once")
    add("--lowercase", action="store_true", help="lower-case all text")
    add("--max-documents", type=int, default=argparse.SUPPRESS, metavar="N", help="read the first N documents only")
    add("--seed", type=int, default=42, help="picks the examples that train a bpe")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.shards.prepare import prepare_dataset

    chosen = {name: getattr(args, name) for name in ("document", "normalize", "max_documents") if hasattr(args, name)}
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
        filter=not args.no_filter,
        dedup=not args.no_dedup,
        lowercase=args.lowercase,
        seed=args.seed,
        **chosen,
    )
    if args.json:
        splits = {
            name: {
                "tokens": split.tokens,
                "documents": split.documents,
                "bytes": split.bytes,
                "shards": len(split.shards),
            }
            for name, split in manifest.splits.items()
        }
        facts = {"out": args.out, "dtype": manifest.dtype, "vocab_size": manifest.vocab_size, "splits": splits}
        print(json.dumps(facts | {"sources": manifest.sources, "report": manifest.report}, indent=1))
        return
    _print_report(args.out, manifest)


def _print_report(out: str, manifest) -> None:
    from mypt.cli.table import print_table

    report = manifest.report
    rows = [[name, s.documents, s.tokens, s.bytes, len(s.shards)] for name, s in manifest.splits.items()]
    print_table(
        out,
        ["split", "documents", "tokens", "bytes", "shards"],
        [[row[0], *(f"{number:,}" for number in row[1:])] for row in rows],
    )
    dropped = {"duplicates": report["duplicates"], **report["dropped"]}
    print(f"tokenizer     {report['tokenizer']}, {manifest.vocab_size:,} ids, {manifest.dtype}")
    print(f"bytes/token   {report['bytes_per_token']:.3f}")
    print(f"dropped       {', '.join(f'{count:,} {reason}' for reason, count in dropped.items())}")
    print(f"changed       {report['normalized']:,} normalized, {report['invalid_utf8']:,} bytes of invalid UTF-8")
    print(f"in both       {report['contaminated']:,} documents")
    if "mb_per_second" in report:
        print(f"time          {report['seconds']:.1f} s, {report['mb_per_second']:.2f} MB/s")
    print(f"next          mypt plan --tokens {manifest.splits['train'].tokens}")


def _ids_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)
