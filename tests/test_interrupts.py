"""Ctrl-C at any moment of a command is one line and exit code 130."""

import os
import signal
import subprocess
import sys

import pytest

from mypt import interrupts

# As if a person pressed Ctrl-C when the interpreter begins to import the named module; audit hooks see every import.
PRESS = """
import os, runpy, signal, sys
sys.orig_argv = [sys.executable, "-m", "mypt", *sys.argv[2:]]
def press(event, details, left=[sys.argv[1]]):
    if event == "import" and left and details[0] == left[0]:
        left.clear()
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(press)
sys.argv[0:2] = ["-m"]
runpy.run_module("mypt", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["mypt.terminal", "json", "mypt.cli.main", "mypt.training.target", "mypt.models.presets"]
)
def test_while_the_command_is_imported(module):
    done = subprocess.run([sys.executable, "-c", PRESS, module, "presets"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr in ("mypt: interrupted\n", "mypt presets: interrupted\n")


def test_a_library_keeps_its_own_handler():
    code = "import mypt.cli.main, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    ("given", "now", "ours"),
    [
        (["-m", "mypt", "plan"], ["-m", "plan"], True),
        (["-X", "dev", "-mmypt"], ["-m"], True),
        (["-u", "/bin/mypt", "plan"], ["/bin/mypt", "plan"], True),
        (["-m", "pytest", "-m", "mypt"], ["/lib/pytest/__main__.py", "-m", "mypt"], False),
        (["-m", "pytest", "-m", "mypt"], ["-m", "-m", "mypt"], False),
        (["tool.py", "mypt"], ["tool.py", "mypt"], False),
        (["-c", "spawn_main()", "--multiprocessing-fork"], ["/bin/mypt", "plan"], False),
        (["-c", "code"], [], False),
    ],
)
def test_only_the_command_takes_it(given, now, ours, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *given])
    monkeypatch.setattr(sys, "argv", now)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.install()
        assert (signal.getsignal(signal.SIGINT) is not signal.default_int_handler) is ours
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_a_command_it_is_raised_but_within_an_import(tmp_path):
    """Raised, what is half done is tidied up; an import would be left half done by it."""
    for name, content in (
        ("half", "import os, signal\ntry:\n os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: pass\n"),
        (
            "start",
            "import sys\nsys.orig_argv, sys.argv = ['python', '-m', 'mypt'], ['-m']\nfrom mypt import interrupts\n",
        ),
    ):
        (tmp_path / f"{name}.py").write_text(content)
    for work, expected in (
        ("os.kill(os.getpid(), signal.SIGINT)", (130, "tidied\n")),
        ("import half", (130, "mypt: interrupted\n")),
    ):
        code = (
            f"import os, signal, sys; import start\nfrom mypt.interrupts import RaiseKeyboardInterrupt\n"
            f"try:\n with RaiseKeyboardInterrupt():\n  {work}\n"
            "except KeyboardInterrupt:\n print('tidied', file=sys.stderr)\n sys.exit(130)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == expected
