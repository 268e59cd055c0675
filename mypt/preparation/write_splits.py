"""Write the tokens of encoded units to the shards of train and val."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator

import numpy as np
import xxhash

from mypt.preparation.assignment import DROPPED, TRAIN, VAL, Cut, SplitAssignment, split_at
from mypt.preparation.encoding import load_encoder
from mypt.preparation.prepare_run import PrepareRun
from mypt.preparation.units import EncodedText, EncodedUnit, EncodeJob
from mypt.shards.format import DTYPES, SPLITS, Split
from mypt.shards.writer import ShardWriter

_CHUNK_TOKENS = 4_000_000  # copied at once; a longer document goes alone


def write_splits(
    run: PrepareRun, encoded: EncodedText, assignment: SplitAssignment
) -> tuple[dict[str, Split], list[dict]]:
    """Write the shards of train and val to the staging folder, in the order of the input.

    Returns them, and the name, counts and digest of each source.
    """
    for split in SPLITS:
        shutil.rmtree(run.staging / split, ignore_errors=True)
    job, units, cuts = encoded.job, encoded.units, assignment.cuts
    writers = {split: ShardWriter(run.staging, split, job.dtype, run.settings.tokens_per_shard) for split in SPLITS}
    counts = {unit.unit.source: Counter() for unit in units}
    digests = {source: xxhash.xxh3_128() for source in counts}
    total = sum(int(unit.rows["tokens"].sum()) for unit in units)
    try:
        with run.bar("writing shards", total, "tokens") as bar:
            for index, unit in enumerate(units):
                found, assigned, cut = counts[unit.unit.source], assignment.assigned(index), cuts.get(index)
                digests[unit.unit.source].update(unit.result.digest.encode())
                found["documents"] += int(np.count_nonzero(assigned != DROPPED)) + (cut is not None)
                for split, ids, tokens, text_bytes, continued in _by_split(job, unit, assigned, cut):
                    writers[split].write(ids, tokens, text_bytes, continued=continued)
                    begun = len(tokens) - continued
                    found.update({"bytes": int(text_bytes.sum()), "tokens": len(ids), split: begun})
                bar.update(int(unit.rows["tokens"].sum()))
        splits = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    return splits, [
        {
            "name": source,
            **{what: counts[source][what] for what in ("documents", "bytes", "tokens")},
            "splits": {split: counts[source][split] for split in SPLITS},
            "xxh3_128": digest.hexdigest(),  # neither names nor times of files change it
        }
        for source, digest in digests.items()
    ]


_Chunk = tuple[
    np.ndarray, np.ndarray, np.ndarray, bool
]  # ids (n,); ids and bytes of each document; whether the first is continued


def _by_split(
    job: EncodeJob, unit: EncodedUnit, assigned: np.ndarray, cut: Cut | None
) -> Iterator[tuple[str, *_Chunk]]:
    """The documents of a unit, each chunk with its split; what is cut comes between those of train and of val."""
    yield from (("train", *chunk) for chunk in _documents(unit, assigned == TRAIN))
    if cut:
        yield from _cut_parts(job, unit, cut)
    yield from (("val", *chunk) for chunk in _documents(unit, assigned == VAL))


def _documents(unit: EncodedUnit, chosen: np.ndarray) -> Iterator[_Chunk]:
    """The chosen documents of a unit, at most _CHUNK_TOKENS at once. Read, since a mapped file counts as memory."""
    if not chosen.any():
        return
    table, path, dtype = unit.rows, unit.path.with_suffix(".ids"), DTYPES[unit.dtype]
    ends = np.cumsum(table["tokens"])
    first = 0
    while first < len(table):
        begin = int(ends[first] - table["tokens"][first])
        last = max(first + 1, int(np.searchsorted(ends, begin + _CHUNK_TOKENS, side="right")))
        which, tokens, sizes = chosen[first:last], table["tokens"][first:last], table["bytes"][first:last]
        total = int(ends[last - 1]) - begin
        if total > _CHUNK_TOKENS and which[0]:  # one long document, in parts
            for start in range(0, total, _CHUNK_TOKENS):
                count = min(_CHUNK_TOKENS, total - start)
                ids = np.fromfile(path, dtype, count, offset=(begin + start) * dtype.itemsize)
                share = [int(sizes[0]) * place // total for place in (start, start + len(ids))]
                yield ids, np.array([len(ids)]), np.diff(share), start > 0
        elif which.any():
            ids = np.fromfile(path, dtype, total, offset=begin * dtype.itemsize)
            yield ids if which.all() else ids[np.repeat(which, tokens)], tokens[which], sizes[which], False
        first = last


def _cut_parts(job: EncodeJob, unit: EncodedUnit, cut: Cut) -> Iterator[tuple[str, *_Chunk]]:
    """Read the cut document again and encode its two parts."""
    encoder, place, begun = load_encoder(job), 0, set()
    add, size = {split: encoder.document() for split in SPLITS}, dict.fromkeys(SPLITS, 0)
    for text, ended in unit.parts(cut.row, job):
        for split, part in split_at(text, place, cut.characters):
            last = ended if split == "val" else place + len(part) == cut.characters
            ids, size[split] = add[split](part, last), size[split] + len(part.encode())
            if last and (split == "val" or cut.ended):
                ids = np.append(ids, np.uint32(job.eos_token_id))
            if len(ids):  # else none is certain yet
                yield split, ids, np.array([len(ids)]), np.array([size[split]]), split in begun
                begun.add(split)
                size[split] = 0
        place += len(text)
