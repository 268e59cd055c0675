"""Which source each global sample comes from: exact proportions in every thousand, spread as evenly as can be."""

import math

import numpy as np

from mypt.errors import DataError
from mypt.planning.verdict import DataSource
from mypt.streams.windows import window_count

PERIOD = 1_000


class Mixture:
    """A fixed table of PERIOD slots, repeated: global sample -> (source, sample number within that source).

    weights: numbers of 0 or more, one per source, any scale; each gets its share of the slots to the nearest 1/1000.
    Raises DataError for a source whose share rounds to nothing although its weight is not 0.
    """

    def __init__(self, weights: list[float]):
        self.counts = _slot_counts(weights)
        # The j-th of a source's c slots is due at (j + 1/2) / c of the period; sorting by due time keeps each prefix
        # within half a sample (two sources) of the exact share.
        due = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        source = np.repeat(np.arange(len(self.counts)), self.counts)
        rank = np.concatenate([np.arange(count) for count in self.counts])
        order = np.lexsort((source, due))
        self._source, self._rank = source[order], rank[order]
        # _before[s, d]: slots of source d ahead of slot s
        self._before = np.zeros((PERIOD + 1, len(self.counts)), np.int64)
        np.add.at(self._before, (np.arange(PERIOD) + 1, self._source), 1)
        self._before = self._before.cumsum(axis=0)

    @property
    def shares(self) -> list[float]:
        """Each source's exact share of the samples."""
        return [count / PERIOD for count in self.counts]

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global samples int64 (k,) -> source indices (k,) and sample numbers within the source (k,)."""
        block, slot = np.divmod(samples, PERIOD)
        source = self._source[slot]
        return source, block * np.asarray(self.counts)[source] + self._rank[slot]

    def drawn(self, next_sample: int) -> list[int]:
        """How many samples each source has given when global samples 0 .. next_sample - 1 are done."""
        block, slot = divmod(next_sample, PERIOD)
        return [block * count + int(ahead) for count, ahead in zip(self.counts, self._before[slot], strict=True)]


def _slot_counts(weights: list[float]) -> list[int]:
    """Largest-remainder rounding of the weights to whole slots."""
    exact = [weight / math.fsum(weights) * PERIOD for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: PERIOD - sum(counts)]:
        counts[index] += 1
    lost = [index for index, weight in enumerate(weights) if weight and not counts[index]]
    if lost:
        raise DataError(
            f"data.train weights {weights}: source number {lost[0] + 1} would get less than 1 in {PERIOD} samples; "
            "raise its weight or leave it out"
        )
    return counts


def epoch_size(sources: list[DataSource], block_size: int) -> tuple[int, int]:
    """Samples and tokens of the whole mixture in which its main source is seen once, as `ShardStream` counts them."""
    weights = [source.weight for source in sources]
    main = weights.index(max(weights))
    mixture, tokens = Mixture(weights), sources[main].tokens
    windows = window_count(tokens, block_size) if tokens > block_size else 1  # fewer tokens: a check of the plan fails
    samples = -(-windows * PERIOD // mixture.counts[main])
    return samples, round(tokens / mixture.shares[main])
