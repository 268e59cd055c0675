"""Read the pictures and tables of a run folder, and texts of its evaluation sets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mypt.checkpoints.interpolated import PLOT_NAME
from mypt.checkpoints.model_config import cached_model
from mypt.errors import MyPTError
from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.inspection.describe import Block, describe
from mypt.planning.coverage_report import coverage_lines, draw_coverage
from mypt.planning.verdict import Coverage, DataSource, assess
from mypt.shards.reader import ShardReader
from mypt.streams.ledger import saved_ledger
from mypt.tokenization.load import load_tokenizer

SETTINGS = "settings that are not the defaults"  # what follows in a report is long
EXAMPLES = 20  # documents of each evaluation set
EXAMPLE_TOKENS = 300

# Files of a run folder, or of its best step.
PICTURES = {
    "loss.png": "Loss",
    "forgetting.png": "Forgetting: change of each evaluation set since step 0",
    f"best/{PLOT_NAME}": "Interpolation between the start and the adapted model",
    PLOT_NAME: "Interpolation between the two models",
    "evaluation.png": "Evaluation",
}


@dataclass
class RunView:
    """The parts of a model's folder that the page shows.

    Attributes:
        pictures: Title and PNG.
        blocks: Lines and tables: the model, what it has seen, what it forgot.
        more: Settings and files.
        examples: Texts of the run's evaluation sets, by their names.
    """

    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    more: list[Block] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)


def view_run(name: str) -> RunView | None:
    """The view of a run folder, a checkpoint, a run's best step, or a model in the hub's cache; None for no folder.

    The pictures of a checkpoint and of a best step are those of its run. Raises MyPTError for a damaged file.
    """
    path = Path(name) if Path(name).is_dir() else cached_model(name)
    if path is None:
        return None
    report = inspect_checkpoint(path)
    run = path if report["kind"] == "run" or not (path.parent / "recipe.yaml").is_file() else path.parent
    seen = None
    if coverage := report["coverage"]:
        coverage["seen"] = saved_ledger(coverage)
        seen = _plan(report)
    view = RunView()
    for file, title in PICTURES.items():
        if (run / file).is_file():
            view.pictures.append((title, (run / file).read_bytes()))
    drawn = io.BytesIO()
    if seen and draw_coverage(seen, drawn):
        view.pictures.insert(0, ("Plan: how often the data is seen", drawn.getvalue()))
    target = view.blocks
    for block in describe(report):
        if isinstance(block, str) and block.startswith(SETTINGS):
            if seen:
                block_size = coverage["block_size"]
                layout = {"batch": seen.tokens_per_step // block_size, "block": block_size}
                view.blocks += ["", *coverage_lines(seen, layout)]
            target = view.more
        target.append(block)
    view.examples = dict(_examples(report["recipe"]))
    return view


def _plan(report: dict) -> Coverage | None:
    """How often a run of its planned length sees its data; None where the data's size is not known."""
    coverage, progress = report["coverage"], report["progress"]
    if not progress or not progress["step"] or not coverage["next_sample"]:
        return None
    weights = coverage.get("weights") or [seen["samples"] for seen in coverage["seen"]]
    sources = [
        DataSource(source["name"], source["tokens"], weight)
        for source, weight in zip(coverage["sources"], weights, strict=True)
        if source["tokens"] and weight
    ]
    tokens = round(coverage["next_sample"] * coverage["block_size"] / progress["step"])
    try:
        return assess(
            sources, tokens, max(progress["max_steps"] or 0, progress["step"]), parameters=report["parameters"]
        )
    except MyPTError:
        return None


def _examples(recipe: dict | None) -> Iterator[tuple[str, list[str]]]:
    """(name, texts) of the evaluation sets that are dataset directories on this machine."""
    sources = (recipe or {}).get("data", {}).get("eval") or {}
    for name, source in sources.items() if isinstance(sources, dict) else ():
        try:
            if texts := example_texts(str(source)):
                yield name, texts
        except (MyPTError, OSError):
            continue  # the data is elsewhere by now: texts can still be pasted


def example_texts(directory: str) -> list[str]:
    """The beginnings of documents of the val split, evenly spaced."""
    reader, tokenizer = ShardReader(directory, "val"), load_tokenizer(directory)
    ids = reader.gather(np.array([0]), min(len(reader), 2_000_000))[0].astype(np.int64)
    ends = np.flatnonzero(ids == reader.eos_token_id)
    begins = np.append(0, ends + 1)
    begins = begins[begins < len(ids) - 1]
    chosen = begins[np.linspace(0, len(begins) - 1, min(EXAMPLES, len(begins))).round().astype(int)]
    texts = []
    for begin in np.unique(chosen).tolist():
        end = ends[np.searchsorted(ends, begin)] if begin < ends.max(initial=-1) else len(ids)
        window = ids[begin : min(end, begin + EXAMPLE_TOKENS)].tolist()
        text = tokenizer.backend_tokenizer.decode(window, skip_special_tokens=True).rstrip("\ufffd")
        if text.strip():
            texts.append(text)
    return texts
