"""Parse `mypt COMMAND ...`, run the command's module, turn user errors into one message and an exit code."""

import argparse
import importlib
import sys
from typing import NoReturn

from mypt import interrupts
from mypt.cli.numbers import finite, whole
from mypt.errors import MyPTError, shown
from mypt.files import is_disk_full
from mypt.terminal import flushed_output, one_line, say, show_tracebacks, usable_streams, visible_libraries

# The commands that `mypt --help` lists, in the order in which a newcomer meets it.
GROUPS = {
    "data": ("prepare", "verify", "append", "subset", "tokenizer"),
    "model": ("presets", "estimate", "convert", "merge", "interpolate"),
    "train": ("plan", "train", "sweep", "ladder"),
    "use": ("evaluate", "generate", "demo", "inspect", "report", "export", "upload", "download"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


class Parser(argparse.ArgumentParser):
    """Prints its errors, which repeat what was typed, in one line that a terminal shows as it is."""

    def print_help(self, file=None) -> None:
        say(*self.format_help().removesuffix("\n").split("\n"), error=file is sys.stderr)

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option that has one and does not describe it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        described = action.default is None or "(default" in (action.help or "")
        return action.help if described else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    modules = {name: importlib.import_module(f"mypt.cli.{name}") for name in COMMANDS}
    parser = Parser(
        prog="mypt",
        usage="mypt [-h] COMMAND ...",
        description="Train GPT models from scratch and adapt them to a domain\nwithout losing what they knew.",
        epilog="\n".join(
            f"\n{group}:\n" + "\n".join(f"  {name:<11} {modules[name].HELP}" for name in names)
            for group, names in GROUPS.items()
        )
        + "\n\n`mypt COMMAND --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(
        prog="mypt", dest="command", metavar="COMMAND", help=argparse.SUPPRESS, required=True
    )
    for name, module in modules.items():
        command = subparsers.add_parser(
            name,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            formatter_class=Help,
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
    show_tracebacks()
    with usable_streams(), visible_libraries():
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # what it can't show does not end a command
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    name, debug = "mypt", False
    try:
        with interrupts.RaiseKeyboardInterrupt(), flushed_output():
            parser = build_parser()
            args, rest = parser.parse_known_args(argv)
            name, debug = f"mypt {args.command}", args.debug
            if rest:
                if not hasattr(args, "overrides"):
                    parser.error(f"unrecognized arguments: {' '.join(rest)}")
                args.overrides = rest  # --section.key=value, checked against the recipe's names
            return args.run(args) or 0
    except MyPTError as error:
        if debug:
            raise
        say(f"{name}: {one_line(error)}", error=True)
        return error.exit_code
    except BrokenPipeError:
        return 0  # the reader of a pipe (`mypt generate | head`) went away: nothing was lost
    except OSError as error:
        if debug:
            raise
        reason = "the disk is full; free some space" if is_disk_full(error) else error.strerror or str(error)
        path = str(error.filename or "")
        place = f"{path if len(path) < 300 else shown(path)}: " if path else ""
        say(f"{name}: {one_line(f'{place}{reason}')}", error=True)
        return 2
    except UnicodeEncodeError as error:
        if debug or error.reason != "surrogates not allowed":
            raise
        where = one_line(error.object)
        say(f"{name}: {where}: the library for this file takes names in UTF-8 only; rename it", error=True)
        return 2
    except KeyboardInterrupt:
        say(f"{name}: interrupted", error=True)
        return interrupts.CODE
