"""What every module owes its reader."""

import ast
from pathlib import Path

import pytest

import mypt

ROOT = Path(mypt.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert docstring.splitlines(), f"{path} has no docstring"
    assert docstring.splitlines()[0].endswith((".", ":", "?")), f"{path} begins without a sentence"


def test_no_drawer_for_odds_and_ends():
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "misc"}


def test_a_command_is_a_module():
    from mypt.cli.main import COMMANDS

    shared = {"__init__", "main", "numbers", "dataset_options", "frameworks", "replay"}
    files = {path.stem for path in (ROOT / "cli").glob("*.py")} - shared
    assert set(COMMANDS) == files
