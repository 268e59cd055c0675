"""`mypt upload DIR URI`: send a model to the Hugging Face hub."""

import argparse

from mypt.terminal import print_table, say, say_json

HELP = "upload a model with its card to the Hugging Face hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="run folder, its best/, a checkpoint-N or an adapter folder")
    add("uri", metavar="URI", help="hf://user/name, or hf://user/name@branch; created if absent")
    visibility = parser.add_mutually_exclusive_group()
    private = "insist on a private repository (default: private if it is new, else as it is)"
    visibility.add_argument("--private", action="store_true", default=None, help=private)
    public = "insist on a public repository"
    visibility.add_argument("--public", dest="private", action="store_false", default=None, help=public)
    add("--message", metavar="TEXT", default="Upload with mypt", help="title of the commit")
    add("--license", metavar="ID", help="license in the card, such as apache-2.0")
    add("--dry-run", action="store_true", help="list what would be sent and print the card; nothing is sent")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    from mypt.storage.uri import parse_uri

    store = parse_uri(args.uri)
    files = store.outgoing(args.directory, license=args.license)
    sizes = {file.name: file.size for file in files}
    if args.dry_run:
        card = next(file.content for file in files if file.name == "README.md").decode()
        report = {"uri": args.uri, "files": sizes, "bytes": sum(sizes.values()), "card": card}
        if args.json:
            say_json(report)
            return
        print_table(f"{args.uri} would get", ["file", "bytes"], [[name, f"{size:,}"] for name, size in sizes.items()])
        say("", f"{len(sizes)} files, {sum(sizes.values()):,} bytes; nothing was sent", "")
        say(*card.removesuffix("\n").split("\n"))
        return
    is_private = store.connect(private=args.private)
    done = store.send(files, message=args.message)
    if args.json:
        report = {"uri": args.uri, "private": is_private, "files": sizes, "bytes": sum(sizes.values())}
        say_json(report | done._asdict())
        return
    states = {name: state for state in ("sent", "unchanged") for name in getattr(done, state)}
    rows = [[name, f"{size:,}", states[name]] for name, size in sizes.items()]
    print_table(args.uri, ["file", "bytes", ""], rows + [[name, "", "removed"] for name in done.removed])
    say(
        "",
        f"{len(done.sent)} of {len(sizes)} files sent, {sum(sizes[name] for name in done.sent):,} bytes; "
        f"commit {done.commit[:8]}, {'private' if is_private else 'public'}",
    )
