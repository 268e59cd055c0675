"""Whatever is typed, the answer is the result or one line and an exit code."""

import errno
import os
import subprocess
import sys

import pytest

from mypt.cli.main import COMMANDS, GROUPS, build_parser, main
from mypt.errors import CheckFailed, MyPTError


@pytest.fixture
def failing(monkeypatch):
    """`mypt presets` that ends with the given exception."""

    def fail_with(error):
        def run(args):
            raise error

        monkeypatch.setattr("mypt.cli.presets.run", run)

    return fail_with


def exit_code(*argv: str) -> int:
    try:
        return main(list(argv))
    except SystemExit as stop:
        return stop.code


def test_success_is_zero(capsys):
    assert main(["presets", "tiny"]) == 0
    assert capsys.readouterr().err == ""


def test_a_failed_check_is_one_and_bad_input_two(failing, capsys):
    for error, code in ((CheckFailed("no"), 1), (MyPTError("wrong"), 2)):
        failing(error)
        assert main(["presets"]) == code
        assert capsys.readouterr().err == f"mypt presets: {error}\n"


def test_debug_shows_where_it_came_from(failing):
    failing(MyPTError("wrong"))
    with pytest.raises(MyPTError, match="wrong"):
        main(["presets", "--debug"])


def test_a_bug_is_not_hidden(failing):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["presets"])


def test_a_full_disk_is_no_traceback(failing, capsys):
    failing(OSError(errno.ENOSPC, "No space left on device", "out.bin"))
    assert main(["presets"]) == 2
    assert capsys.readouterr().err == "mypt presets: out.bin: the disk is full; free some space\n"
    failing(OSError(errno.EACCES, "Permission denied", "out.bin"))
    assert main(["presets"]) == 2
    assert capsys.readouterr().err == "mypt presets: out.bin: Permission denied\n"


def test_an_interruption_is_no_traceback(failing, capsys):
    failing(KeyboardInterrupt())
    assert main(["presets"]) == 130
    assert capsys.readouterr().err == "mypt presets: interrupted\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["presets", "--nonsense"],
        ["evaluate"],
        ["evaluate", "model", "--data", "a=b", "--training.max_steps=3"],
        ["generate", "--max-new-tokens", "many"],
        ["plan", "--tokens", "many"],
    ],
)
def test_what_is_not_understood_exits_with_two(argv, capsys):
    assert exit_code(*argv) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "nowhere.yaml"],
        ["train", "recipes/pretrain.yaml", "--bogus"],
        ["train", "recipes/pretrain.yaml", "--training.max_steps", "3"],
        ["train", "recipes/pretrain.yaml", "--data.train=[1"],
        ["train", "recipes/pretrain.yaml", "--trainning.max_steps=3"],
        ["plan", "nowhere.yaml"],
        ["presets", "nothing-like-it"],
        ["inspect", "nowhere"],
    ],
)
def test_bad_input_is_one_line_and_two(argv, capsys, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    assert exit_code(*argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"mypt {argv[0]}: ")


def test_every_command_has_help_with_units_and_defaults(capsys):
    for name in COMMANDS:
        assert exit_code(name, "--help") == 0
        printed = capsys.readouterr().out
        assert "default" in printed and "--debug" in printed and "None" not in printed
    assert exit_code("--help") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80


def test_help_lists_each_command_once_under_its_group(capsys):
    assert exit_code("--help") == 0
    listed = {}
    for block in capsys.readouterr().out.split("\n\n"):
        head, *lines = block.splitlines()
        listed[head.rstrip(":")] = tuple(line.split()[0] for line in lines)
    assert {group: listed.get(group) for group in GROUPS} == GROUPS
    assert sorted(COMMANDS) == sorted({name for names in GROUPS.values() for name in names})


def test_commands_start_without_waiting():
    assert build_parser().parse_args(["presets"]).command == "presets"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["presets", "--json"], ["presets", "tiny"]])  # more and less than a buffer holds
def test_a_reader_that_goes_away_is_no_error(argv, unbuffered):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "mypt", *argv],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write)
    assert (process.communicate()[1], process.returncode) == (b"", 0)


@pytest.mark.parametrize("argv", [["presets", "--json"], ["presets", "tiny"], ["--help"]])
def test_an_output_that_is_full_is_one_line(argv):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "mypt", *argv], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "standard output: the disk is full" in done.stderr
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "mypt", *argv], stderr=full, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stdout


def test_a_name_that_is_not_utf8_where_a_library_needs_it_is_one_line(tmp_path, capsys):
    out, text = tmp_path / "caf\udce9", tmp_path / "text.txt"
    text.write_text("some words\n" * 40)
    data = tmp_path / "data"
    assert main(["prepare", "--source", str(text), "--out", str(data), "--tokenizer", "char"]) == 0
    assert main(["tokenizer", str(data), "--add-tokens", "<x>", "--out", str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert r"caf\udce9" in last and last.endswith("takes names in UTF-8 only; rename it")
