"""The ledger of a training dataset that is none of ours: its size, measured, estimated or given."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sized
from dataclasses import asdict
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from torch.utils.data import IterableDataset

from mypt.planning.coverage import whole
from mypt.streams.ledger import Ledger, Seen
from mypt.streams.size import EstimatedLedger
from mypt.streams.timeline import Source

NAME = "train_dataset"
COUNTED_ROWS = 100_000  # of a column of token ids; of a longer one as many, evenly spaced
READ_SAMPLES = 500  # of a dataset that has to make each one
READ_STREAMED = 100  # first samples of a streaming dataset
GIVE_TOKENS = "give CoverageCallback(tokens=N)"
GIVE_LEDGER = 'give CoverageCallback(Ledger([Source("mine", tokens=N, weight=1.0)], block_size=TOKENS_PER_SAMPLE))'


class DatasetLedger:
    """The account of any training dataset, with the attributes of a `Ledger`; nothing of it changes on the way.

    Samples are counted. Tokens are samples x their mean length: exact after each whole epoch.

    Args:
        samples: In one epoch; 0: not known.
        tokens_per_sample: Mean over the dataset; 0: not known.
        exact: Whether both were counted.
        missing: What to do about a size that is not known, in a few words.
    """

    main = 0

    def __init__(self, samples: float, tokens_per_sample: float, exact: bool, missing: str = GIVE_TOKENS):
        self.samples = samples
        self.block_size = tokens_per_sample
        self.exact = exact
        self.missing = missing
        self.events: list[dict] = []

    @property
    def sources(self) -> list[Source]:
        return [Source(NAME, round(self.samples * self.block_size), 1.0)]

    def seen(self, next_sample: int) -> list[Seen]:
        """The account of each source after so many samples."""
        passes = next_sample / self.samples if self.samples else None
        return [Seen(NAME, next_sample, round(next_sample * self.block_size), passes, passes, not self.exact)]

    def state(self, next_sample: int) -> dict:
        """The state, JSON-ready."""
        return {
            "next_sample": next_sample,
            "block_size": max(1, round(self.block_size)),
            "sources": [asdict(source) for source in self.sources],
            "events": self.events,
            "seen": [asdict(seen) for seen in self.seen(next_sample)],
        }


def ledger_of(dataset: Any, tokens: int | None = None) -> Ledger | EstimatedLedger | DatasetLedger:
    """The ledger of a training dataset; a stream of ours is its own.

    A map-style dataset is measured: the column `input_ids` of a HF dataset, or the `input_ids` of its items, without
    what their `attention_mask` leaves out. For a streaming HF dataset only the mean length is, from its first samples;
    other streaming datasets are not read, since some can be read only once.

    Args:
        tokens: In one epoch, where the caller knows.

    Raises:
        MyPTError: `tokens` is not a whole number of at least 1.
    """
    if isinstance(dataset, Ledger | EstimatedLedger):
        return dataset
    if tokens is not None:
        whole("tokens", tokens)
    samples = len(dataset) if isinstance(dataset, Sized) else 0
    if tokens and samples:
        return DatasetLedger(samples, tokens / samples, True)
    if is_map_style(dataset):
        return DatasetLedger(samples, *_mean_tokens(dataset), f"the samples have no input_ids; {GIVE_TOKENS}")
    first = itertools.islice(dataset, READ_STREAMED) if isinstance(dataset, datasets.IterableDataset) else ()
    mean = _mean(map(_tokens, first))
    samples = tokens / mean if tokens and mean else samples
    return DatasetLedger(samples, mean, False, f"the data streams; {GIVE_TOKENS if mean else GIVE_LEDGER}")


def is_map_style(dataset: Any) -> bool:
    """Whether a DataLoader reads items by their number, each once in an epoch."""
    return isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def _mean_tokens(dataset: Any) -> tuple[float, bool]:
    """The mean tokens of the samples of a map-style dataset (0: not known), and whether all were counted."""
    rows = (
        isinstance(dataset, datasets.Dataset)
        and dataset.format["type"] != "custom"
        and "input_ids" in dataset.column_names
    )
    most = COUNTED_ROWS if rows else READ_SAMPLES
    exact = len(dataset) <= most
    chosen = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(np.int64)
    if rows:
        return _column_tokens(dataset if exact else dataset.select(chosen)), exact
    return _mean(_tokens(dataset[index]) for index in chosen.tolist()), exact


def _column_tokens(dataset: datasets.Dataset) -> float:
    masked = "attention_mask" in dataset.column_names
    column, tokens = "attention_mask" if masked else "input_ids", 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1_000):
        counted = pc.list_flatten(table[column]) if masked else pc.list_value_length(table[column])
        tokens += pc.sum(counted).as_py() or 0
    return tokens / max(1, len(dataset))


def _tokens(sample: Any) -> int:
    """Token ids of a sample without padding; 0 where it has none."""
    if not isinstance(sample, Mapping) or "input_ids" not in sample:
        return 0
    mask = sample.get("attention_mask")
    return np.asarray(sample["input_ids"]).size if mask is None else int(np.asarray(mask).sum())


def _mean(counts) -> float:
    counts = list(counts)
    return sum(counts) / max(1, len(counts))
