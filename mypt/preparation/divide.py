"""Choose how each source is divided into train and val: by the hashes of its documents, or at its tail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mypt.preparation.assignment import (
    BLOCK,
    FEWEST_FOR_HASH,
    TRAIN,
    VAL,
    Cut,
    Resolution,
    Share,
    Tail,
    groups_to_cut,
    tail_cut,
)
from mypt.preparation.units import rows
from mypt.text.dedup import shared

SHORT = ""  # the group of all sources of up to BLOCK characters
_NAMED = 5  # sources in a message


@dataclass
class _Source:
    """The documents of one source that are kept, and what a split makes of them."""

    units: list[int]
    documents: int = 0
    characters: int = 0
    tokens: int = 0
    val_tokens: int = 0
    sides: set[int] = field(default_factory=set)  # TRAIN, VAL


def divide(
    resolution: Resolution,
    sources: list[str],
    files: list[str],
    scratch: Path,
    say: Callable[[str], object],
    *,
    present: int = 0,
    hash_only: bool = False,
) -> dict | None:
    """Settle which documents are val. `sources` has the source of each unit, `files` its file where it has one.

    val_split tail: the end of the whole text, in characters. hash: the documents chosen by their hashes; but where
    that would put another share of the tokens into val than was asked for, or a source of more than BLOCK characters
    on one side, the end of each source concerned, in tokens. With fewer than FEWEST_FOR_HASH documents, if `present`
    is 0: the end of the whole text, if that has all such files on both sides; else each file counts as a source.
    `hash_only`: by hash in any case.

    present: tokens of the dataset that the text is added to. Returns what replaces the split by hash, for the report;
    None if nothing does.
    """
    settings = resolution.settings
    if not settings.val_fraction or (hash_only and settings.val_split == "hash"):
        return None
    if settings.val_split == "tail":
        _cut_whole(resolution)
        return None
    found = _measured(resolution, sources)
    documents = sum(source.documents for source in found.values())
    if documents < FEWEST_FOR_HASH and not present:
        _cut_whole(resolution)
        if not _one_sided(_measured(resolution, files)):
            say(f"only {documents} documents: val is the tail of the text rather than a share of the documents")
            return None
        resolution.tails, resolution.groups, sources = {}, [], files
        found = _measured(resolution, sources)
    cut = _cut_groups(resolution, found, sources, present)
    replaced = _explain(found, cut, settings.val_fraction, say) if cut else None
    if settings.dedup != "document" and cut:
        _keep_copies_together(resolution, scratch)
    if replaced:
        cuts = resolution.cuts.values()
        hashes = (int(rows(resolution.folder, one.unit)["hash"][one.row]) for one in cuts)
        replaced["cut"] = sorted(f"{value:016x}" for value in hashes)
    _name_one_sided(_measured(resolution, sources), say)
    return replaced


def _measured(resolution: Resolution, sources: list[str]) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    for unit, name in enumerate(sources):
        source = found.setdefault(name, _Source([]))
        table, kept, fates = rows(resolution.folder, unit), resolution.kept(unit), resolution.fates(unit)
        source.units.append(unit)
        source.documents += int(kept.sum())
        source.characters += int(table["characters"][kept].sum())
        source.tokens += int(table["tokens"][kept].sum())
        source.val_tokens += int(table["tokens"][fates == VAL].sum())
        source.sides |= set(np.unique(fates).tolist()) & {TRAIN, VAL}
        if unit in resolution.cuts:
            source.sides |= {TRAIN, VAL}
    return found


def _one_sided(found: dict[str, _Source]) -> list[str]:
    """The sources that are long enough to be on both sides, and are on one."""
    return [name for name, source in found.items() if source.characters > BLOCK and len(source.sides) == 1]


def _cut_whole(resolution: Resolution) -> None:
    lengths = {unit: rows(resolution.folder, unit)["characters"] for unit in resolution.units}
    characters = sum(int((resolution.kept(unit) * part).sum()) for unit, part in lengths.items())
    resolution.groups = [SHORT for _ in resolution.units]
    place = tail_cut(characters, resolution.settings.val_fraction)
    resolution.tails = {SHORT: _tail(resolution, lengths, place, ended=False)}


def _cut_groups(resolution: Resolution, found: dict[str, _Source], sources: list[str], present: int) -> list[str]:
    """Give the groups whose split by hash is not good enough a tail; returns the names of these groups."""
    fraction = resolution.settings.val_fraction
    groups = {name: name if source.characters > BLOCK else SHORT for name, source in found.items()}
    shares: dict[str, Share] = {}
    for name, source in found.items():
        share = Share(source.characters, source.tokens, source.val_tokens)
        shares[groups[name]] = shares.get(groups[name], Share()).plus(share)
    cut = groups_to_cut(shares, set(_one_sided(found)), fraction, present)
    resolution.groups = [groups[name] for name in sources]
    for group in cut:
        units = [unit for unit in resolution.units if resolution.groups[unit] == group]
        lengths = {unit: rows(resolution.folder, unit)["tokens"] for unit in units}
        place = round(shares[group].tokens * (1 - fraction))
        resolution.tails[group] = _tail(resolution, lengths, place, ended=True)
    return cut


def _tail(resolution: Resolution, lengths: dict[int, np.ndarray], place: int, *, ended: bool) -> Tail:
    """The tail of some units from `place` on, in the measure of `lengths`, which has those of documents by unit."""
    before = 0
    for unit, length in lengths.items():
        part = length * resolution.kept(unit)
        ends = before + np.cumsum(part)
        row = int(np.searchsorted(ends, place, side="right"))  # the first document that ends behind the cut
        if row < len(part):
            inside, first = place - int(ends[row] - part[row]), int(resolution.starts[unit]) + row
            characters = int(rows(resolution.folder, unit)["characters"][row]) * inside // int(part[row])
            if characters == 0:
                return Tail(first, None)
            return Tail(first + 1, Cut(unit, row, characters, ended))
        before = int(ends[-1]) if len(part) else before
    return Tail(int(resolution.starts[-1]), None)


def _keep_copies_together(resolution: Resolution, scratch: Path) -> None:
    """Where copies of a text are kept, all of them go to train if one does, and a document with copies is not cut."""
    cuts = {int(rows(resolution.folder, cut.unit)["hash"][cut.row]): cut for cut in resolution.cuts.values()}
    wanted = np.array(sorted(cuts), np.uint64)
    seen: list[int] = []
    for unit in resolution.units:
        table = rows(resolution.folder, unit)["hash"][resolution.kept(unit)]
        seen += table[np.isin(table, wanted)].tolist()
    for group, (first, cut) in resolution.tails.items():
        if cut and seen.count(int(rows(resolution.folder, cut.unit)["hash"][cut.row])) > 1:
            resolution.tails[group] = Tail(first, None)  # before val's first document: in train
    everything = (np.array(rows(resolution.folder, unit)["hash"]) for unit in resolution.units)
    resolution.in_train = shared(resolution.hashes(TRAIN), everything, scratch)


def _explain(found: dict[str, _Source], cut: list[str], fraction: float, say: Callable[[str], object]) -> dict:
    """Report why val is the tail of some sources."""
    names = [name for name, source in found.items() if (name if source.characters > BLOCK else SHORT) in cut]
    tokens = sum(source.tokens for source in found.values())
    share = sum(source.val_tokens for source in found.values()) / max(1, tokens)
    alone = _one_sided(found)
    sources = "1 source" if len(alone) == 1 else f"{len(alone)} sources"
    say(
        f"val is the last {fraction:.3g} of the tokens of {len(names)} of {len(found)} sources ({_few(names)}): by "
        f"hash, val would have {share:.3g} of all tokens" + f" and {sources} would be on one side only" * bool(alone)
    )
    return {"tail_of": names, "share_by_hash": share}


def _name_one_sided(found: dict[str, _Source], say: Callable[[str], object]) -> None:
    for side, name in ((TRAIN, "train"), (VAL, "val")):
        if (alone := [source for source, it in found.items() if it.sides == {side}]) and len(found) > 1:
            say(f"in {name} only: {len(alone)} of {len(found)} sources, too short to divide ({_few(alone)})")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
