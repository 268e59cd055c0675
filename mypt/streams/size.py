"""How many documents and tokens a streamed source holds: counted, or estimated; the ledger that follows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

import numpy as np
import xxhash

from mypt.errors import DataError, MyPTError
from mypt.files import replace_text
from mypt.json_files import Rule, read_json
from mypt.streams.document_reader import Cursor, kept_text
from mypt.streams.ledger import Seen
from mypt.streams.permutation import derive_key, permute
from mypt.streams.timeline import Source
from mypt.text.clean import Cleaner
from mypt.text.formats import KINDS
from mypt.text.sources import Unit, document_count, read_documents, stamp
from mypt.tokenization.fast import Encoder, choose_engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STREAMED_KINDS = (*(name for name in KINDS if name != "text"), "arrow", "hub")  # of units; plain text is prepared
SIZE_NAME = "stream_size.json"  # in the run folder
COUNTED_CHARACTERS = 128 * 1024 * 1024  # a source up to this size is counted whole, of a larger one as much
BYTES_PER_TOKEN = 4  # English text under a BPE tokenizer of some tens of thousands of tokens
SAMPLE_DOCUMENTS = 100  # of each of so many units, for a guess
SAMPLE_UNITS = 16
_GROUP = 1_000  # documents tokenised at once


def fingerprint(units: Sequence[Unit]) -> str:
    """xxh3-128 of what the units are and of their stamps, not of their names: moved data is still the same data."""
    content = [(unit.kind, unit.start, unit.stop, unit.document, unit.text_column, stamp(unit)) for unit in units]
    return xxhash.xxh3_128_hexdigest(repr(content).encode())


def _is_size(size: Size) -> bool:
    return size.documents >= 0 and size.tokens_per_document >= 0


class _Counted(TypedDict):
    size: Annotated[Size, Rule(_is_size, "documents and tokens, 0 or more")]


def read_size(path: Path, **counted: object) -> Size | None:
    """The size that `write_size` left in `path`, if it was counted of the same; None if not, or there is no file."""
    try:
        content = read_json(path, _Counted)
    except MyPTError:  # missing, damaged, or of another version: it is counted again
        return None
    same = all(content.get(name) == value for name, value in counted.items())
    return content["size"] if same else None


def write_size(path: Path, size: Size, **counted: object) -> None:
    """Keep a size, with what it was counted of: fingerprint of the data, tokenizer and settings."""
    replace_text(path, json.dumps(counted | {"size": size}))


def count_epoch(
    units: Sequence[Unit],
    tokenizer: PreTrainedTokenizerFast,
    *,
    val_fraction: float = 0.0,
    max_examples: int | None = None,
    limit: int = COUNTED_CHARACTERS,
) -> Size:
    """The documents and tokens of one epoch of a `JitStream` with these settings, cleaned and tokenised as it does.

    All is read up to `limit` characters, and the size is exact. For a larger source, whole units are read in an order
    that mixes them, until the limit is passed, and the rest is taken to be like them by its size in bytes, rows or
    shards. Raises DataError for a source without a document to train on, and as reading does.
    """
    order = np.arange(len(units))
    if max_examples is None:
        order = permute(order, len(units), derive_key(0, len(units)))
    keep = partial(kept_text, Cleaner(), val_fraction=val_fraction)
    encoder = None
    read = characters = documents = tokens = done = 0
    for index in order.tolist():
        if characters > limit:
            break
        left = None if max_examples is None else max_examples - read
        found = itertools.islice(read_documents(units[index]), left)
        while group := list(itertools.islice(found, _GROUP)):
            texts = [text for text in map(keep, (document.text for document in group)) if text is not None]
            read, documents = read + len(group), documents + len(texts)
            characters += sum(map(len, texts))
            if texts:
                encoder = encoder or document_encoder(tokenizer, texts)
                tokens += len(encoder(texts)[0]) + len(texts)  # an EOS ends each
        done += 1
    if not documents:
        names = ", ".join(dict.fromkeys(unit.source for unit in units))
        raise DataError(f"{names}: no document to train on was found; all are empty, dropped or held out")
    per_document = tokens / documents
    if done == len(order) or read == max_examples:
        return Size(documents, per_document, exact=True)
    if max_examples is not None:
        return Size(max_examples * documents / read, per_document)
    chosen, all_units = (sum(map(_extent, map(units.__getitem__, part))) for part in (order[:done], order))
    return Size(documents * all_units / chosen, per_document)


def document_encoder(tokenizer: PreTrainedTokenizerFast, sample: list[str]) -> Encoder:
    """The encoder of a stream's documents; sample: texts of it, on which an engine is tried."""
    backend = tokenizer.backend_tokenizer
    return Encoder(backend, choose_engine(backend, sample, say=lambda line: None), tokenizer.eos_token_id)


def _extent(unit: Unit) -> float:
    """The size of a unit relative to others of its source: bytes of files, rows of a dataset, 1 for a hub's shard."""
    if unit.kind == "hub":
        return 1
    if unit.kind == "arrow":
        return unit.stop - unit.start
    if unit.kind == "parquet" or (unit.kind == "ipc" and unit.stop is not None):
        return max(1, document_count([unit]))
    sizes = [Path(path).stat().st_size for path in unit.paths]
    return max(1, min(sum(sizes), unit.stop or sum(sizes)) - unit.start)


def guess_tokens(units: Sequence[Unit], val_fraction: float = 0.0, max_examples: int | None = None) -> int:
    """About how many tokens an epoch has, without a tokenizer; 0 where the number of documents is not known.

    The number of documents (metadata, or the mean length of the first lines), times the mean length of the first ones
    of some units, at BYTES_PER_TOKEN.
    """
    documents = document_count(units)
    if max_examples is not None:
        documents = min(documents or max_examples, max_examples)
    most = 1 if units[0].kind == "hub" else SAMPLE_UNITS  # of the hub each is another download
    chosen = units[:: -(-len(units) // most)]
    sizes = [
        len(document.text.encode("utf-8", "surrogatepass"))
        for unit in chosen
        for document in itertools.islice(read_documents(unit), SAMPLE_DOCUMENTS)
    ]
    mean = sum(sizes) / max(1, len(sizes)) / BYTES_PER_TOKEN + 1
    return round(documents * mean * (1 - val_fraction)) if sizes else 0


ENOUGH = 1_000  # documents, from which on the mean length of those seen is better than an expectation


class Size(NamedTuple):
    """Documents in one epoch (0: not known) and tokens per document, EOS included; `exact` if all were counted."""

    documents: float = 0
    tokens_per_document: float = 0
    exact: bool = False

    @property
    def tokens(self) -> int:
        """In one epoch; 0: not known."""
        return round(self.documents * self.tokens_per_document)


UNKNOWN = Size()


class EstimatedLedger:
    """The account of a `JitStream`, with the attributes of a `Ledger`; nothing of it changes on the way.

    name: of all sources together. block_size: targets per sample. stride: tokens from one window to the next.
    expected: the size with which the run began, from which its length follows.
    """

    main = 0

    def __init__(self, name: str, block_size: int, stride: int, expected: Size):
        self.name = name
        self.block_size = block_size
        self.stride = stride
        self.expected = expected
        self.events: list[dict] = []
        self.size = expected  # by what is known now

    def count(self, cursors: Iterable[Cursor], readers: int, next_sample: int) -> None:
        """Take note of where some of the readers are, and all of them together."""
        if self.expected.exact:
            return
        documents, per_document, _ = self.expected
        cursors = list(cursors)
        more = readers / len(cursors)  # the others are taken to be like those that are known
        given = more * sum(cursor.documents for cursor in cursors)
        if all(cursor.epoch for cursor in cursors):
            documents = more * sum(cursor.first_documents for cursor in cursors)
            per_document = more * sum(cursor.first_tokens for cursor in cursors) / max(1, documents)
            self.size = Size(documents, per_document, exact=len(cursors) == readers)
            return
        if given >= ENOUGH or not per_document:
            per_document = next_sample * self.stride / max(1, given)
        self.size = Size(documents, per_document)

    @property
    def tokens_per_epoch(self) -> int:
        """By what was known when the run began, as of a `ShardStream`: its length must not change; 0: not known."""
        return self.expected.tokens

    @property
    def samples_per_epoch(self) -> int:
        """By what was known when the run began; 0: not known."""
        return -(-self.tokens_per_epoch // self.stride)

    @property
    def sources(self) -> list[Source]:
        """All of them as one, with the tokens that are known now."""
        return [Source(self.name, self.size.tokens, 1.0)]

    def seen(self, next_sample: int) -> list[Seen]:
        """The expected account of the source after so many samples, by what is known now."""
        tokens, viewed = self.size.tokens, next_sample * self.block_size
        epochs, coverage = (next_sample * self.stride / tokens, viewed / tokens) if tokens else (None, None)
        return [Seen(self.name, next_sample, viewed, epochs, coverage, estimated=not self.size.exact)]

    def state(self, next_sample: int) -> dict:
        """The state, JSON-ready; `seen` cannot be worked out from the rest."""
        return {
            "next_sample": next_sample,
            "block_size": self.block_size,
            "expected": list(self.expected),
            "sources": [asdict(source) for source in self.sources],
            "events": self.events,
            "seen": [asdict(seen) for seen in self.seen(next_sample)],
        }
