"""Real text found on any machine with Python: its documentation prose as *general*, its source code as *domain*.

`python -m mypt.text.embedded DIR` writes DIR/general.jsonl and DIR/domain.jsonl and prints their overlap.
"""

import ast
import inspect
import json
import sys
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mypt.terminal import say

SKIPPED_PACKAGES = {
    "pydoc_data", "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__",
}  # fmt: skip
LONG_DOCSTRING = 200  # characters; shorter ones are mostly one-line labels
LONG_LINE = 40  # characters from which a shared line is more than a shared phrase


def write_embedded_corpus(directory: str | Path) -> dict[str, int | float]:
    """Write both corpora, one JSON document a line. Returns counts and the share of general lines found in domain."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    sources = [path.read_text(encoding="utf-8", errors="replace") for path in _stdlib_files()]
    parsed = [(source, list(_docstrings(tree))) for source in sources if (tree := _parse(source))]
    general = [*language_topics(), *dict.fromkeys(doc for _, docstrings in parsed for doc in _long(docstrings))]
    domain = [without_docstrings(source, docstrings) for source, docstrings in parsed]
    for name, documents in (("general", general), ("domain", domain)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents if text.strip())
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {
        "general_documents": len(general),
        "general_bytes": sum(len(text.encode()) for text in general),
        "domain_documents": len(domain),
        "domain_bytes": sum(len(text.encode(errors="replace")) for text in domain),
        "overlap": overlap(general, domain),
    }


def overlap(general: list[str], domain: list[str]) -> float:
    """Share of the long lines of `general` that also stand in `domain`, word for word."""
    seen = {line.strip() for text in domain for line in text.splitlines()}
    lines = [line.strip() for text in general for line in text.splitlines() if len(line.strip()) >= LONG_LINE]
    return sum(line in seen for line in lines) / max(1, len(lines))


def language_topics() -> list[str]:
    """The language reference as plain text, a topic a document; an interpreter without pydoc_data has none."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [text for _, text in sorted(topics.items())]


def _stdlib_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_PACKAGES.intersection(path.relative_to(root).parts[:-1]):
            yield path


def _parse(source: str) -> ast.Module | None:
    """The syntax tree, or None for a file that is not meant to parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """The docstring statement of the module and of every class and function that has one, breadth first.

    Only statements are visited: no expression holds a docstring, and they are most of a tree.
    """
    queue = deque([tree])
    while queue:
        node = queue.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield first
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            queue.extend(getattr(node, field, ()))


def _long(docstrings: list[ast.Expr]) -> Iterator[str]:
    for statement in docstrings:
        text = inspect.cleandoc(statement.value.value)
        if len(text) >= LONG_DOCSTRING:
            yield text


def without_docstrings(source: str, docstrings: list[ast.Expr]) -> str:
    """The source with every docstring cut out, so that no documentation prose hides in the code."""
    lines = source.splitlines()
    for statement in sorted(docstrings, key=lambda node: node.lineno, reverse=True):
        # A docstring that shares its first line with code (`def f(): "doc"`) stays: cutting it would cut the code.
        if lines[statement.lineno - 1][: statement.col_offset].strip() == "":
            del lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    counts = write_embedded_corpus(sys.argv[1])
    for corpus in ("general", "domain"):
        say(f"{corpus}: {counts[f'{corpus}_documents']:,} documents, {counts[f'{corpus}_bytes'] / 1e6:.1f} MB")
    say(f"overlap: {counts['overlap']:.2%} of general's lines of {LONG_LINE} characters or more also stand in domain")
