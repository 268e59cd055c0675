"""`mypt download URI DIR`: fetch a model, a checkpoint or a dataset from a store."""

import argparse

from mypt.terminal import say, say_json

HELP = "fetch a model or dataset from the hub or an object store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    uri = (
        "hf://user/name, or hf://user/name@revision (branch, tag or commit); or what `mypt upload` put to "
        "s3://bucket/path, gs://bucket/path, az://container/path or file:///path"
    )
    parser.add_argument("uri", metavar="URI", help=uri)
    parser.add_argument("directory", metavar="DIR", help="folder to make")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from mypt.inspection.dataset import short_description
    from mypt.storage.card import describe_model
    from mypt.storage.export_files import describe_export, is_export
    from mypt.storage.run_files import is_dataset
    from mypt.storage.uri import parse_uri

    store, folder = parse_uri(args.uri), Path(args.directory)
    received = store.download(folder)
    if is_dataset(folder):
        kind, found = "dataset", short_description(folder)
    elif is_export(folder):
        kind, found = "export", describe_export(folder)
    else:
        kind, found = "model", describe_model(folder)
    if args.json:
        say_json({"uri": args.uri, "directory": args.directory, kind: found, **received._asdict()})
        return
    for name, value in found.items():
        say(f"{name:<13} {value}")
    say(f"{store.receipt:<13} {received.commit}")
    say("", f"{len(received.files)} files, {sum(received.files.values()):,} bytes in {args.directory}")
    if received.left_out:
        say(f"left {'on the hub' if args.uri.startswith('hf://') else 'in the store'}: {', '.join(received.left_out)}")
