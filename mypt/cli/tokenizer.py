"""`mypt tokenizer`: inspect a tokenizer, measure it on a text, train one, or add tokens to one."""

import argparse
import json
from pathlib import Path

from mypt.cli.dataset_options import add_reading, add_training, reading, training
from mypt.errors import TokenizerError
from mypt.terminal import one_line, print_table, say, say_error, say_json

HELP = "inspect, measure, train or extend a tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="TOKENIZER", help="directory of a tokenizer (dataset, checkpoint), gpt2 or a hub id")
    add_reading(parser, parser)
    add("--text", help="show the tokens of this text")
    add("--out", metavar="DIR", help="make a tokenizer in this directory, of --source or with --add-tokens")
    more = "write TOKENIZER with these added to --out: tokens, or files with one a line"
    add("--add-tokens", nargs="+", metavar="TOKEN", help=more)
    add("--tokenizer", default="bpe", metavar="KIND", help="what to make: bpe (byte-level BPE) or char (an id each)")
    add_training(parser)
    add("--lowercase", action="store_true", help="lower-case the text first")
    add("--retrain", action="store_true", help="make it again if --out holds one")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.preparation.train_tokenizer import training_record
    from mypt.tokenization.data_tokenizer import load_data_tokenizer
    from mypt.tokenization.statistics import inspect_tokenizer, loss_of, tokens_of

    adding = args.add_tokens is not None
    if adding and None in (args.name, args.out):
        raise TokenizerError("--add-tokens needs a tokenizer to add to and --out: mypt tokenizer gpt2 --add-tokens ...")
    if not adding and (args.name is None) == (args.out is None):
        raise TokenizerError("give a tokenizer to show (`mypt tokenizer gpt2`), or --source and --out to make one")
    if args.text is not None:
        _require_utf8("--text", args.text)
    if adding:
        _extend(args)
    elif args.out is not None:
        _train(args)
    name = args.out or args.name
    tokenizer = load_data_tokenizer(name)
    report = {"tokenizer": name, **inspect_tokenizer(tokenizer), "training": training_record(Path(name))}
    if args.text is not None:
        report["text"] = tokens_of(tokenizer, args.text)
        report["text_loss"] = loss_of(tokenizer, args.text)
    if (args.out is None or adding) and args.source:
        report["source"] = _measured(args, tokenizer)
    (say_json if args.json else _print_report)(report)


def _train(args: argparse.Namespace) -> None:
    from mypt.preparation.train_tokenizer import train_tokenizer

    if args.source is None:
        raise TokenizerError("--out makes a tokenizer of a text; name the text with --source")
    options = reading(args) | training(args)
    train_tokenizer(args.source, args.out, args.tokenizer, retrain=args.retrain, say=say_error, **options)


def _extend(args: argparse.Namespace) -> None:
    from mypt.tokenization.add_tokens import extend_tokenizer, read_tokens

    asked = read_tokens(args.add_tokens)
    for token in asked:
        _require_utf8("--add-tokens", token)
    new = extend_tokenizer(args.name, asked, args.out)
    words = f"{len(new)} of {len(set(asked))} tokens added to {args.name}"
    say(words if len(new) == len(set(asked)) else f"{words}; the others are one token already", error=True)


def _require_utf8(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TokenizerError(f"{option} {text!r} is not UTF-8 text; give it in UTF-8") from None


def _measured(args: argparse.Namespace, tokenizer) -> dict:
    from itertools import chain

    from mypt.preparation.units import first_documents
    from mypt.shards.settings import PrepareSettings
    from mypt.text.clean import Cleaner
    from mypt.text.sources import find_units, read_documents
    from mypt.tokenization.statistics import measure
    from mypt.tokenization.train import choose_vocab_size

    units = find_units(args.source, text_column=args.text_column, on_error=args.on_error)
    on_fault = PrepareSettings("", on_error=args.on_error).on_fault
    documents = chain.from_iterable(read_documents(unit, on_fault) for unit in units)
    if args.max_documents is not None:
        if args.max_documents < 1:
            raise TokenizerError(f"--max-documents is {args.max_documents}; it must be 1 or more")
        documents = first_documents(documents, args.max_documents)
    found = measure(tokenizer, (document.text for document in Cleaner(lowercase=args.lowercase)(documents)))
    size, reasons = choose_vocab_size(found["bytes"], args.min_vocab_size, args.max_vocab_size)
    return {**found, "automatic_vocab_size": size, "reasons": reasons}


def _print_report(report: dict) -> None:
    from mypt.tokenization.statistics import describe_loss

    merges = f", {report['merges']:,} merges" if report["merges"] else ""
    say(f"tokenizer     {report['tokenizer']}")
    say(f"kind          {report['kind']}{merges}")
    say(f"ids           {report['ids']:,}")
    for token in report["special_tokens"]:
        roles = f" ({', '.join(token['roles'])})" if token["roles"] else ""
        say(f"special       {token['id']} {one_line(token['text'])}{roles}")
    say(f"hash          {report['hash']}")
    if report["training"]:
        say(f"made of       {', '.join(report['training']['sources'])}")
        for step in (step for note in report["training"]["notes"] for step in note.split("; ")):
            say(f"              {step}")
    if report["longest_tokens"]:
        rows = [[_quoted(token["text"]), token["bytes"], token["id"]] for token in report["longest_tokens"]]
        say()
        print_table("", ["longest tokens", "bytes", "id"], rows)
    if "text" in report:
        say()
        print_table("", ["token", "id"], [[_quoted(token["text"]), token["id"]] for token in report["text"]])
        say(f"round trip    {describe_loss(report['text_loss'])}")
        if report["text_loss"]["changed_texts"]:
            say(f"decoded       {_quoted(report['text_loss']['decoded'])}")
    if "source" in report:
        _print_measured(report)


def _print_measured(report: dict) -> None:
    from mypt.tokenization.statistics import describe_loss

    found = report["source"]
    ratio = "-" if found["bytes_per_token"] is None else f"{found['bytes_per_token']:.3f}"
    say()
    say(f"text          {found['bytes']:,} bytes, {found['tokens']:,} tokens")
    say(f"bytes/token   {ratio}")
    if found["loss"]:
        say(f"round trip    {describe_loss(found['loss'])}")
    say(f"ids used      {found['ids_used']:,} of {report['ids']:,} ({found['ids_used'] / report['ids']:.1%})")
    say(f"its own bpe   {found['automatic_vocab_size']:,} ids by --vocab-size auto:")
    for step in found["reasons"]:
        say(f"              {step}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
