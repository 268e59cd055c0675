"""The package is a house of floors: a package imports itself and packages strictly below it, nothing else of mypt."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mypt

ROOT = Path(mypt.__file__).parent
FLOORS = {
    **dict.fromkeys(["errors", "files", "formatting", "interrupts", "plots", "terminal", "versions", "yaml12"], 0),
    **dict.fromkeys(["folders", "hub_errors", "json_files", "planning", "models", "remote"], 1),
    **dict.fromkeys(["recipe", "text", "legacy"], 2),
    **dict.fromkeys(["tokenization", "hardware"], 3),
    **dict.fromkeys(["shards", "checkpoints"], 4),
    **dict.fromkeys(["preparation", "inspection"], 5),
    **dict.fromkeys(["streams", "generation", "storage"], 6),
    **dict.fromkeys(["conversion", "evaluation"], 7),
    **dict.fromkeys(["training", "metrics", "demo"], 8),
    **dict.fromkeys(["sweeps", "report"], 9),
    **dict.fromkeys(["forecasting"], 10),
    **dict.fromkeys(["cli"], 11),
}
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or not path.name.startswith("__")]


def imported(path: Path) -> set[str]:
    """Full names of what a module imports from mypt, anywhere in it, relative imports resolved."""
    package = ("mypt", *path.relative_to(ROOT).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "mypt"}


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = package_of(path)
    for name in imported(path):
        package = [*name.split("."), ""][1]
        assert package in FLOORS, f"{path} imports {name}: the public API is for users, modules name their modules"
        assert package == own or FLOORS[package] < FLOORS[own], f"{path} on floor {FLOORS[own]} imports {name}"


# Inside training: a folder imports folders to its left; the modules beside them put all together.
TRAINING = ("optim", "data", "model", "stability", "callbacks", "trainer", "")


def room_of_training(parts: tuple[str, ...]) -> str:
    return parts[0] if parts and parts[0] in TRAINING else ""


@pytest.mark.parametrize(
    "path", [path for path in MODULES if package_of(path) == "training"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_inside_training_go_one_way(path):
    own = TRAINING.index(room_of_training(path.relative_to(ROOT / "training").parts))
    for name in imported(path):
        if name.startswith("mypt.training."):
            other = TRAINING.index(room_of_training(tuple(name.split(".")[2:])))
            assert other <= own, f"{path} imports {name}, and is itself in the room that comes before"


def circular(imports: dict[str, set[str]]) -> set[str]:
    """The modules from which a way of imports leads back to themselves. imports: {module: modules}."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            fresh = imports.get(waiting.pop(), set()) - seen
            seen |= fresh
            waiting += fresh
        return seen

    return {module for module in imports if module in reached(module)}


def test_no_modules_import_each_other_in_a_circle():
    """Neither at the top nor in functions."""
    modules = {".".join(("mypt", *path.relative_to(ROOT).with_suffix("").parts)): path for path in MODULES}
    imports = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imported(path)} & modules.keys()
        for module, path in modules.items()
    }
    assert circular(imports) == set()


def test_the_search_for_circles_finds_them():
    assert circular({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}) == {"a", "b", "c", "e"}
    assert circular({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()


def test_models_need_nothing_else_of_mypt():
    """save_pretrained ships these files to places where mypt is not installed."""
    for path in MODULES:
        if package_of(path) == "models":
            assert {name.split(".")[1] for name in imported(path)} <= {"models"}


def test_planning_needs_no_torch():
    for path in MODULES:
        if package_of(path) == "planning":
            text = path.read_text(encoding="utf-8")
            assert "import torch" not in text and "from torch" not in text


def test_the_walk_sees_imports_of_every_kind(tmp_path, monkeypatch):
    """The proof above is worth what this finds."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "text" / "a.py"
    module.parent.mkdir()
    module.write_text(
        "import mypt.cli.main\nfrom mypt.shards import format\nfrom . import clean\nfrom ..training.run import train\n"
        "def f():\n    from mypt import load_recipe\n    import os, mypt.evaluation as e\n"
    )
    assert imported(module) == {
        *("mypt.cli.main", "mypt.shards.format", "mypt.text.clean", "mypt.training.run.train"),
        *("mypt.load_recipe", "mypt.evaluation"),
    }


@pytest.mark.parametrize(
    "code",
    [
        "import mypt",
        "import mypt, mypt.cli.main as m; m.build_parser()",
        "from mypt.cli.main import main; main(['--help'])",
        "from mypt.cli.main import main; main(['plan', '--help'])",
        "import mypt.recipe, "
        + ", ".join(f"mypt.hardware.{path.stem}" for path in (ROOT / "hardware").glob("[a-z]*.py")),
    ],
    ids=["import", "parser", "help", "help of plan", "recipe and hardware"],
)
def test_what_starts_at_once_imports_no_framework(code):
    probe = (
        "import sys, atexit\n"
        "frameworks = {'torch', 'transformers', 'numpy', 'datasets', 'peft'}\n"
        "atexit.register(lambda: print('heavy:', sorted(frameworks & set(sys.modules))))\n"
    )
    result = subprocess.run([sys.executable, "-c", probe + code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "heavy: []"
