"""Assign each document to train, to val or to nothing: by the hashes of texts, or at the tails of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mypt.errors import DataError
from mypt.preparation.overlap import id_hash
from mypt.preparation.prepare_run import PrepareRun, few
from mypt.preparation.units import EncodedText, EncodedUnit
from mypt.shards.format import SPLITS
from mypt.shards.settings import PrepareSettings
from mypt.text.dedup import Marks, first_occurrences, shared
from mypt.text.sources import FEWEST_FOR_HASH

BLOCK = 1_000  # characters; a source of no more may be on one side
TOLERANCE = 0.3, 0.03  # how far val's share of the tokens may be from the one asked for: in parts of it, and at most
SHORT = ""  # the group of all sources of up to BLOCK characters


class Part(NamedTuple):
    """A document, or the part of one on one side of the cut."""

    split: str  # train or val
    text: str


class Share(NamedTuple):
    """Some text, and what a split makes of it."""

    characters: int = 0
    tokens: int = 0
    val_tokens: int = 0
    train: int = 0  # documents; one that is cut counts in both
    val: int = 0

    def plus(self, other: Share) -> Share:
        return Share(*(a + b for a, b in zip(self, other, strict=True)))

    def excess(self, fraction: float) -> float:
        """Tokens of val above (below: negative) the share that was asked for."""
        return self.val_tokens - fraction * self.tokens

    @property
    def one_sided(self) -> bool:
        """Whether it is long enough to be on both sides, and is on one."""
        return self.characters > BLOCK and (not self.train) != (not self.val)


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


@dataclass(frozen=True)
class SplitAssignment:
    """Where the documents of encoded units go; of each unit (by its number) it is computed when it is asked for."""

    units: list[EncodedUnit]
    settings: PrepareSettings
    starts: np.ndarray  # ordinal of each unit's first document, then the number of all, int64 (units + 1,)
    first: Marks | None  # first occurrences of texts; None: all
    drop: tuple[Marks, ...]  # near-duplicates, and what another dataset holds already
    tails: dict[int, Tail] = field(default_factory=dict)  # by unit; the others are split by hash
    in_train: Marks | None = None  # documents whose text is in train: none of them goes to val
    replaced: dict | None = None  # for the report: what tails replace of the split by hash

    def kept(self, unit: int) -> np.ndarray:
        """Find the documents of a unit that are no duplicates; bool (documents,)."""
        span = slice(int(self.starts[unit]), int(self.starts[unit + 1]))
        kept = np.ones(span.stop - span.start, bool) if self.first is None else self.first[span].copy()
        for marks in self.drop:
            kept &= ~marks[span]
        return kept

    def assigned(self, unit: int) -> np.ndarray:
        """DROPPED, TRAIN or VAL for each row of a unit, uint8 (documents,); a cut document counts as dropped."""
        assigned = np.where(self.kept(unit), TRAIN, DROPPED).astype(np.uint8)
        span, tail = slice(int(self.starts[unit]), int(self.starts[unit + 1])), self.tails.get(unit)
        if tail is None:
            is_val = hashed_to_val(self.units[unit].rows["hash"], self.settings.val_fraction)
        else:
            is_val = np.arange(span.start, span.stop) >= tail.first
            if tail.cut and tail.cut.unit == unit:
                assigned[tail.cut.row] = DROPPED
        if self.in_train is not None:
            is_val &= ~self.in_train[span]
        assigned[(assigned == TRAIN) & is_val] = VAL
        return assigned

    @property
    def cuts(self) -> dict[int, Cut]:
        """The document that is cut in two, by unit."""
        return {tail.cut.unit: tail.cut for tail in self.tails.values() if tail.cut}

    @property
    def documents(self) -> int:
        """How many are kept."""
        return sum(int(self.kept(unit).sum()) for unit in range(len(self.units)))

    def invalid(self) -> Iterator[tuple[EncodedUnit, np.ndarray]]:
        """Bytes that were not UTF-8, by unit: row, number of the file, bytes, int64 (n, 3).

        They are those of documents that are kept, and with row -1 of documents that the filter dropped.
        """
        for index, unit in enumerate(self.units):
            found = unit.invalid
            yield unit, found[np.append(self.kept(index), True)[found[:, 0]]] if len(found) else found

    def hashes(self, side: int) -> Iterator[np.ndarray]:
        """The hashes of the documents that are DROPPED, in TRAIN or in VAL, uint64, unit by unit."""
        return (unit.rows["hash"][self.assigned(index) == side] for index, unit in enumerate(self.units))

    def cut_hashes(self) -> list[int]:
        """The hashes of the documents that are cut in two."""
        return [int(self.units[cut.unit].rows["hash"][cut.row]) for cut in self.cuts.values()]

    def contaminated(self, scratch: Path) -> int:
        """Val documents whose text is in train, too."""
        return shared(self.hashes(TRAIN), self.hashes(VAL), scratch).count()


def assign(
    run: PrepareRun,
    encoded: EncodedText,
    *,
    held: Iterable[np.ndarray] | None = None,
    held_texts: Sequence[int] = (),
    present: int = 0,
    hash_only: bool = False,
) -> SplitAssignment:
    """Drop the documents that came before, and divide the others into train and val.

    Args:
        run: The preparation.
        encoded: Its encoded units.
        held: The `id_hash` of each document that the text is added to, uint64 in chunks: those are dropped too.
        held_texts: The hashes of texts that are there in two parts.
        present: Tokens of the dataset that the text is added to.
        hash_only: Whether `val_split` hash is not corrected by tails.
    """
    settings, units, scratch = run.settings, encoded.units, run.scratch()
    sizes = [len(unit.rows) for unit in units]
    starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    first, drop = None, []
    if settings.dedup == "document":
        first = first_occurrences((part for unit in units for part in unit.hashes()), scratch)
    if settings.near_dedup is not None:
        from mypt.text.near_dedup import near_duplicates

        paths = [unit.path.with_suffix(".signatures.npy") for unit, size in zip(units, sizes, strict=True) if size]
        drop.append(near_duplicates((np.load(path, mmap_mode="r") for path in paths), settings.near_dedup, scratch))
    if held_texts:
        marks, wanted = Marks(int(starts[-1])), np.array(held_texts, np.uint64)
        for unit, start in zip(units, starts, strict=False):
            marks.mark(np.flatnonzero(np.isin(unit.rows["hash"], wanted)) + start)
        drop.append(marks)
    if held is not None:
        drop.append(shared(held, map(_id_hashes, units), scratch))
    assignment = SplitAssignment(units, settings, starts, first, tuple(drop))
    by_hash = not settings.val_fraction or (hash_only and settings.val_split == "hash")
    return assignment if by_hash or not assignment.documents else _divide(assignment, scratch, run.say, present)


def _id_hashes(unit: EncodedUnit) -> np.ndarray:
    """`id_hash` of each document, uint64 (documents,)."""
    ids, tokens = unit.ids, unit.rows["tokens"]
    ends = np.cumsum(tokens)
    spans = zip((ends - tokens).tolist(), (ends - 1).tolist(), strict=True)  # EOS left out
    return np.fromiter((id_hash(ids[begin:end]) for begin, end in spans), np.uint64, len(ends))


def require_splits(assignment: SplitAssignment) -> None:
    """Raise DataError if a split that was asked for would be empty."""
    settings = assignment.settings
    [total] = _shares(assignment, [""] * len(assignment.units)).values()
    for name in SPLITS:
        if not getattr(total, name) and (name == "train" or settings.val_fraction):
            other = "" if settings.val_split == "tail" else ", or use --val-split tail"
            raise DataError(
                f"the {name} split of {total.train + total.val} documents is empty with --val-fraction "
                f"{settings.val_fraction:g}; change it (0: no val split), give more text{other}"
            )


def _divide(assignment: SplitAssignment, scratch: Path, say: Callable[[str], object], present: int) -> SplitAssignment:
    """Choose which documents are val.

    val_split tail: the end of the whole text, in characters. hash: the documents chosen by their hashes; but where
    that would put another share of the tokens into val than was asked for, or a source of more than BLOCK characters
    on one side, the end of each source concerned, in tokens. With fewer than FEWEST_FOR_HASH documents, if `present`
    is 0: the end of the whole text, if that has all such files on both sides; else each file counts as a source.
    """
    settings, names = assignment.settings, [unit.unit.source for unit in assignment.units]
    if settings.val_split == "tail":
        return _with_tail(assignment)
    shares = _shares(assignment, names)
    documents = sum(share.train + share.val for share in shares.values())
    if documents < FEWEST_FOR_HASH and not present:
        whole, units = _with_tail(assignment), [unit.unit for unit in assignment.units]
        # How documents are dealt to ranks depends on the job, not on the text.
        names = [u.paths[0] if len(u.paths) == 1 and u.kind != "rank" else u.source for u in units]
        if not any(share.one_sided for share in _shares(whole, names).values()):
            say(f"only {documents} documents: val is the tail of the text rather than a share of the documents")
            return whole
        shares = _shares(assignment, names)
    groups = {name: name if share.characters > BLOCK else SHORT for name, share in shares.items()}
    group_shares = _summed((groups[name], share) for name, share in shares.items())
    one_sided = [name for name, share in shares.items() if share.one_sided]
    cut = groups_to_cut(group_shares, set(one_sided), settings.val_fraction, present)
    if cut:
        tails = {}
        for group in cut:
            units = [unit for unit, name in enumerate(names) if groups[name] == group]
            place = round(group_shares[group].tokens * (1 - settings.val_fraction))
            tails |= dict.fromkeys(units, _tail(assignment, units, "tokens", place, ended=True))
        tailed, total = [name for name in shares if groups[name] in cut], reduce(Share.plus, shares.values())
        by_hash = total.val_tokens / max(1, total.tokens)
        sources = "1 source" if len(one_sided) == 1 else f"{len(one_sided)} sources"
        say(
            f"val is the last {settings.val_fraction:.3g} of the tokens of {len(tailed)} of {len(shares)} sources "
            f"({few(tailed)}): by hash, val would have {by_hash:.3g} of all tokens"
            + f" and {sources} would be on one side only"
            * bool(one_sided)
        )
        assignment = replace(assignment, tails=tails)
        if settings.dedup != "document":
            assignment = _with_copies_together(assignment, scratch)
        hashes = sorted(f"{value:016x}" for value in assignment.cut_hashes())
        replaced = {"tail_of": tailed, "share_by_hash": by_hash, "cut": hashes}
        assignment = replace(assignment, replaced=replaced)
        shares = _shares(assignment, names)
    for split in SPLITS:
        alone = [name for name, share in shares.items() if getattr(share, split) == share.train + share.val > 0]
        if alone and len(shares) > 1:
            say(f"in {split} only: {len(alone)} of {len(shares)} sources, too short to divide ({few(alone)})")
    return assignment


def _shares(assignment: SplitAssignment, names: list[str]) -> dict[str, Share]:
    """The share of each source under the assignment; `names` has the source of each unit."""
    cuts = assignment.cuts

    def share(index: int) -> Share:
        table, kept, assigned = assignment.units[index].rows, assignment.kept(index), assignment.assigned(index)
        characters, tokens = (int(table[column][kept].sum()) for column in ("characters", "tokens"))
        train, val = (int((assigned == side).sum()) + (index in cuts) for side in (TRAIN, VAL))
        return Share(characters, tokens, int(table["tokens"][assigned == VAL].sum()), train, val)

    return _summed((name, share(index)) for index, name in enumerate(names))


def _summed(pairs: Iterable[tuple[str, Share]]) -> dict[str, Share]:
    shares: dict[str, Share] = {}
    for name, share in pairs:
        shares[name] = shares.get(name, Share()).plus(share)
    return shares


def _with_tail(assignment: SplitAssignment) -> SplitAssignment:
    """Val is the tail of the whole text."""
    units = range(len(assignment.units))
    characters = sum(int(assignment.units[unit].rows["characters"][assignment.kept(unit)].sum()) for unit in units)
    place = tail_cut(characters, assignment.settings.val_fraction)
    return replace(assignment, tails=dict.fromkeys(units, _tail(assignment, units, "characters", place, ended=False)))


def _tail(assignment: SplitAssignment, units: Iterable[int], measure: str, place: int, *, ended: bool) -> Tail:
    """The tail of some units from `place` on, in tokens or characters, whichever `measure` names."""
    before = 0
    for unit in units:
        table = assignment.units[unit].rows
        part = table[measure] * assignment.kept(unit)
        ends = before + np.cumsum(part)
        row = int(np.searchsorted(ends, place, side="right"))  # the first document that ends after the cut
        if row < len(part):
            inside, first = place - int(ends[row] - part[row]), int(assignment.starts[unit]) + row
            characters = int(table["characters"][row]) * inside // int(part[row])
            return Tail(first + 1, Cut(unit, row, characters, ended)) if characters else Tail(first, None)
        before = int(ends[-1]) if len(part) else before
    return Tail(int(assignment.starts[-1]), None)


def _with_copies_together(assignment: SplitAssignment, scratch: Path) -> SplitAssignment:
    """All copies of a text go to train if one does, and a document with copies is not cut."""
    wanted, seen = np.array(sorted(assignment.cut_hashes()), np.uint64), []
    for index, unit in enumerate(assignment.units):
        table = unit.rows["hash"][assignment.kept(index)]
        seen += table[np.isin(table, wanted)].tolist()
    tails = {}
    for unit, tail in assignment.tails.items():
        copied = tail.cut and seen.count(int(assignment.units[tail.cut.unit].rows["hash"][tail.cut.row])) > 1
        tails[unit] = Tail(tail.first, None) if copied else tail  # before val's first document: in train
    assignment = replace(assignment, tails=tails)
    everything = (np.array(unit.rows["hash"]) for unit in assignment.units)
    return replace(assignment, in_train=shared(assignment.hashes(TRAIN), everything, scratch))
