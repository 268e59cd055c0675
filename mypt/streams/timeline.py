"""Which window sample g is, across events: changed weights, appended data; the events since a saved state."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mypt.errors import DataError
from mypt.shards.reader import ShardReader
from mypt.streams.mixture import PERIOD, Mixture
from mypt.streams.windows import window_count, window_starts


@dataclass(frozen=True)
class Source:
    """One training source: a name, its size in tokens, its weight in the mixture, and which shards these tokens are."""

    name: str
    tokens: int
    weight: float
    shards: int = 1
    fingerprint: str = ""


@dataclass(frozen=True)
class Segment:
    """A source from one of its own samples on: so many tokens, in epochs counted from `epoch`."""

    first: int
    epoch: int
    tokens: int


class Timeline:
    """A pure function of (sources, block_size, events): sample g -> source and window; what the first g samples were.

    sources: as at sample 0. events: dicts in the order of their `sample`, the first sample they hold for. Two kinds
    count here:
    - {"sample", "weights": [one per source]}: from there on the sources are drawn with these weights. Each source's
      own samples continue without gap or repeat.
    - {"sample", "appended": {"source": its index, "tokens", "shards", "fingerprint"}}: the source has grown to this
      size. Its epoch under way ends with the old windows; the next one is cut from all tokens.
    """

    def __init__(self, sources: Sequence[Source], block_size: int, events: Sequence[dict] = ()):
        self.sources = list(sources)
        self.now = list(sources)  # once all events are in
        self.block_size = block_size
        self.main = max(range(len(sources)), key=lambda index: sources[index].weight)
        # Parallel lists: the table that holds from a sample on, and what each source had given by then.
        self._firsts = [0]
        self._mixtures = [Mixture([source.weight for source in sources])]
        self._given = [np.zeros(len(sources), np.int64)]
        self._segments = [[Segment(0, 0, source.tokens)] for source in sources]
        for source in sources:
            window_count(source.tokens, block_size)  # an error now rather than at the first sample
        for event in events:
            if "weights" in event:
                self._reweigh(event["sample"], event["weights"])
            if "appended" in event:
                self._extend(event["sample"], **event["appended"])

    def _reweigh(self, sample: int, weights: list[float]) -> None:
        mixture, given = Mixture(weights), np.array(self.drawn(sample))
        self._firsts.append(sample)
        self._mixtures.append(mixture)
        self._given.append(given)
        self.now = [replace(source, weight=weight) for source, weight in zip(self.now, weights, strict=True)]

    def _extend(self, sample: int, source: int, **size) -> None:
        self.now[source] = replace(self.now[source], **size)
        drawn = self.drawn(sample)[source]
        old = self._segment(source, drawn)
        epochs = -(-(drawn - old.first) // window_count(old.tokens, self.block_size))  # those begun are finished
        first = old.first + epochs * window_count(old.tokens, self.block_size)
        self._segments[source].append(Segment(first, old.epoch + epochs, self.now[source].tokens))

    def _segment(self, source: int, local: int) -> Segment:
        """The segment that a source's own sample lies in; of several that begin at one sample, the last."""
        return next(s for s in reversed(self._segments[source]) if s.first <= local)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global samples int64 (k,) -> source indices (k,) and sample numbers within the source (k,)."""
        if len(self._mixtures) == 1:
            return self._mixtures[0].locate(samples)
        owners, local = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        parts = np.searchsorted(self._firsts, samples, side="right") - 1
        for part in np.unique(parts).tolist():
            rows = parts == part
            owners[rows], local[rows] = self._mixtures[part].locate(samples[rows] - self._firsts[part])
            local[rows] += self._given[part][owners[rows]]
        return owners, local

    def starts(self, source: int, local: np.ndarray, seed: int, order: str = "full") -> np.ndarray:
        """First token of the window of each of a source's own samples; int64 (k,) -> int64 (k,)."""
        segments = self._segments[source]
        starts = np.empty(len(local), np.int64)
        parts = np.searchsorted([segment.first for segment in segments], local, side="right") - 1
        for part in np.unique(parts).tolist():
            rows, segment = parts == part, segments[part]
            starts[rows] = window_starts(
                local[rows] - segment.first, segment.tokens, self.block_size, seed, order, first_epoch=segment.epoch
            )
        return starts

    def drawn(self, next_sample: int) -> list[int]:
        """How many samples each source has given when global samples 0 .. next_sample - 1 are done."""
        part = int(np.searchsorted(self._firsts, next_sample, side="right")) - 1
        ahead = self._mixtures[part].drawn(next_sample - self._firsts[part])
        return (self._given[part] + ahead).tolist()

    def epochs(self, source: int, drawn: int) -> float:
        """Passes over a source of which `drawn` samples were given."""
        segment = self._segment(source, drawn)
        return segment.epoch + (drawn - segment.first) / window_count(segment.tokens, self.block_size)

    @property
    def samples_per_epoch(self) -> int:
        """Samples in which the heaviest source, as it was at sample 0, is seen once."""
        windows = window_count(self.sources[self.main].tokens, self.block_size)
        return -(-windows * PERIOD // self._mixtures[0].counts[self.main])

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all sources together in that many samples, the few that fill no window included."""
        return round(self.sources[self.main].tokens / self._mixtures[0].shares[self.main])


def events_since(state: dict, now: list[Source], readers: list[ShardReader]) -> tuple[list[Source], int, list[dict]]:
    """Sources at sample 0, block size and all events of a saved state, with those that its next sample brings.

    now: the sources as they are given and found now, in the saved order; their names may differ. Raises DataError for
    data that is neither the recorded data nor an extension of it.
    """
    if len(now) != len(state["sources"]):
        raise DataError(f"the state was saved with {len(state['sources'])} sources, now there are {len(now)}")
    sources = [replace(Source(**saved), name=source.name) for saved, source in zip(state["sources"], now, strict=True)]
    events = [event for event in state["events"] if "changes" not in event]  # those are about other settings
    before = Timeline(sources, state["block_size"], events).now
    sample = state["next_sample"]
    for index, (old, source, reader) in enumerate(zip(before, now, readers, strict=True)):
        if old.fingerprint != source.fingerprint:
            _require_extension(old, source, reader)
            grown = {"tokens": source.tokens, "shards": source.shards, "fingerprint": source.fingerprint}
            events.append({"sample": sample, "appended": {"source": index, **grown}})
    weights = [source.weight for source in now]
    # Only if they differ from the saved ones: weights changed by an event must survive a restart.
    if not _same(weights, state["weights"]) and not _same(weights, [source.weight for source in before]):
        events.append({"sample": sample, "weights": weights})
    return sources, state["block_size"], events


def _same(weights: list[float], others: list[float]) -> bool:
    return Mixture(weights).counts == Mixture(others).counts


def _require_extension(old: Source, now: Source, reader: ShardReader) -> None:
    if reader.manifest.shards_of(reader.split, old.fingerprint) != old.shards:
        raise DataError(
            f"{now.name} is not the data that the state was saved with, nor an extension of it: {old.tokens:,} tokens "
            f"in {old.shards} shards ({old.fingerprint}) then, {now.tokens:,} in {now.shards} ({now.fingerprint}) now; "
            "restore its first shards (data is added with `mypt append`)"
        )


def describe(event: dict, before: list[Source]) -> str:
    """The changes of an event, in words; before: the sources until then."""
    if "weights" in event:
        old, new = ({s.name: weight for s, weight in zip(before, weights, strict=True)}
                    for weights in ([s.weight for s in before], event["weights"]))  # fmt: skip
        return f"weights {json.dumps(old)} -> {json.dumps(new)}"
    grown = event["appended"]
    source = before[grown["source"]]
    return (
        f"{source.name} {source.tokens:,} -> {grown['tokens']:,} tokens ({source.shards} -> {grown['shards']} shards), "
        "the new ones from its next epoch on"
    )
