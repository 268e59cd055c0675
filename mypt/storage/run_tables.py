"""Put the data, losses and scores of a run into tables of text, the same for a model card and a report."""

from collections.abc import Iterator
from typing import NamedTuple

from mypt.checkpoints.evaluations import Entry
from mypt.checkpoints.lineage import coverage_of
from mypt.storage.run_info import RunInfo


class Code(str):
    """A cell that is an identifier, such as a fingerprint."""


class Table(NamedTuple):
    """Cells are text as it was found: whoever shows them escapes them."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def data_table(info: RunInfo) -> Table:
    """The training sources, and how much of each the run has seen; no rows without a ledger."""
    rows = []
    for source, entry in seen_by_source(info):
        size, fingerprint = source.get("tokens"), source.get("fingerprint") or info.coverage.get("data")
        passes = entry.get("epochs")
        rows.append(
            (source["name"], f"{size:,}" if size else "unknown", f"{entry['tokens']:,}" if entry else "",
             "" if passes is None else f"{passes:.2f}", Code(fingerprint or ""))
        )  # fmt: skip
    return Table(("data", "tokens in it", "tokens seen", "passes", "fingerprint"), rows)


def seen_by_source(info: RunInfo) -> Iterator[tuple[dict, dict]]:
    """Each training source and its entry in the ledger, which is empty where that is of another step."""
    sources = info.coverage.get("sources", [])
    return zip(sources, info.coverage.get("seen") or [{}] * len(sources), strict=True)


def lineage_table(info: RunInfo) -> Table | None:
    """The data that the weights have seen over all runs; None where the ledger of the only run shows it."""
    lineage = info.lineage
    if not lineage or not (lineage["base"] or len(lineage["runs"]) > 1 or "seen" not in info.coverage):
        return None
    rows = [
        (source["name"], f"{source['samples']:,}", f"{source['tokens']:,}", coverage_of(source))
        for source in lineage["seen"]
    ]
    return Table(("data", "windows seen", "tokens seen", "coverage"), rows)


def forgetting_table(info: RunInfo) -> Table | None:
    """Each evaluation set at the first and at the last measurement of `info`; None without two of them."""
    if not info.last:
        return None
    if between := info.interpolation:
        targets, guard, start, here = between["target"], between["guard"], "alpha 0", f"alpha {between['alpha']:g}"
    else:
        targets, guard = [info.forgetting.get("target")], info.forgetting.get("guard", [])
        start, here = f"step {info.first['step']}", f"step {info.last['step']}"
    rows = []
    for name, reading in info.last["sets"].items():
        role = "target" if name in targets else "guarded" if name in guard else "other"
        before = info.first["sets"].get(name, {}).get("loss")
        bits = reading.get("bits_per_byte")
        error = f" +/- {reading['delta_error']:.4f}" if "delta_error" in reading else ""
        rows.append(
            (f"{name} ({role})", "" if before is None else f"{before:.4f}", f"{reading['loss']:.4f}",
             f"{reading['delta']:+.4f}{error}", "" if bits is None else f"{bits:.4f}", reading["state"])
        )  # fmt: skip
    return Table(("held-out text", f"loss at {start}", f"loss at {here}", "change", "bits/byte", "state"), rows)


def losses_table(entries: list[Entry]) -> Table:
    """The losses that `mypt evaluate` measured."""
    rows = [
        (
            entry["data"],
            f"{entry['definition']}, {entry['split']}",
            f"{entry['block_size']:,}",
            f"{entry['tokens']:,}",
            f"{entry['loss']:.4f} +/- {entry['standard_error']:.4f}",
            "" if entry["perplexity"] is None else f"{entry['perplexity']:.2f}",
            f"{entry['bits_per_byte']:.4f}",
            Code(entry["data_hash"]),
        )
        for entry in entries
        if "loss" in entry
    ]
    columns = ("text", "definition, split", "context", "tokens", "nats/token", "perplexity", "bits/byte", "hash")
    return Table(columns, rows)


def metrics_table(entries: list[Entry]) -> Table:
    """The other figures of `mypt evaluate`."""
    rows = [
        (entry["data"], entry["metric"],
         f"{entry['value']:.4f}" + (f" +/- {entry['error']:.4f}" if entry["error"] is not None else ""),
         entry["details"])
        for entry in entries
        if "metric" in entry
    ]  # fmt: skip
    return Table(("references or task", "metric", "value", "how"), rows)
