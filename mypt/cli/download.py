"""`mypt download URI DIR`: bring a model from the Hugging Face hub."""

import argparse

from mypt.terminal import say, say_json

HELP = "download a model from the Hugging Face hub and verify it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="hf://user/name, or hf://user/name@revision (branch, tag or commit)")
    parser.add_argument("directory", metavar="DIR", help="folder to make")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from mypt.storage.card import describe
    from mypt.storage.uri import parse_uri

    received = parse_uri(args.uri).download(args.directory)
    model = describe(Path(args.directory))
    if args.json:
        say_json({"uri": args.uri, "directory": args.directory, "model": model, **received._asdict()})
        return
    for name, value in model.items():
        say(f"{name:<13} {value}")
    say(f"{'commit':<13} {received.commit}")
    say("", f"{len(received.files)} files, {sum(received.files.values()):,} bytes in {args.directory}")
    if received.left_out:
        say(f"left on the hub: {', '.join(received.left_out)}")
