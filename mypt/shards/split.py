"""Which text is train and which is val: pure functions of the documents' hashes and lengths."""

from typing import NamedTuple

import numpy as np

FEWEST_FOR_HASH = 20  # documents; with fewer, the share of val would be a matter of luck


class Part(NamedTuple):
    """A document, or the part of one on one side of the cut."""

    split: str  # train or val
    text: str


def hashed_to_val(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Documents whose hash / 2^64 < fraction: stable under added data, and equal texts fall on one side.

    `hashes` is uint64 (n,), `fraction` in [0, 1); returns bool (n,).
    """
    return hashes < np.uint64(int(fraction * 2**64))


def tail_cut(characters: int, fraction: float) -> int:
    """Characters that train gets when val is the tail of a text: int(n * (1 - fraction)), as nanoGPT cuts."""
    return int(characters * (1 - fraction))


def split_at(text: str, start: int, cut: int) -> list[Part]:
    """The parts of a document that starts at character `start` of the whole text, which is cut at character `cut`."""
    here = cut - start
    if here <= 0:
        return [Part("val", text)]
    if here >= len(text):
        return [Part("train", text)]
    return [Part("train", text[:here]), Part("val", text[here:])]
