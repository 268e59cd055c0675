"""Parse `mypt COMMAND ...`, run the command's module, turn user errors into one message and an exit code."""

import argparse
import errno
import importlib
import os
import sys
from contextlib import suppress

from mypt.errors import MyPTError, shown
from mypt.planning.numbers import finite, whole
from mypt.terminal import usable_streams

# In the order in which a newcomer meets them.
COMMANDS = (
    "prepare",
    "verify",
    "append",
    "subset",
    "convert",
    "tokenizer",
    "plan",
    "presets",
    "estimate",
    "train",
    "evaluate",
    "generate",
    "inspect",
    "export",
    "merge",
    "upload",
    "download",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mypt",
        description="Train GPT models from scratch and adapt them to a domain without losing what they knew.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"mypt.cli.{name}")
        command = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        command.register("type", int, whole)  # for every option with type=int
        command.register("type", float, finite)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 (done), 1 (a check failed) or 2 (bad input), whatever the standard streams are."""
    with usable_streams():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # what it can't show does not end a command
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        if not hasattr(args, "overrides"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides = rest  # --section.key=value, checked against the recipe's names
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except MyPTError as error:
        if args.debug:
            raise
        print(f"mypt {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe (`mypt generate | head`) went away: nothing was lost, nothing is left to flush at exit.
        with suppress(OSError):  # an object that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        reason = "the disk is full; free some space" if error.errno == errno.ENOSPC else error.strerror or str(error)
        name = str(error.filename or "")
        place = f"{name if len(name) < 300 else shown(name)}: " if name else ""
        print(f"mypt {args.command}: {place}{reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mypt {args.command}: interrupted", file=sys.stderr)
        return 130
