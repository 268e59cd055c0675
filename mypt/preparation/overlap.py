"""Find the text that two dataset directories share: documents, and lines too long to be shared by chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.shards.format import Manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.scan import checked_chunks, piece_lengths, read_chunks
from mypt.terminal import bytes_bar
from mypt.text.dedup import shared
from mypt.tokenization.data_tokenizer import load_data_tokenizer
from mypt.tokenization.token_bytes import TextOf

LONG_LINE = 40  # characters from which a shared line is more than a shared phrase
_WHOLE_TOKENS = 1 << 24  # a document up to this long is decoded in one go
_HASH = np.dtype("u8")


@dataclass(frozen=True)
class Shared:
    """The text of one split of `directory` that also occurs in a split of `other`, counted."""

    directory: str
    split: str
    other: str
    other_split: str
    documents: int  # that have any text
    shared_documents: int
    lines: int | None  # of LONG_LINE characters or more; None: not looked at
    shared_lines: int | None

    @property
    def leaks(self) -> bool:
        """Whether text that measures a model is among text that trains one."""
        return self.split == "val" and self.other_split == "train" and self.shared_documents > 0


def overlaps(first: str | Path, second: str | Path, *, lines: bool = True) -> list[Shared]:
    """Count the text that two directories share, val text in the other's train split first.

    Documents are equal if their ids are (equal tokenizers, no `lines`), else if their decoded texts are. Lines are
    stripped. Each split is read once; its hashes (8 bytes each) go to a temporary folder, so memory does not grow.
    Raises DataError if a directory is no dataset or is damaged.
    """
    directories = [Path(first), Path(second)]
    if directories[0].resolve() == directories[1].resolve():
        raise DataError(f"{first} and {second} are the same directory; name two")
    manifests = [open_dataset(directory) for directory in directories]
    by_ids = not lines and manifests[0].tokenizer_hash == manifests[1].tokenizer_hash
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="mypt-overlap-")))
        bar = stack.enter_context(bytes_bar("comparing", sum(manifest.bytes for manifest in manifests)))
        for index, (directory, manifest) in enumerate(zip(directories, manifests, strict=True)):
            encode = _id_bytes if by_ids else TextOf(load_data_tokenizer(directory))
            for split in _present(manifest):
                _write_hashes(directory, manifest, split, encode, lines, scratch / f"{index}-{split}", bar.update)
        pairs = [
            (a, split, b, other_split)
            for a, b in ((0, 1), (1, 0))
            for split in _present(manifests[a])
            for other_split in _present(manifests[b])
        ]
        pairs.sort(key=lambda pair: (pair[1] != "val" or pair[3] != "train", pair[1] == pair[3] == "val"))
        return [_compare(directories, pair, lines, scratch) for pair in pairs]


def held_documents(directory: Path, manifest: Manifest, scratch: Path) -> Iterator[np.ndarray]:
    """`id_hash` of every document of every split, uint64 (documents,) in chunks. Raises DataError for damage."""
    for split in _present(manifest):
        _write_hashes(directory, manifest, split, _id_bytes, False, scratch / split, lambda size: None)
        yield from read_chunks(scratch / f"{split}.documents", _HASH)


def id_hash(ids: np.ndarray) -> int:
    """xxh3-64 of a document's ids without EOS: with one tokenizer equal for equal texts alone."""
    return xxhash.xxh3_64_intdigest(_id_bytes(ids))


def _present(manifest: Manifest) -> list[str]:
    return [name for name, split in manifest.splits.items() if split.shards]


def _compare(directories: list[Path], pair: tuple[int, str, int, str], lines: bool, scratch: Path) -> Shared:
    a, split, b, other_split = pair

    def count(kind: str) -> tuple[int, int]:
        own, other = (scratch / f"{index}-{name}.{kind}" for index, name in ((a, split), (b, other_split)))
        marks = shared(read_chunks(other, _HASH), read_chunks(own, _HASH), scratch)
        return len(marks), marks.count()

    found = [*count("documents"), *(count("lines") if lines else (None, None))]
    return Shared(str(directories[a]), split, str(directories[b]), other_split, *found)


def _write_hashes(
    directory: Path,
    manifest: Manifest,
    split: str,
    encode: Callable[[np.ndarray], bytes],
    lines: bool,
    target: Path,
    advance: Callable[[int], object],
) -> None:
    """Write xxh3-64 of each document with any text, and of each long line, to TARGET.documents and TARGET.lines."""
    eos, digest, size, rest = manifest.eos_token_id, xxhash.xxh3_64(), 0, b""
    chunks = chunks_of_documents(checked_chunks(directory, manifest, split, advance), eos)
    with open(f"{target}.documents", "wb") as documents, open(f"{target}.lines", "wb") as long_lines:
        for ids in chain(chunks, [np.array([eos], manifest.numpy_dtype)]):  # the last may end in val
            hashes, line_hashes, begin = [], [], 0
            for end in np.cumsum(piece_lengths(ids, eos)).tolist():
                ended = bool(ids[end - 1] == eos)
                text = encode(ids[begin : end - ended])
                digest.update(text)
                begin, size = end, size + len(text)
                if lines:
                    *full, rest = (rest + text).split(b"\n")
                    line_hashes += _long([*full, rest] if ended else full)
                if ended:
                    hashes += [digest.intdigest()] if size else []
                    digest, size, rest = xxhash.xxh3_64(), 0, b""
            documents.write(np.array(hashes, np.uint64).data)
            long_lines.write(np.array(line_hashes, np.uint64).data)


def chunks_of_documents(chunks: Iterable[np.ndarray], eos: int) -> Iterator[np.ndarray]:
    """The same stream in chunks that end with a document, but for documents of more than 16 Mi tokens."""
    waiting: list[np.ndarray] = []
    for ids in chunks:
        ends = np.flatnonzero(ids == eos)
        if len(ends):
            yield np.concatenate([*waiting, ids[: ends[-1] + 1]])
            waiting, ids = [], ids[ends[-1] + 1 :]
        if len(ids):
            waiting.append(ids)
        if sum(map(len, waiting)) >= _WHOLE_TOKENS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _long(lines: list[bytes]) -> list[int]:
    """The hashes of the lines that are long enough."""
    stripped = [line.strip() for line in lines]
    return [
        xxhash.xxh3_64_intdigest(line)
        for line in stripped
        if len(line) >= LONG_LINE and (line.isascii() or len(line.decode(errors="replace")) >= LONG_LINE)
    ]


def _id_bytes(ids: np.ndarray) -> bytes:
    return ids.astype("<u4").tobytes()
