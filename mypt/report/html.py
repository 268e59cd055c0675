"""Escape text as HTML and mask what looks secret: every text of a run enters the page through this module."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from mypt.errors import mask_secrets
from mypt.storage.run_tables import Code, Table
from mypt.terminal import one_line, visible

_NUMBER = re.compile(r"([+-]?[\d.,]+[x%]?( .*)?)?$")  # also with an error, or a change


def plain(value: object) -> str:
    """A value as it is shown in a line: what looks secret masked, control characters as escapes."""
    return one_line(mask_secrets(str(value)))


def text_of(value: object) -> str:
    """As `plain`, with the markup escaped, for HTML."""
    return escape(plain(value))


def block(text: str) -> str:
    """A text of several lines."""
    return f"<pre>{escape(visible(mask_secrets(text)))}</pre>"


def table_of(table: Table) -> str:
    """Numbers are aligned to the right."""
    if not table.rows:
        return ""
    sides = [' class="n"' if all(map(_NUMBER.match, column)) else "" for column in zip(*table.rows, strict=True)]
    head = "".join(
        f'<th scope="col"{side}>{text_of(column)}</th>' for column, side in zip(table.columns, sides, strict=True)
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    rows = "".join(
        "<tr>" + "".join(f"<td{side}>{_cell(cell)}</td>" for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def pairs_of(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values in as many columns as fit."""
    items = "".join(
        f"<div><dt><code>{text_of(name)}</code></dt><dd>{text_of(value)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="pairs">{items}</dl>' if items else ""


def _cell(cell: object) -> str:
    if isinstance(cell, Code):
        return f"<code>{text_of(cell)}</code>" if cell else ""
    if cell in ("healthy", "target", "watch", "warning", "critical"):
        return f'<span class="state-{cell}">{cell}</span>'
    return text_of(cell)


def details(title: str, body: str) -> str:
    return f"<details><summary>{text_of(title)}</summary>{body}</details>" if body else ""


def list_of(lines: Sequence[str]) -> str:
    return f'<ul class="plain">{"".join(f"<li>{text_of(line)}</li>" for line in lines)}</ul>' if lines else ""
