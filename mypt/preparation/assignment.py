"""Assign each document to train, to val or to nothing, by hashes, tokens and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mypt.errors import DataError
from mypt.preparation.overlap import id_hash
from mypt.preparation.units import hashes, invalid_bytes, rows, token_ids
from mypt.shards.format import SPLITS
from mypt.shards.settings import PrepareSettings
from mypt.text.dedup import Marks, first_occurrences, shared

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

    def plus(self, other: Share) -> Share:
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


DROPPED, TRAIN, VAL = 0, 1, 2


@dataclass(frozen=True)
class Cut:
    """A document that is cut in two: its first part goes to train, the rest to val."""

    unit: int
    row: int
    characters: int  # that train gets
    ended: bool = False  # whether EOS ends train's part; not where train ends with it, as nanoGPT's does


class Tail(NamedTuple):
    """Where the val split of a group of documents begins."""

    first: int  # ordinal of val's first whole document
    cut: Cut | None  # the document before it, if that is in both


@dataclass
class Resolution:
    """Where the documents of `units` finished units go; what it says of a unit is worked out when it is asked."""

    folder: Path
    settings: PrepareSettings
    starts: (
        np.ndarray
    )  # ordinal of each unit's first document, and behind the last the number of all, int64 (units + 1,)
    keep: Marks | None = None  # first occurrences; None: all
    drop: list[Marks] = field(default_factory=list)  # near-duplicates, and what another dataset holds already
    groups: list[str] = field(default_factory=list)  # of each unit: documents that are split together
    tails: dict[str, Tail] = field(default_factory=dict)  # of groups; the others are split by hash
    in_train: Marks | None = None  # documents whose text is in train: none of them goes to val

    def fates(self, unit: int) -> np.ndarray:
        """DROPPED, TRAIN or VAL for each row of a unit, uint8 (documents,); a cut document counts as dropped."""
        fates = np.where(self.kept(unit), TRAIN, DROPPED).astype(np.uint8)
        span = slice(int(self.starts[unit]), int(self.starts[unit + 1]))
        tail = self.tails.get(self.groups[unit]) if self.groups else None
        if tail is None:
            is_val = hashed_to_val(rows(self.folder, unit)["hash"], self.settings.val_fraction)
        else:
            is_val = np.arange(span.start, span.stop) >= tail.first
            if tail.cut and tail.cut.unit == unit:
                fates[tail.cut.row] = DROPPED
        if self.in_train is not None:
            is_val &= ~self.in_train[span]
        fates[(fates == TRAIN) & is_val] = VAL
        return fates

    @property
    def cuts(self) -> dict[int, Cut]:
        """The document that is cut in two, by unit."""
        return {tail.cut.unit: tail.cut for tail in self.tails.values() if tail.cut}

    def invalid(self, unit: int) -> np.ndarray:
        """Bytes that were not UTF-8: row, number of the file, bytes, int64 (n, 3).

        Of the documents that are kept, and with row -1 of those that the filter dropped.
        """
        found = invalid_bytes(self.folder, unit)
        return found[np.append(self.kept(unit), True)[found[:, 0]]] if len(found) else found

    def kept(self, unit: int) -> np.ndarray:
        """Which documents of a unit are no duplicates, bool (documents,)."""
        span = slice(int(self.starts[unit]), int(self.starts[unit + 1]))
        kept = np.ones(span.stop - span.start, bool) if self.keep is None else self.keep[span].copy()
        for marks in self.drop:
            kept &= ~marks[span]
        return kept

    @property
    def units(self) -> range:
        return range(len(self.starts) - 1)

    def hashes(self, fate: int) -> Iterator[np.ndarray]:
        """The hashes of the documents with this fate, uint64, unit by unit."""
        return (rows(self.folder, unit)["hash"][self.fates(unit) == fate] for unit in self.units)

    def drop_held(self, held: Iterable[np.ndarray], dtype: str, scratch: Path) -> None:
        """Leave out the documents that are held elsewhere; `held`: the `id_hash` of each, uint64 in chunks."""

        def hashes() -> Iterator[np.ndarray]:
            for unit in self.units:
                ids, ends = token_ids(self.folder, unit, dtype), np.cumsum(rows(self.folder, unit)["tokens"])
                starts = np.concatenate(([0], ends[:-1])).tolist()
                spans = zip(starts, (ends - 1).tolist(), strict=True)  # EOS left out
                yield np.fromiter((id_hash(ids[a:b]) for a, b in spans), np.uint64, len(ends))

        self.drop.append(shared(held, hashes(), scratch))

    def drop_texts(self, hashes: list[int]) -> None:
        """Leave out the documents whose text has one of these hashes."""
        if not hashes:
            return
        marks, wanted = Marks(int(self.starts[-1])), np.array(hashes, np.uint64)
        for unit in self.units:
            found = np.isin(rows(self.folder, unit)["hash"], wanted)
            marks.mark(np.flatnonzero(found) + self.starts[unit])
        self.drop.append(marks)

    def contaminated(self, scratch: Path) -> int:
        """Val documents whose text is in train, too."""
        return shared(self.hashes(TRAIN), self.hashes(VAL), scratch).count()


def resolve(folder: Path, units: int, settings: PrepareSettings, scratch: Path) -> Resolution:
    """Find the documents that came before."""
    sizes = [len(rows(folder, unit)) for unit in range(units)]
    resolution = Resolution(folder, settings, np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))))
    if settings.dedup == "document":
        resolution.keep = first_occurrences((part for unit in range(units) for part in hashes(folder, unit)), scratch)
    if settings.near_dedup is not None:
        from mypt.text.near_dedup import near_duplicates

        # A copy of a document that is dropped anyway must not decide over others.
        signatures = (
            np.load(folder / f"{unit:05d}.signatures.npy", mmap_mode="r") for unit in range(units) if sizes[unit]
        )
        resolution.drop.append(near_duplicates(signatures, settings.near_dedup, scratch))
    return resolution


def require_text(resolution: Resolution) -> None:
    """Raise DataError if a split that was asked for would be empty."""
    settings = resolution.settings
    documents = np.zeros(3, np.int64)  # by fate
    for unit in resolution.units:
        documents += np.bincount(resolution.fates(unit), minlength=3)
    documents[[TRAIN, VAL]] += len(resolution.cuts)  # a cut one is in both
    for name, fate in zip(SPLITS, (TRAIN, VAL), strict=True):
        if not documents[fate] and (name == "train" or settings.val_fraction):
            other = "" if settings.val_split == "tail" else ", or use --val-split tail"
            raise DataError(
                f"the {name} split of {documents[TRAIN] + documents[VAL]} documents is empty with --val-fraction "
                f"{settings.val_fraction:g}; change it (0: no val split), give more text{other}"
            )
