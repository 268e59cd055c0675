"""The tokens of finished units to the shards of train and val."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from mypt.preparation.assignment import TRAIN, VAL, Cut, Resolution, split_at
from mypt.preparation.encoding import load_encoder
from mypt.preparation.units import Piece, Work, rows
from mypt.shards.format import DTYPES, SPLITS, Split
from mypt.shards.writer import ShardWriter

_CHUNK_TOKENS = 4_000_000  # copied at once; a longer document goes alone

Advance = Callable[[int], object]


def write_shards(
    work: Work,
    resolution: Resolution,
    pieces: list[Piece],
    writers: dict[str, ShardWriter],
    advance: Advance,
) -> tuple[dict[str, Split], dict[str, Counter]]:
    """Write train and val in the order of the input; returns their shards and the counts of each source.

    `advance` is called with the tokens of each unit.
    """
    sources = {piece.unit.source: Counter(documents=0, bytes=0, tokens=0, train=0, val=0) for piece in pieces}
    cuts = resolution.cuts
    try:
        for piece in pieces:
            index, counts = piece.number, sources[piece.unit.source]
            for split, fate in zip(SPLITS, (TRAIN, VAL), strict=True):
                if index in cuts and split == "val":
                    _write_cut(work, piece, cuts[index], writers, counts)
                for ids, tokens, sizes, goes_on in _documents(work, resolution, index, fate):
                    writers[split].write(ids, tokens, sizes, goes_on=goes_on)
                    begun = len(tokens) - goes_on
                    counts.update({"documents": begun, "bytes": int(sizes.sum()), "tokens": len(ids), split: begun})
            advance(int(rows(work.folder, index)["tokens"].sum()))
        return {split: writer.close() for split, writer in writers.items()}, sources
    finally:
        for writer in writers.values():
            writer.abandon()


def _documents(
    work: Work, resolution: Resolution, index: int, fate: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
    """A unit's documents with one fate, at most _CHUNK_TOKENS at once: ids (n,), ids and bytes of each document, and
    whether the first of them began in the chunk before. Read rather than mapped: a mapped file counts as memory."""
    table, chosen = rows(work.folder, index), resolution.fates(index) == fate
    if not chosen.any():
        return
    path, width = work.folder / f"{index:05d}.ids", DTYPES[work.dtype].itemsize
    ends = np.cumsum(table["tokens"])
    first = 0
    while first < len(table):
        begin = int(ends[first] - table["tokens"][first])
        last = max(first + 1, int(np.searchsorted(ends, begin + _CHUNK_TOKENS, side="right")))
        which, tokens, sizes = chosen[first:last], table["tokens"][first:last], table["bytes"][first:last]
        total = int(ends[last - 1]) - begin
        if total > _CHUNK_TOKENS and which[0]:  # one long document, in parts
            for start in range(0, total, _CHUNK_TOKENS):
                ids = np.fromfile(
                    path, DTYPES[work.dtype], min(_CHUNK_TOKENS, total - start), offset=(begin + start) * width
                )
                share = [int(sizes[0]) * place // total for place in (start, start + len(ids))]
                yield ids, np.array([len(ids)]), np.diff(share), start > 0
        elif which.any():
            ids = np.fromfile(path, DTYPES[work.dtype], total, offset=begin * width)
            yield ids if which.all() else ids[np.repeat(which, tokens)], tokens[which], sizes[which], False
        first = last


def _write_cut(work: Work, piece: Piece, cut: Cut, writers: dict[str, ShardWriter], counts: Counter) -> None:
    """Read the cut document again and encode its two parts."""
    encoder, place, begun = load_encoder(work), 0, set()
    add, size = {split: encoder.document() for split in SPLITS}, dict.fromkeys(SPLITS, 0)
    for text, ended in piece.parts(cut.row, work.settings.cleaner()):
        for split, part in split_at(text, place, cut.characters):
            last = ended if split == "val" else place + len(part) == cut.characters
            ids, size[split] = add[split](part, last), size[split] + len(part.encode())
            if last and (split == "val" or cut.ended):
                ids = np.append(ids, np.uint32(work.eos_token_id))
            if not len(ids):  # none is certain yet
                continue
            writers[split].write(ids, [len(ids)], [size[split]], goes_on=split in begun)
            counts.update({"bytes": size[split], "tokens": len(ids), split: split not in begun})
            begun.add(split)
            size[split] = 0
        place += len(text)
    counts["documents"] += 1
