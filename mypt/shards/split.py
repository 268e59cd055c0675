"""Which text is train and which is val: pure functions of the documents' hashes, tokens and lengths."""

from functools import reduce
from typing import NamedTuple

import numpy as np

FEWEST_FOR_HASH = 20  # documents; with fewer, the share of val would be a matter of luck
BLOCK = 1_000  # characters; a source of no more may be on one side
TOLERANCE = 0.3, 0.03  # how far val's share of the tokens may be from the one asked for: in parts of it, and at most


class Part(NamedTuple):
    """A document, or the part of one on one side of the cut."""

    split: str  # train or val
    text: str


class Share(NamedTuple):
    """What a split by hash makes of some text."""

    characters: int = 0
    tokens: int = 0
    val_tokens: int = 0

    def plus(self, other: "Share") -> "Share":
        return Share(*(a + b for a, b in zip(self, other, strict=True)))

    def excess(self, fraction: float) -> float:
        """Tokens of val above (below: negative) the share that was asked for."""
        return self.val_tokens - fraction * self.tokens


def hashed_to_val(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Documents whose hash / 2^64 < fraction: stable under added data, and equal texts fall on one side.

    `hashes` is uint64 (n,), `fraction` in [0, 1); returns bool (n,).
    """
    return hashes < np.uint64(int(fraction * 2**64))


def groups_to_cut(shares: dict[str, Share], one_sided: set[str], fraction: float, present: int = 0) -> list[str]:
    """The groups of documents that the hash does not split well, so that val must be the tail of each, in order.

    They are those in `one_sided`, and then the ones whose share of val is the furthest from `fraction` (in tokens),
    until the share of all is within TOLERANCE or a BLOCK. The tail of a group is taken to be exactly its share.
    `present` tokens are in the dataset already, and are split well; without any, no split may be empty.
    """
    cut = [name for name in shares if name in one_sided]
    total = reduce(Share.plus, shares.values())
    if not present and total.val_tokens in (0, total.tokens):
        return list(shares)
    relative, most = TOLERANCE
    block = BLOCK * total.tokens / max(1, total.characters)
    allowed = max(min(relative * min(fraction, 1 - fraction), most) * (present + total.tokens), block)
    left = {name: share.excess(fraction) for name, share in shares.items() if name not in one_sided}
    while left and abs(sum(left.values())) > allowed:
        worst = max(left, key=lambda name: abs(left[name]))
        cut.append(worst)
        del left[worst]
    return cut


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
