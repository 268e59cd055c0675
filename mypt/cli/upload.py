"""`mypt upload DIR URI`: send a model, a run, a checkpoint or a dataset to a store."""

import argparse
from pathlib import Path

from mypt.errors import MyPTError
from mypt.terminal import print_table, say, say_json

HELP = "send a model, run or dataset to the hub or an object store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="run folder, its best/, a checkpoint-N, an adapter, an export or a dataset")
    uri = (
        "hf://user/name[@branch], which is created if absent and takes models; or s3://bucket/path, gs://bucket/path, "
        "az://container/path, file:///path, which take all of them"
    )
    add("uri", metavar="URI", help=uri)
    visibility = parser.add_mutually_exclusive_group()
    private = "insist on a private repository of the hub (default: private if it is new, else as it is)"
    visibility.add_argument("--private", action="store_true", default=None, help=private)
    public = "insist on a public repository of the hub"
    visibility.add_argument("--public", dest="private", action="store_false", default=None, help=public)
    add("--message", metavar="TEXT", default="Upload with mypt", help="title of the commit, or a note in the manifest")
    add("--license", metavar="ID", help="license in the card, such as apache-2.0")
    compress = "pack each file for the transfer; `mypt download` unpacks and verifies it (not to the hub)"
    add("--compress", choices=("zstd",), help=compress)
    add("--dry-run", action="store_true", help="list what would be sent and print the card; nothing is sent")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.storage.run_files import recorded_run
    from mypt.storage.uri import parse_uri

    store = parse_uri(args.uri)
    if args.compress:
        store.require_packing()
    folder = Path(args.directory)
    if not folder.is_dir():
        raise MyPTError(f"{folder} holds no model: there is no such folder")
    parts = {name: store.below(name).outgoing(part, license=args.license) for name, part in store.parts(folder).items()}
    sizes = {_inside(name, file.name): file.size for name, files in parts.items() for file in files}
    total = sum(sizes.values())
    if args.dry_run:
        cards = [file.content for files in parts.values() for file in files if file.name == "README.md"]
        report = {"uri": args.uri, "files": sizes, "bytes": total}
        card = cards[-1].decode() if cards and isinstance(cards[-1], bytes) else None
        if args.json:
            say_json(report | {"card": card})
            return
        print_table(f"{args.uri} would get", ["file", "bytes"], [[name, f"{size:,}"] for name, size in sizes.items()])
        say("", f"{len(sizes)} files, {total:,} bytes; nothing was sent", "")
        if card:
            say(*card.removesuffix("\n").split("\n"))
        return
    is_private = store.connect(private=args.private)
    if store.keeps_runs and (own := recorded_run(folder)):
        store.claim(own, resume=True)
    done = {
        name: store.below(name).send(files, message=args.message, compress=bool(args.compress))
        for name, files in parts.items()
    }
    receipt = [*done.values()][-1].commit
    listed = {
        state: [_inside(name, file) for name, one in done.items() for file in getattr(one, state)]
        for state in ("sent", "unchanged", "removed")
    }
    stored = sum(one.stored for one in done.values())
    if args.json:
        report = {"uri": args.uri, "private": is_private, "files": sizes, "bytes": total, "commit": receipt} | listed
        say_json(report | ({"stored_bytes": stored} if args.compress else {}))
        return
    states = {name: state for state in ("sent", "unchanged") for name in listed[state]}
    rows = [[name, f"{size:,}", states[name]] for name, size in sizes.items()]
    print_table(args.uri, ["file", "bytes", ""], rows + [[name, "", "removed"] for name in listed["removed"]])
    sent = sum(sizes[name] for name in listed["sent"])
    visibility = "" if is_private is None else ", private" if is_private else ", public"
    ratio = f" as {stored:,} (zstd, {sent / stored:.2f} to 1)" if args.compress and stored else ""
    say(
        "",
        f"{len(listed['sent'])} of {len(sizes)} files sent, {sent:,} bytes{ratio}; "
        f"{store.receipt} {receipt[:8]}{visibility}",
    )


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
