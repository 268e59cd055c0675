"""The figures measured of a model: `evaluation.json` beside it, to which every evaluation adds."""

import json
import math
from pathlib import Path
from typing import Any, Literal, TypedDict

from mypt.checkpoints.adapter import weights_fingerprint
from mypt.errors import MyPTError
from mypt.files import replace_text
from mypt.json_files import as_kind, find_json

EVALUATION_NAME = "evaluation.json"
PLOT_NAMES = ("evaluation.png", "evaluation_position.png", "evaluation_source.png")
# The definitions of a target (docs/evaluate.md).
DEFINITIONS = {
    "windows": "every token but the first of the text is a target, the end of each document included",
    "rolling": "lm-eval's rolling log-likelihood: each document from its first token on, without its end",
}
# Two figures that agree in all of these are one figure, measured again.
_KEY = ("data", "metric", "definition", "split", "block_size", "document_mask", "data_hash")


class _Measured(TypedDict):
    """The fields that every figure has."""

    model: str
    data: str
    data_hash: str
    weights: str | None  # `weights_fingerprint` of the model that was measured
    versions: dict[str, str]


class Part(TypedDict):
    """A division of a loss: `mypt.evaluation.breakdown.Part`."""

    part: str
    loss: float
    standard_error: float
    bits_per_byte: float | None


class Loss(_Measured):
    """A loss on one set: `mypt.evaluation.compare.Score`."""

    definition: Literal["windows", "rolling"]
    split: str
    block_size: int
    document_mask: bool
    loss: float
    standard_error: float
    perplexity: float | None  # None: too large for a float
    bits_per_byte: float
    tokens: int
    parts: dict[str, list[Part]]


class Figure(_Measured):
    """Any other figure: `mypt.evaluation.metrics.Metric`."""

    metric: str
    value: float
    error: float | None
    details: str


Entry = Loss | Figure


def _entry(content: Any) -> Entry:
    return as_kind(content, Figure if isinstance(content, dict) and "metric" in content else Loss)


class _Evaluations(TypedDict):
    results: list[_entry]


def read_evaluations(path: str | Path) -> list[Entry]:
    """The figures in a file, oldest first; none if it does not exist. Raises MyPTError if it is damaged."""
    found = find_json(path, _Evaluations, MyPTError, "restore or delete it")
    return found["results"] if found else []


def add_evaluations(path: str | Path, entries: list[Entry]) -> list[Entry]:
    """Add figures to a file, which is replaced in one step, and return all that it has then.

    A figure takes the place of an earlier one of the same set, data, definition and weights only: other data under the
    same name is another entry. Raises MyPTError if the file is damaged, OSError if it cannot be written.
    """

    def key(entry: Entry) -> tuple:
        return (entry.get("weights") or entry.get("model"), *(entry.get(name) for name in _KEY))

    new = {key(entry) for entry in entries}
    results = [entry for entry in read_evaluations(path) if key(entry) not in new] + entries
    for entry in results:
        if entry.get("perplexity") == math.inf:
            entry["perplexity"] = None
    replace_text(path, json.dumps({"results": results}, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def evaluations_of(folder: Path) -> list[Entry]:
    """The figures in a model's folder that are of the weights that it has now."""
    entries = read_evaluations(folder / EVALUATION_NAME)
    weights = weights_fingerprint(str(folder)) if entries else None
    return [entry for entry in entries if entry.get("weights") == weights]
