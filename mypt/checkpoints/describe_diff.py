"""The report of a diff as lines and tables, for a terminal to draw."""

from collections.abc import Iterator

from mypt.checkpoints.describe import Block, line, plain

TENSORS = 12  # named in a table; a report as JSON names all
WIDTH = 60  # of a value in a table, in characters


def describe_diff(report: dict) -> Iterator[Block]:
    """A report of `diff_checkpoints`: what differs, and that the rest does not."""
    yield line("A", report["a"])
    yield line("B", report["b"])
    yield line("tokenizer", report["tokenizer"] or "not compared: A or B holds no tokenizer.json of today's")
    first, second = report["parameters"]
    yield line("parameters", f"{_cell(first)} both" if first == second else f"{_cell(first)} and {_cell(second)}")
    steps = [(progress or {}).get("step") for progress in report["progress"]]
    if steps != [None, None]:
        yield line("step", " and ".join(map(_cell, steps)))
    for title, key in (("field", "config"), ("setting", "settings")):
        if report[key]:
            yield ""
            yield [title, "A", "B"], [[name, *map(_cell, values)] for name, values in report[key].items()]
        else:
            none_told = "not compared: A or B tells none"
            yield line(f"{title}s", none_told if report[key] is None else "no difference")
    if report["losses"]:
        yield ""
        columns = ["nats/token of", "A", "since step 0", "B", "since step 0", "B - A"]
        yield columns, [[name, *_loss_cells(**found)] for name, found in report["losses"].items()]
    if report["weights"]:
        yield from _weights(report["weights"])


def describe_fields(first: str, second: str, fields: dict[str, list]) -> Iterator[Block]:
    """Two datasets side by side."""
    yield line("A", first)
    yield line("B", second)
    if fields:
        yield ""
        yield ["field", "A", "B"], [[name, *map(_cell, values)] for name, values in fields.items()]
    else:
        yield "no difference"


def _weights(found: dict) -> Iterator[Block]:
    states: dict[str, list[str]] = {}
    for name, tensor in found["tensors"].items():
        states.setdefault(tensor["state"], []).append(name)
    yield ""
    yield line("tensors", ", ".join(f"{len(names)} {state}" for state, names in states.items()))
    for state in ("other shape", "only in A", "only in B"):
        if names := states.get(state):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield line(state, ", ".join(names[:3]) + more)
    for title, key in (("part", "parts"), ("layer", "layers")):
        if found[key]:
            rows = [[name, group["tensors"], group["identical"], _ratio(group)] for name, group in found[key].items()]
            if key == "parts":
                total = found["total"]
                rows.append(["all", total["tensors"], total["identical"], _ratio(total)])
            yield ""
            yield [title, "tensors", "identical", "||B - A|| / ||A||"], rows
    changed = [(tensor["relative_change"], name) for name, tensor in found["tensors"].items()
               if tensor.get("relative_change")]  # fmt: skip
    if changed:
        rows = [[name, f"{change:.3g}"] for change, name in sorted(changed, reverse=True)[:TENSORS]]
        yield ""
        yield ["most changed", "||B - A|| / ||A||"], rows


def _loss_cells(loss: list, delta: list) -> list[str]:
    cells = []
    for value, change in zip(loss, delta, strict=True):
        cells += [_figure(value, ".4f"), _figure(change, "+.4f")]
    both = None not in loss
    return [*cells, f"{loss[1] - loss[0]:+.4f}" if both else ""]


def _ratio(group: dict) -> str:
    return _figure(group["relative_change"], ".3g") or "A is zero"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cell(value: object) -> str:
    text = "-" if value is None else plain(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
