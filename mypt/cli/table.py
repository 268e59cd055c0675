"""Tables for people: rich on a terminal, aligned plain text when piped."""

import sys

from mypt.terminal import is_terminal


def print_table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print `rows` under `columns`; the first column is left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=title or None, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in cells:
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    if title:
        print(title)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [columns, *cells]:
        first, *rest = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join([first, *rest]).rstrip())


def print_dataset(facts: dict) -> None:
    """Print what `mypt.shards.inspect.summary` tells: a dataset's splits, and its sources if there are several."""
    counts = ["documents", "tokens", "bytes", "shards"]
    rows = [[name, *(f"{split[count]:,}" for count in counts)] for name, split in facts["splits"].items()]
    print_table(facts["path"], ["split", *counts], rows)
    print()
    if len(facts["sources"]) > 1:
        rows = [[source["name"], *(f"{source[count]:,}" for count in counts[:3])] for source in facts["sources"]]
        print_table("", ["source", *counts[:3]], rows)
        print()
    print(f"token ids     {facts['dtype']}, vocabulary {facts['vocab_size']:,}")
