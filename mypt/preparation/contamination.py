"""Find evaluation text that is among the training data, by a bounded sample of pieces: cheap enough for every start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mypt.shards.format import Manifest
from mypt.shards.reader import ShardReader

PIECE_BYTES = 200  # of text, more than two documents share by chance; licences and the like stay below LEAST_SHARE
LEAST_SHARE, LEAST_PIECES = 0.01, 3  # of a set's pieces that are reported, and their number
# A directory's own splits share no document, but passages that its documents repeat: those are the corpus's nature.
LEAST_SHARE_OF_OWN = 0.25
MOST_PIECES = 20_000  # of each evaluation set
MOST_TOKENS = 2**22  # of training data that are read, over all directories
_BLOCK = 2**17  # tokens that are read at once where all are read
_SAMPLE = 2**12  # tokens of a sample: shorter ones meet more documents, longer ones need fewer requests
_SLOTS = 22  # bits of a hash that a table of candidates keeps
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Contamination:
    """An evaluation set whose text is in training data.

    Attributes:
        name: The set.
        directory: The training data that has most of it.
        share: Of the set's pieces; an estimate if `sampled` is below 1.
        sampled: The share of the directory's training tokens that was read.
    """

    name: str
    directory: str
    share: float
    sampled: float

    def __str__(self) -> str:
        about = "" if self.sampled == 1 else "about "
        return f"{about}{self.share:.0%} of {self.name} is in the training data of {self.directory}"


def find_contamination(
    sets: Mapping[str, tuple[str, str]], train: Sequence[str], manifests: Mapping[str, Manifest]
) -> list[Contamination]:
    """The evaluation sets that share text with training data, the worst first.

    A set is cut into pieces of about 200 bytes that do not overlap; a piece is shared if its token ids occur in a train
    split, at any position. Up to MOST_PIECES of a set are looked up, and up to MOST_TOKENS tokens of the training data
    are read, evenly spaced. Directories with another tokenizer than the set's are not compared.

    Args:
        sets: {name: (directory, split)}.
        train: The directories whose train splits are trained on.
        manifests: Of every directory in both.
    """
    pieces = {name: _pieces(*place, manifests[place[0]]) for name, place in sets.items()}
    worst: dict[str, Contamination] = {}
    total = sum(manifests[directory].splits["train"].tokens for directory in train)
    for directory in train:
        manifest = manifests[directory]
        compared = {
            name: found
            for name, found in pieces.items()
            if len(found.hashes) and manifests[sets[name][0]].tokenizer_hash == manifest.tokenizer_hash
        }
        for length in {found.length for found in compared.values()}:
            same = {name: found for name, found in compared.items() if found.length == length}
            quota = math.ceil(MOST_TOKENS * manifest.splits["train"].tokens / total)
            seen, sampled = _seen(directory, manifest, same, length, quota)
            for name, count in seen.items():
                share = min(1.0, count / sampled / len(same[name].hashes))
                least = LEAST_SHARE_OF_OWN if Path(directory) == Path(sets[name][0]) else LEAST_SHARE
                if count >= LEAST_PIECES and share >= max(least, getattr(worst.get(name), "share", 0)):
                    worst[name] = Contamination(name, directory, share, sampled)
    return sorted(worst.values(), key=lambda found: -found.share)


def contamination_line(found: Sequence[Contamination]) -> str | None:
    """One line for people; None where nothing is shared."""
    if not found:
        return None
    words = "; ".join(map(str, found))
    return f"warning: {words}: its loss falls because the text is learned by heart; `mypt verify` has the documents"


@dataclass(frozen=True)
class _Pieces:
    length: int  # tokens
    hashes: np.ndarray  # uint64, sorted, distinct


def _pieces(directory: str, split: str, manifest: Manifest) -> _Pieces:
    reader = ShardReader(directory, split, manifest=manifest, reading="pread")
    size = sum(shard.bytes for shard in reader.shards) / len(reader) if len(reader) else 0
    length = min(256, max(16, math.ceil(PIECE_BYTES / size))) if size else 50
    count = min(MOST_PIECES, len(reader) // length)
    if not count:
        return _Pieces(length, np.empty(0, np.uint64))
    starts = np.linspace(0, len(reader) // length - 1, count).astype(np.int64) * length
    ids = reader.gather(starts, length)
    in_order = np.sort(ids, axis=1)
    distinct = 1 + (in_order[:, 1:] != in_order[:, :-1]).sum(axis=1)
    ids = ids[distinct >= min(10, length // 2)]  # rules, blanks and tables of zeros are shared by chance
    powers = np.array([pow(int(_BASE), length - 1 - index, 2**64) for index in range(length)], np.uint64)
    return _Pieces(length, np.unique((_mixed(ids) * powers).sum(axis=1, dtype=np.uint64)))


def _seen(
    directory: str, manifest: Manifest, pieces: dict[str, _Pieces], length: int, quota: int
) -> tuple[dict[str, int], float]:
    """How many pieces of each set occur in what is read of a train split, and the share of it that is read."""
    reader = ShardReader(directory, "train", manifest=manifest, reading="pread")
    hashes = np.unique(np.concatenate([found.hashes for found in pieces.values()]))
    table, shift = np.zeros(2**_SLOTS, bool), np.uint64(64 - _SLOTS)
    table[hashes >> shift] = True
    hits = [np.empty(0, np.uint64)]
    total = len(reader)
    size = min(_BLOCK if total <= quota else _SAMPLE, total)
    if total <= quota:
        starts = np.arange(0, max(1, total - length + 1), max(1, size - length + 1))
    else:
        starts = np.linspace(0, total - size, max(1, quota // size)).astype(np.int64)
    read = 0
    for start in starts.tolist():
        ids = reader.gather(np.array([start]), min(size, total - start))[0]
        read += len(ids)
        if len(ids) >= length:
            rolled = _rolling(_mixed(ids), length)
            hits.append(rolled[table[rolled >> shift]])
    found = np.unique(np.concatenate(hits))  # a few of other hashes among them
    counts = {name: int(np.isin(each.hashes, found).sum()) for name, each in pieces.items()}
    return counts, 1.0 if total <= quota else min(1.0, read / total)


def _mixed(ids: np.ndarray) -> np.ndarray:
    """Token ids as numbers that look random; uint64, the same shape."""
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * _MIX
    return (mixed ^ (mixed >> np.uint64(29))) * _MIX


def _rolling(values: np.ndarray, length: int) -> np.ndarray:
    """The polynomial hash modulo 2^64 of `length` values from each position; uint64 (n,) -> (n - length + 1,).

    A hash of a + b values is hash(a) B^b + hash(b), so that the powers of two in `length` make it.
    """
    whole, size, power, done = None, 0, values, 1
    while True:
        base = np.uint64(pow(int(_BASE), done, 2**64))
        if length & done:
            if whole is None:
                whole, size = power, done
            else:
                most = len(values) - size - done + 1
                whole, size = whole[:most] * base + power[size : size + most], size + done
        if size == length:
            return whole
        power, done = power[:-done] * base + power[done:], 2 * done
