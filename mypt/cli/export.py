"""`mypt export MODEL --to llama --format gguf --out DIR`: write a model for other programs, and compare the two."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.cli.numbers import byte_count
from mypt.conversion.families import TARGETS
from mypt.conversion.formats import DTYPES, FORMATS, SHORT
from mypt.terminal import print_table, say, say_json

HELP = "write a model for other programs: safetensors, ONNX, GGUF, int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, checkpoint folder or hub id")
    target = "architecture; auto: the one that computes the same with the fewest parameters added"
    add("--to", choices=("auto", *TARGETS), default="auto", help=target)
    add("--format", choices=FORMATS, default="safetensors", help="file format")
    add("--out", required=True, metavar="DIR", help="folder to make; it must not exist, or be empty")
    dtype = f"dtype of the weights (default: as they are): {', '.join(DTYPES)}; or {', '.join(SHORT)}"
    add("--dtype", choices=(*DTYPES, *SHORT), metavar="TYPE", help=dtype)
    shards = "largest file of safetensors, such as 500M or 5G (bytes; default: 50 GB)"
    add("--max-shard-size", type=byte_count, metavar="SIZE", help=shards)
    text = "text file to measure bits/byte on, its first 512 tokens (default: Python's documentation)"
    add("--text", metavar="FILE", help=text)
    add("--json", action="store_true", help="print the report as JSON; it is also in DIR/export.json")


def run(args: argparse.Namespace) -> None:
    from mypt.conversion.export import export_model, require_export

    require_export(args.model, args.out, args.dtype, args.format, args.max_shard_size, args.text)

    load_transformers()
    options = {"max_shard_size": args.max_shard_size, "text": args.text}
    report = export_model(args.model, args.out, args.to, args.dtype, args.format, **options)
    (say_json if args.json else _print_report)(report)


def _print_report(report: dict) -> None:
    head = f"{report['from']} -> {report['to']}, {report['parameters']:,} parameters"
    say(f"{head}, {report['format']} {report['dtype']}: {report['out']}")
    if report["added_biases"]:
        say(f"biases that the model does not have, written as zeros: {', '.join(report['added_biases'])}")
    for note in report["notes"]:
        say(f"note: {note}")
    say()
    rows = [
        [name, f"{report['architecture'][name]:.1e}", f"{difference:.1e}"]
        for name, difference in report["differences"].items()
    ]
    source, result = report["source"], report["result"]
    print_table("", ["largest difference of a logit", report["to"], "the files"], rows)
    say()
    say(f"tolerance     {report['tolerance']:.1e} (the largest logit is {report['largest_logit']:.1f})")
    equal, tokens = "equal" if report["greedy_equal"] else "NOT equal", report["greedy_tokens"]
    say(f"greedy text   {equal}, {tokens} tokens; {report['greedy_as_source']} as the source's")
    if report["rounding"] is not None:
        say(f"rounding      {report['rounding']:.1e}: what {report['dtype']} changes in a logit")
    say()
    rows = [["tokens/s, 1 thread", *(f"{side['tokens_per_second']:.1f}" for side in (source, result))]]
    rows += [["MB", *(f"{side['bytes'] / 1e6:.2f}" for side in (source, result))]]
    if source["bits_per_byte"] is not None:
        rows.insert(0, ["bits/byte", *(f"{side['bits_per_byte']:.4f}" for side in (source, result))])
    print_table("", ["", f"source ({source['runtime']})", f"files ({result['runtime']})"], rows)
    if report["format"] == "gguf":
        say("", f"ollama: cd {report['out']} && ollama create NAME -f Modelfile")
