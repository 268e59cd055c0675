"""The difference of two models on the same text, and its 95% interval from the spread of independent pieces of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mypt.evaluation.loss import ratio_standard_error
from mypt.evaluation.sets import EvaluationSet
from mypt.evaluation.student import student_quantile

CONFIDENCE = 0.95
FEWEST = 10  # pieces, below which no interval is stated


@dataclass(frozen=True)
class Difference:
    """A difference of losses, the second model's less the first's.

    Attributes:
        nats: Per token; None for models of different tokenizers.
        bits: Per UTF-8 byte.
        error: Standard error of `bits`.
        half: Half of the 95% interval of `bits`; None with fewer than `FEWEST` pieces.
        unit: What was taken as independent: document, window or stretch.
        units: How many of these there are.
        scale: Bits per byte of a nat per token.
    """

    nats: float | None
    bits: float
    error: float
    half: float | None
    unit: str
    units: int
    scale: float

    @property
    def interval(self) -> list[float] | None:
        """Low and high end in bits per byte."""
        return None if self.half is None else [self.bits - self.half, self.bits + self.half]

    @property
    def interval_in_nats(self) -> list[float] | None:
        """The same in nats per token, for models of one tokenizer."""
        if self.half is None or self.nats is None:
            return None
        half = self.half / self.scale
        return [self.nats - half, self.nats + half]


def paired_difference(first: tuple[np.ndarray, EvaluationSet], second: tuple[np.ndarray, EvaluationSet]) -> Difference:
    """The change from the first model to the second, each given by its losses (targets,) and its set.

    Independent pieces are the documents: windows that begin in one document count as one piece, since what a model
    finds hard in its beginning it finds hard in its end. A text of fewer than `FEWEST` documents is taken in windows
    (models of one tokenizer) or in stretches of as many bytes (of different ones). The standard error is that of a
    ratio of sums over pieces (Cochran 1977, section 2.11), which has the pieces' sizes as weights; the interval is
    that error times Student's t for (pieces - 1) degrees of freedom.

    The caller has made sure that both are the same text (`require_same_text`).
    """
    (losses, one), (other_losses, other) = first, second
    if is_same_windows(one, other):
        sums = window_sums(other_losses, other) - window_sums(losses, one)
        tokens, unit = one.windows.lengths, "window"
        pieces = np.unique(one.documents_of_windows, return_inverse=True)[1]
        if FEWEST <= pieces[-1] + 1 < len(pieces):
            sums, tokens, unit = np.bincount(pieces, sums), np.bincount(pieces, tokens), "document"
        nats = float(sums.sum() / tokens.sum())
        scale = 1 / math.log(2) / one.windows.bytes_per_token
        return _difference(nats, nats * scale, ratio_standard_error(sums, tokens) * scale, unit, len(sums), scale)
    scale = 1 / math.log(2) / other.windows.bytes_per_token
    bits = _bits_per_byte(other_losses, other) - _bits_per_byte(losses, one)
    sizes, unit = np.array([size for size, _ in one.documents]), "document"
    places = [each.documents_of_targets for each in (one, other)]
    if len(sizes) < FEWEST and (stretches := _stretches(one, other)):
        sizes, places, unit = *stretches, "stretch"
    sums = np.bincount(places[1], other_losses, len(sizes)) - np.bincount(places[0], losses, len(sizes))
    return _difference(None, bits, ratio_standard_error(sums, sizes) / math.log(2), unit, len(sums), scale)


def is_same_windows(one: EvaluationSet, other: EvaluationSet) -> bool:
    """Whether two sets have the same tokens in the same windows."""
    return one.fingerprint == other.fingerprint and np.array_equal(one.firsts, other.firsts)


def _difference(nats: float | None, bits: float, error: float, unit: str, units: int, scale: float) -> Difference:
    half = student_quantile((1 + CONFIDENCE) / 2, units - 1) * error if units >= FEWEST else None
    return Difference(nats, bits, error, half, unit, units, scale)


def _bits_per_byte(losses: np.ndarray, of: EvaluationSet) -> float:
    return float(losses.mean(dtype=np.float64)) / math.log(2) / of.windows.bytes_per_token


def _stretches(one: EvaluationSet, other: EvaluationSet) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Cut a text into stretches of the bytes that a window of either model has.

    Returns the bytes of each stretch, int64 (n,), and the stretch in which each target of either model begins, int64
    (targets,); None where a tokenizer does not tell the bytes of its ids, or the text is too short.
    """
    both = (one, other)
    if any(each.bytes_of_ids is None for each in both):
        return None
    size = math.ceil(max(each.windows.block_size * each.windows.bytes_per_token for each in both))
    total = int(one.bytes_of_ids.sum())
    if (count := total // size) < FEWEST:
        return None
    sizes = np.full(count, size)
    sizes[-1] += total - count * size
    starts = [(np.cumsum(each.bytes_of_ids) - each.bytes_of_ids)[each.places] for each in both]
    return sizes, [np.minimum(start // size, count - 1) for start in starts]


def window_sums(losses: np.ndarray, of: EvaluationSet) -> np.ndarray:
    """Sum of the losses of each window, float64 (n,); losses: float32 (targets,)."""
    lengths = of.windows.lengths
    return np.add.reduceat(losses.astype(np.float64), np.cumsum(lengths) - lengths)
