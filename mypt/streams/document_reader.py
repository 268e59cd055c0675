"""The documents of one reader (a process, or a DataLoader worker of it), shuffled in blocks and packed into windows."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mypt.errors import DataError
from mypt.preparation.assignment import hashed_to_val
from mypt.streams.permutation import derive_key, permute
from mypt.streams.stream_config import JitConfig
from mypt.text.clean import Cleaner
from mypt.text.dedup import text_hash
from mypt.text.plain import Document
from mypt.text.sources import Unit, read_documents

BLOCK_CHARACTERS = 64 * 1024 * 1024  # of a block's documents: where they are long, it ends before it is full
EMPTY_EPOCHS = 3  # so many without a document, and there is none


class Cursor(NamedTuple):
    """Where a reader resumes. `unit`, `document` and `ordinal` name the document that begins the current block."""

    epoch: int = 0
    unit: int = 0  # in the reader's order of this epoch
    document: int = 0  # in that unit
    ordinal: int = 0  # among all documents of the units before it and of this one
    drawn: int = 0  # documents of the block that are done, in its shuffled order
    token: int = 0  # tokens of the document after those that are done
    documents: int = 0  # given since the first cursor, this one not counted
    tokens: int = 0  # of these documents, EOS included
    first_documents: int = 0  # given in epoch 0, once that is over
    first_tokens: int = 0


START = Cursor()


@dataclass(frozen=True)
class DocumentReader:
    """Reader `number` of `readers`; together they give every document of the units once per epoch, endlessly.

    Every reader gets the same number of whole units, by an order that changes with (seed, epoch). The units that are
    left over are read by all, and each reader takes every readers-th document, so that they stay about in step. With
    `max_examples` all units are read so.

    The documents come in blocks of `shuffle_buffer`, each in an order of its own; a block ends with its epoch.
    keep: the text as it is trained on, or None to drop it; called when a document's turn has come.
    """

    units: list[Unit]
    number: int
    readers: int
    keep: Callable[[str], str | None]
    config: JitConfig

    def documents(self, cursor: Cursor) -> Iterator[tuple[Cursor, str]]:
        """Kept documents from `cursor` on, each with the cursor of its first token.

        Raises DataError after EMPTY_EPOCHS epochs without one.
        """
        given, last_epoch = cursor.documents, cursor.epoch - 1
        first_documents = cursor.first_documents
        while True:
            for block in self._blocks(cursor):
                start = block[0][0]
                key = derive_key(self.config.seed, cursor.epoch, self.number, start.ordinal)
                order = permute(np.arange(len(block)), len(block), key)
                for drawn in range(cursor.drawn, len(block)):
                    text = self.keep(block[order[drawn]][1])
                    block[order[drawn]] = None  # or all of this block would stay in memory with the next one
                    if text is not None:
                        yield start._replace(drawn=drawn, documents=given, first_documents=first_documents), text
                        given, last_epoch = given + 1, cursor.epoch
                cursor = cursor._replace(drawn=0)
            if cursor.epoch - last_epoch >= EMPTY_EPOCHS:
                self._refuse()
            if cursor.epoch == 0:
                first_documents = given
            cursor = Cursor(cursor.epoch + 1)

    def _blocks(self, cursor: Cursor) -> Iterator[list[tuple[Cursor, str]]]:
        """The rest of the epoch in blocks that are never empty."""
        documents = self._read(cursor)
        for first in documents:
            block, characters = [first], len(first[1])
            while len(block) < self.config.shuffle_buffer and characters < BLOCK_CHARACTERS:
                document = next(documents, None)
                if document is None:
                    break
                block.append(document)
                characters += len(document[1])
            yield block

    def _read(self, cursor: Cursor) -> Iterator[tuple[Cursor, str]]:
        """This reader's documents of the epoch in the order of the sources, from the cursor's block on."""
        units, shared = self._deal(cursor.epoch)
        ordinal = cursor.ordinal
        for index in range(cursor.unit, len(units)):
            every, mine = (self.readers, self.number) if index < shared else (1, 0)
            skip = cursor.document if index == cursor.unit else 0
            for number, document in enumerate(itertools.islice(read_documents(units[index]), skip, None), skip):
                if ordinal == self.config.max_examples:
                    return
                if ordinal % every == mine:
                    yield Cursor(cursor.epoch, index, number, ordinal), document.text
                ordinal += 1

    def _deal(self, epoch: int) -> tuple[list[Unit], int]:
        """Units that this reader reads, in order, and how many of the first it shares with all others."""
        if self.config.max_examples is not None:
            return self.units, len(self.units)
        order = permute(np.arange(len(self.units)), len(self.units), derive_key(self.config.seed, epoch))
        # Shared units come first: their documents have the same ordinals in all readers.
        shared = len(self.units) % self.readers
        mine = [*order[:shared], *order[shared + self.number :: self.readers]]
        return [self.units[index] for index in mine], shared

    def _refuse(self) -> None:
        names = ", ".join(dict.fromkeys(unit.source for unit in self.units))
        fewer = "; use fewer processes or dataloader_num_workers" if self.readers > 1 else ""
        raise DataError(
            f"reader {self.number + 1} of {self.readers} found no document to train on in {EMPTY_EPOCHS} passes over "
            f"{names}: all are empty, dropped by the filters or held out for evaluation{fewer}"
        )


def kept_text(cleaner: Cleaner, text: str, val_fraction: float) -> str | None:
    """The cleaned text, or None for what is dropped or held out for validation."""
    document = next(iter(cleaner([Document(text)])), None)
    return None if document is None or is_held_out(document.text, val_fraction) else document.text


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a cleaned document belongs to the validation set: by its hash, as `mypt prepare --val-split hash`."""
    return bool(hashed_to_val(np.array([text_hash(text.encode())], np.uint64), fraction)[0])


GROUP = 64  # documents tokenised at once


def pack(
    documents: Iterable[tuple[Cursor, str]],
    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
    eos_token_id: int,
    block_size: int,
    stride: int,
    start: Cursor = START,
) -> Iterator[tuple[np.ndarray, Cursor]]:
    """Windows uint32 (block_size + 1,), each with the cursor at which the next one begins, `stride` tokens further on.

    encode: texts to their ids, flat, and how many each has. start: the cursor of the first document, of which
    `start.token` tokens are done; the cursors count their tokens from there.
    """
    documents = iter(documents)
    tokens = np.empty(0, np.uint32)  # from the first of the next window on
    skip, given = start.token, start.tokens  # given: tokens of all documents before the next one
    first_tokens = start.first_tokens if start.epoch else None  # None: epoch 0 is not over
    starts, cursors = np.empty(0, np.int64), []  # of the documents in `tokens`: the first token of each, its cursor
    while group := list(itertools.islice(documents, GROUP)):
        ids, counts = encode([text for _, text in group])
        ends = np.cumsum(counts)
        begins = ends - counts + np.arange(len(group))  # an EOS after each document before
        starts = np.concatenate([starts, begins + len(tokens) - skip])
        for (cursor, _), count in zip(group, counts.tolist(), strict=True):
            if first_tokens is None and cursor.epoch:
                first_tokens = given
            cursors.append(cursor._replace(tokens=given, first_tokens=first_tokens or 0))
            given += count + 1
        tokens = np.concatenate([tokens, np.insert(ids, ends, eos_token_id)[skip:]])
        skip = done = 0
        while len(tokens) - done > block_size:
            window = tokens[done : done + block_size + 1]
            done += stride
            document = _document_at(done, starts)
            yield window, cursors[document]._replace(token=int(done - starts[document]))
        document = _document_at(done, starts)
        tokens, starts, cursors = tokens[done:], starts[document:] - done, cursors[document:]


def _document_at(token: int, starts: np.ndarray) -> int:
    return int(np.searchsorted(starts, token, side="right")) - 1
