"""What becomes of each encoded document: train, val or nothing. Duplicates and the cut are known only of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.shards.format import SPLITS
from mypt.shards.overlap import id_hash
from mypt.shards.settings import PrepareSettings
from mypt.shards.split import FEWEST_FOR_HASH, hashed_to_val, tail_cut
from mypt.shards.units import hashes, rows, token_ids
from mypt.text.dedup import Marks, first_occurrences, shared

DROPPED, TRAIN, VAL = 0, 1, 2


@dataclass(frozen=True)
class Cut:
    """The document that `val_split: tail` cuts in two: it begins train's last part and val's first."""

    unit: int
    row: int
    characters: int  # that train gets


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
    tail: tuple[int, Cut | None] | None = None  # ordinal of val's first whole document, and the one that is cut

    def fates(self, unit: int) -> np.ndarray:
        """DROPPED, TRAIN or VAL for each row of a unit, uint8 (documents,); the cut document counts as dropped."""
        fates = np.where(self.kept(unit), TRAIN, DROPPED).astype(np.uint8)
        if self.tail is None:
            is_val = hashed_to_val(rows(self.folder, unit)["hash"], self.settings.val_fraction)
        else:
            first, cut = self.tail
            is_val = np.arange(self.starts[unit], self.starts[unit + 1]) >= first
            if cut and cut.unit == unit:
                fates[cut.row] = DROPPED
        fates[(fates == TRAIN) & is_val] = VAL
        return fates

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


def divide(resolution: Resolution, say: Callable[[str], object]) -> None:
    """Settle whether val is a share of the documents or the tail of the text, and where the tail begins."""
    settings = resolution.settings
    if not settings.val_fraction:
        return
    if settings.val_split == "hash":
        documents = sum(int(resolution.kept(unit).sum()) for unit in resolution.units)
        if documents >= FEWEST_FOR_HASH:
            return
        say(f"only {documents} documents: val is the tail of the text rather than a share of the documents")
    lengths = [rows(resolution.folder, unit)["characters"] * resolution.kept(unit) for unit in resolution.units]
    place = tail_cut(sum(int(part.sum()) for part in lengths), settings.val_fraction)
    resolution.tail = _tail(lengths, resolution.starts, place)


def _tail(lengths: list[np.ndarray], starts: np.ndarray, place: int) -> tuple[int, Cut | None]:
    """Of a text cut at character `place`: ordinal of val's first whole document, and the document in two parts."""
    before = 0
    for unit, part in enumerate(lengths):
        ends = before + np.cumsum(part)
        row = int(np.searchsorted(ends, place, side="right"))  # the first document that ends behind the cut
        if row < len(part):
            begin = int(ends[row] - part[row])
            cut = Cut(unit, row, place - begin) if place > begin else None
            return int(starts[unit]) + row + (cut is not None), cut
        before = int(ends[-1]) if len(part) else before
    return int(starts[-1]), None


def require_text(resolution: Resolution) -> None:
    """Raise DataError if a split that was asked for would be empty."""
    settings = resolution.settings
    documents = np.zeros(3, np.int64)  # by fate
    for unit in resolution.units:
        documents += np.bincount(resolution.fates(unit), minlength=3)
    if resolution.tail and resolution.tail[1]:
        documents += 1  # the cut one is in both
    for name, fate in zip(SPLITS, (TRAIN, VAL), strict=True):
        if not documents[fate] and (name == "train" or settings.val_fraction):
            other = "" if settings.val_split == "tail" else ", or use --val-split tail"
            raise DataError(
                f"the {name} split of {documents[TRAIN] + documents[VAL]} documents is empty with --val-fraction "
                f"{settings.val_fraction:g}; change it (0: no val split), give more text{other}"
            )
