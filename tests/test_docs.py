"""README and docs/ say what is true: commands and snippets run; options, recipe keys, defaults and links exist."""

import argparse
import dataclasses
import re
import typing
from pathlib import Path

import pytest

from mypt.cli.main import COMMANDS, build_parser
from mypt.recipe import Recipe, class_fields, parse_recipe
from mypt.remote.clients import file_system
from mypt.yaml12 import load_yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TAGS = {"bash", "text", "yaml", "python", "json"}

# Commands that stand in the documentation and are not run here, with the reason.
NOT_RUN = {
    "bash scripts/quickstart.sh": "installs packages and trains for minutes",
    "bash scripts/test.sh": "installs packages and runs this very suite",
    "mypt demo": "serves until Ctrl-C; tests/cli/test_demo.py runs it",
    "git clone": "needs a network",
    "pip install": "needs a network and changes the environment",
    "cd ": "a shell's own",
    "source .venv/bin/activate": "a shell's own",
}


def fences(page: Path) -> list[tuple[str, str]]:
    """(tag, content) of every fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The command lines of a bash block, continued lines joined."""
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_command_and_snippet_of_a_page_runs(page, run_command, request):
    if "from trl import" in page.read_text(encoding="utf-8"):
        pytest.importorskip("trl", reason="TRL is not installed (the dev extra has it)")
    if "mypt upload" in page.read_text(encoding="utf-8"):
        request.getfixturevalue("logged_in")  # to a hub on the loopback
    if "s3://my-bucket" in page.read_text(encoding="utf-8"):
        request.getfixturevalue("s3")  # on the loopback
        file_system("s3://my-bucket").mkdir("my-bucket")
    names = {"__name__": "__main__"}  # a snippet is a script
    for tag, content in fences(page):
        if tag == "bash":
            for line in commands(content):
                if not line.startswith(tuple(NOT_RUN)):
                    run_command(line)
        elif tag == "python":
            exec(compile(content, str(page), "exec"), names)
        elif tag == "yaml":
            parse_recipe(load_yaml(content))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_block_is_fenced_and_tagged(page):
    assert {tag for tag, _ in fences(page)} <= TAGS
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^(```| {4}(\$ |mypt ))", prose, re.MULTILINE), "a block that is not fenced"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{target}: no such section"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_module_that_a_page_names_exists(page):
    for name in re.findall(r"(?<![\w./-])(?:\w+/)+\w+\.py\b", page.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file() or (ROOT / "mypt" / name).is_file(), f"there is no {name}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the sections of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES[1:] if page.name != "README.md" and f"]({page.name})" not in index]
    assert not missing, f"docs/README.md does not link {missing}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_module_a_page_and_a_test(command):
    for path in (f"mypt/cli/{command}.py", f"docs/{command}.md", f"tests/cli/test_{command}.py"):
        assert (ROOT / path).is_file(), f"{path} is missing"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_names_the_options_that_its_command_has(command):
    page, options = ROOT / "docs" / f"{command}.md", options_of(command)
    named = named_options(page, command)
    assert named <= options, f"{page.name} names options that `mypt {command}` does not have"
    every_command_has = {"--help", "--debug"}
    assert options - named <= every_command_has, f"{page.name} leaves options out"


def options_of(command: str) -> set[str]:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    actions = subparsers.choices[command]._actions
    return {option for action in actions for option in action.option_strings if option.startswith("--")}


def named_options(page: Path, command: str) -> set[str]:
    """Options in a page's commands and inline code; those of another command's line, and recipe keys, are left out."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    pieces = re.findall(r"`([^`]+)`", prose)
    pieces += [line for tag, content in fences(page) if tag == "bash" for line in commands(content)]
    others = rf"\b(mypt (?!{command}\b)[a-z]+|accelerate launch|pip install|python|bash|git) "
    words = [word for piece in pieces if not re.search(others, piece) for word in piece.split()]
    options = {re.match(r"--[a-z][\w.-]*", word)[0] for word in words if re.match(r"--[a-z]", word)}
    return {option for option in options if "." not in option}


def recipe_keys() -> set[str]:
    """Every key that a recipe may have, as section.key."""
    keys = {f"training.{key}" for key in class_fields("transformers.training_args", "TrainingArguments")}
    keys |= {f"model.{key}" for key in class_fields("mypt.models.configuration_mypt", "MyPTConfig")}
    for section in dataclasses.fields(Recipe):
        if section.name != "training":
            section_type = (typing.get_args(section.type) or (section.type,))[0]  # an optional one is a union
            keys |= {f"{section.name}.{field.name}" for field in dataclasses.fields(section_type)}
    return keys - {"model.config"}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_recipe_key_on_a_page_exists(page):
    sections = "|".join(section.name for section in dataclasses.fields(Recipe))
    files = r"(?!json|py|png|md|yaml|safetensors|pt)"
    named = set(re.findall(rf"(?:--|`)((?:{sections})\.{files}[a-z_]+)\b", page.read_text(encoding="utf-8")))
    assert named <= recipe_keys(), f"{by_name(page)} names keys that no recipe has"
