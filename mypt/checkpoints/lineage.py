"""The data that a model's weights have seen over all runs: lineage.json, which is copied wherever they are.

A run records the lineage of the model that it starts from in its own state, so that the other may be deleted.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from mypt.checkpoints.model_config import cached_file
from mypt.errors import CheckpointError
from mypt.files import replace_text
from mypt.formatting import times
from mypt.json_files import Count, find_json

LINEAGE_NAME = "lineage.json"


class Run(TypedDict):
    name: str  # its folder
    step: Count  # whose weights the next run began from


class SeenSource(TypedDict):
    """One source of training data.

    samples: windows drawn. tokens: targets. source_tokens: in the source, at its largest; 0: not known. estimated:
    whether source_tokens is. fingerprints: of the source at each of its sizes; none of a text that is streamed, which
    its name identifies.
    """

    name: str
    samples: Count
    tokens: Count
    source_tokens: Count
    estimated: bool
    fingerprints: list[str]


class Lineage(TypedDict):
    """base: the model that the first run began from, whose own training is not known; None: random weights."""

    base: str | None
    runs: list[Run]
    seen: list[SeenSource]


def find_lineage(model: str | Path) -> Lineage | None:
    """The lineage beside a model or an adapter: a folder, or a hub id that the cache holds; None if there is none.

    Raises CheckpointError if the file is damaged.
    """
    path = Path(model, LINEAGE_NAME) if Path(model).is_dir() else cached_file(str(model), LINEAGE_NAME)
    advice = "restore it, or delete it: the lineage is then not known"
    return path and find_json(path, Lineage, CheckpointError, advice)


def start_lineage(init_from: str | Path | None) -> Lineage:
    """The lineage with which a run from this model begins; None: from random weights. Raises as `find_lineage`."""
    found = find_lineage(init_from) if init_from else None
    return found or {"base": str(init_from) if init_from else None, "runs": [], "seen": []}


def write_lineage(folder: str | Path, lineage: Lineage) -> None:
    replace_text(Path(folder, LINEAGE_NAME), json.dumps(lineage, indent=1, sort_keys=True))


def with_run(start: Lineage, run: Run, seen: Iterable[SeenSource]) -> Lineage:
    """A lineage with one more run, and what that has seen; the tokens of the same source are summed."""
    return {"base": start["base"], "runs": [*start["runs"], run], "seen": summed([*start["seen"], *seen])}


def seen_sources(state: dict, seen: Iterable[dict]) -> list[SeenSource]:
    """List the data that one run has seen, from the state of its stream and its ledger (`Seen` as dicts)."""
    sources = []
    for index, (source, entry) in enumerate(zip(state["sources"], seen, strict=True)):
        grown = [event["appended"] for event in state["events"] if "appended" in event]
        sizes = [source, *(size for size in grown if size["source"] == index)]
        sources.append(
            SeenSource(
                name=source["name"],
                samples=entry["samples"],
                tokens=entry["tokens"],
                source_tokens=sizes[-1]["tokens"],
                estimated=entry.get("estimated", False),
                fingerprints=[size["fingerprint"] for size in sizes if size.get("fingerprint")],
            )
        )
    return sources


def summed(seen: Iterable[SeenSource]) -> list[SeenSource]:
    """One entry for each source, under its last name."""
    result: list[SeenSource] = []
    for source in seen:
        same = [other for other in result if is_same(other, source)]
        place = result.index(same[0]) if same else len(result)
        result = [other for other in result if other not in same]
        result.insert(place, _sum([*same, source]))
    return result


def is_same(one: SeenSource, other: SeenSource) -> bool:
    """Whether two entries are about the same source, which may have grown in between."""
    known = one["fingerprints"], other["fingerprints"]
    return not set(known[0]).isdisjoint(known[1]) if any(known) else one["name"] == other["name"]


def _sum(same: list[SeenSource]) -> SeenSource:
    sized = max(
        same, key=lambda source: (source["source_tokens"] > 0, not source["estimated"], source["source_tokens"])
    )
    return SeenSource(
        name=same[-1]["name"],
        samples=sum(source["samples"] for source in same),
        tokens=sum(source["tokens"] for source in same),
        source_tokens=sized["source_tokens"],
        estimated=sized["estimated"],
        fingerprints=list(dict.fromkeys(each for source in same for each in source["fingerprints"])),
    )


def recognized(lineage: Lineage, datasets: dict[str, Callable[[str], int | None]]) -> Lineage:
    """A lineage whose sources are also known by the fingerprints of the datasets that they have grown to.

    datasets: by fingerprint; each gives the number of its first shards that have another fingerprint, as
    `Manifest.shards_of`.
    """
    seen = []
    for source in lineage["seen"]:
        grown = [now for now, shards_of in datasets.items() if any(map(shards_of, source["fingerprints"]))]
        fingerprints = list(dict.fromkeys([*source["fingerprints"], *grown]))
        seen.append(source | {"fingerprints": fingerprints})
    return lineage | {"seen": summed(seen)}


def tokens_seen(lineage: Lineage, name: str, fingerprints: Iterable[str]) -> int:
    """Tokens of one source that a lineage has seen."""
    source = SeenSource(
        name=name,
        samples=0,
        tokens=0,
        source_tokens=0,
        estimated=False,
        fingerprints=[each for each in fingerprints if each],
    )
    return sum(other["tokens"] for other in lineage["seen"] if is_same(other, source))


def coverage_of(source: SeenSource) -> str:
    """How often a source was seen, for people."""
    if not source["source_tokens"]:
        return "unknown"
    return f"{'about ' if source['estimated'] else ''}{times(source['tokens'] / source['source_tokens'])}"


def describe_start(lineage: Lineage) -> str | None:
    """Describe what the start model of a run has seen before, in one line; None for random weights."""
    unknown = lineage["base"] and f"what {lineage['base']} was trained on is not known"
    if not lineage["runs"]:
        return unknown and f"{unknown}: passes are counted from this run on"
    seen = ", ".join(
        f"{source['name']} {coverage_of(source)} ({source['tokens']:,} tokens)" for source in lineage["seen"]
    )
    return f"the start model has seen before: {seen}{f'; {unknown}' if unknown else ''}"


def describe_runs(lineage: Lineage) -> str:
    """The runs of a lineage, the first one first: base -> run (step 12) -> run (step 4)."""
    begin = lineage["base"] or "random weights"
    return " -> ".join([begin, *(f"{run['name']} (step {run['step']:,})" for run in lineage["runs"])])
