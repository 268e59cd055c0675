"""Where the loss of a set lies: by the place of a target in its window, and by the source of its text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mypt.errors import DataError
from mypt.evaluation.difference import is_same_windows
from mypt.evaluation.loss import ratio_standard_error
from mypt.evaluation.sets import EvaluationSet, source_ends

_EIGHTHS = 8


@dataclass(frozen=True)
class Part:
    """A part of the targets of a set.

    Attributes:
        part: `17-32`, tokens of context; or the name of a source.
        loss, standard_error: Nats per token, with windows as the sample.
        bits_per_byte: None where the bytes of the tokenizer's ids are not known.
        delta, delta_error: Change from the first model, in nats per token; None for itself and other tokenizers.
    """

    part: str
    tokens: int
    loss: float
    standard_error: float
    bits_per_byte: float | None
    delta: float | None
    delta_error: float | None


def break_down(
    kind: str, losses: np.ndarray, of: EvaluationSet, first: tuple[np.ndarray, EvaluationSet] | None = None
) -> list[Part]:
    """Divide the losses of a model by `position` or `source`.

    Args:
        losses: Of every target, float32 (targets,).
        first: Losses and set of the model that this one is compared with.
    """
    names, numbers = _positions(of) if kind == "position" else _sources(of)
    windows = np.repeat(np.arange(len(of.windows)), of.windows.lengths)
    cells, shape = windows * len(names) + numbers, (len(of.windows), len(names))

    def sums(weights: np.ndarray | None = None) -> np.ndarray:
        """(windows, parts)"""
        return np.bincount(cells, weights, math.prod(shape)).reshape(shape)

    counts, totals = sums(), sums(losses)
    known = of.bytes_of_ids is not None
    sizes = np.bincount(numbers, of.bytes_of_ids[of.places], len(names)) if known else None
    paired = first is not None and is_same_windows(first[1], of)
    changes = sums(losses.astype(np.float64) - first[0]) if paired else None
    parts = []
    for index, name in enumerate(names):
        tokens = int(counts[:, index].sum())
        if not tokens:
            continue
        held = counts[:, index] > 0  # the windows that have such targets
        loss = float(totals[:, index].sum() / tokens)
        parts.append(
            Part(
                part=name,
                tokens=tokens,
                loss=loss,
                standard_error=ratio_standard_error(totals[held, index], counts[held, index]),
                bits_per_byte=loss * tokens / math.log(2) / int(sizes[index]) if known and sizes[index] else None,
                delta=float(changes[:, index].sum() / tokens) if paired else None,
                delta_error=ratio_standard_error(changes[held, index], counts[held, index]) if paired else None,
            )
        )
    return parts


def edges(block_size: int) -> list[int]:
    """The longest context of each bucket: doubled up to an eighth of the block, then by eighths of it."""
    eighths = {block_size * part // _EIGHTHS for part in range(1, _EIGHTHS + 1)} - {0}
    doubled = {2**power for power in range(block_size.bit_length()) if 2**power < block_size // _EIGHTHS}
    return sorted(doubled | eighths)


def _positions(of: EvaluationSet) -> tuple[list[str], np.ndarray]:
    last = edges(of.windows.block_size)
    names = [f"{low + 1}-{high}" if high > low + 1 else f"{high}" for low, high in zip([0, *last], last, strict=False)]
    return names, np.searchsorted(last, of.contexts)


def _sources(of: EvaluationSet) -> tuple[list[str], np.ndarray]:
    names, ends = source_ends(str(of.directory), of.manifest, of.split)
    documents = len(of.ends) + (not len(of.ends) or of.ends[-1] < len(of.ids) - 1)
    if documents != ends[-1]:
        raise DataError(
            f"{of.directory} has {documents} documents in {of.split}, its metadata names {ends[-1]}, so that the "
            "sources cannot be separated; prepare it again for --by source"
        )
    return names, np.searchsorted(ends, of.documents_of_targets, side="right")
