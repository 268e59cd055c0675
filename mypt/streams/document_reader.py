"""The documents of one reader (a process, or a DataLoader worker of it), shuffled in blocks and packed into windows."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mypt.errors import DataError
from mypt.preparation.assignment import hashed_to_val
from mypt.streams.permutation import derive_key, permute
from mypt.text.clean import Cleaner
from mypt.text.dedup import text_hash
from mypt.text.plain import Document
from mypt.text.sources import Unit, read_documents

BLOCK_CHARACTERS = 64 * 1024 * 1024  # of a block's documents: where they are long, it ends before it is full
EMPTY_EPOCHS = 3  # so many without a document, and there is none


class Place(NamedTuple):
    """Where a lane goes on. `unit`, `document` and `ordinal` name the document with which the current block begins."""

    epoch: int = 0
    unit: int = 0  # in the lane's order of this epoch
    document: int = 0  # in that unit
    ordinal: int = 0  # among all documents of the units before it and of this one
    drawn: int = 0  # documents of the block that are done, in its shuffled order
    token: int = 0  # tokens of the document after those that are done
    documents: int = 0  # given since the very first place, this one not counted
    tokens: int = 0  # of these documents, EOS included
    first_documents: int = 0  # given in epoch 0, once that is over
    first_tokens: int = 0


START = Place()


class Lane:
    """Lane `number` of `lanes`; together they give every document of the units once per epoch, endlessly.

    Every lane gets the same number of whole units, by an order that changes with (seed, epoch). The units that are
    left over are read by all lanes, and each takes every lanes-th document, so that the lanes stay about in step. With
    `max_examples` (the first so many documents of the sources) all units are read so.

    The documents come in blocks of `shuffle_buffer`, each in an order of its own; a block ends with its epoch.
    keep: the text as it is trained on, or None to drop it; called when a document's turn has come.
    """

    def __init__(
        self,
        units: list[Unit],
        number: int,
        lanes: int,
        *,
        keep: Callable[[str], str | None],
        seed: int,
        shuffle_buffer: int,
        max_examples: int | None = None,
    ):
        self.units = units
        self.number = number
        self.lanes = lanes
        self.keep = keep
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.max_examples = max_examples

    def documents(self, place: Place) -> Iterator[tuple[Place, str]]:
        """Kept documents from `place` on, each with the place of its first token.

        Raises DataError after EMPTY_EPOCHS epochs without one.
        """
        given, last_epoch = place.documents, place.epoch - 1
        first_documents = place.first_documents
        while True:
            for block in self._blocks(place):
                start = block[0][0]
                key = derive_key(self.seed, place.epoch, self.number, start.ordinal)
                order = permute(np.arange(len(block)), len(block), key)
                for drawn in range(place.drawn, len(block)):
                    text = self.keep(block[order[drawn]][1])
                    block[order[drawn]] = None  # or the next block would be read beside all of this one
                    if text is not None:
                        yield start._replace(drawn=drawn, documents=given, first_documents=first_documents), text
                        given, last_epoch = given + 1, place.epoch
                place = place._replace(drawn=0)
            if place.epoch - last_epoch >= EMPTY_EPOCHS:
                self._refuse()
            if place.epoch == 0:
                first_documents = given
            place = Place(place.epoch + 1)

    def _blocks(self, place: Place) -> Iterator[list[tuple[Place, str]]]:
        """The rest of the epoch in blocks that are never empty."""
        documents = self._read(place)
        for first in documents:
            block, characters = [first], len(first[1])
            while len(block) < self.shuffle_buffer and characters < BLOCK_CHARACTERS:
                document = next(documents, None)
                if document is None:
                    break
                block.append(document)
                characters += len(document[1])
            yield block

    def _read(self, place: Place) -> Iterator[tuple[Place, str]]:
        """This lane's documents of the epoch as they stand in the sources, from the place's block on."""
        units, shared = self._deal(place.epoch)
        ordinal = place.ordinal
        for index in range(place.unit, len(units)):
            every, mine = (self.lanes, self.number) if index < shared else (1, 0)
            skip = place.document if index == place.unit else 0
            for number, document in enumerate(itertools.islice(read_documents(units[index]), skip, None), skip):
                if ordinal == self.max_examples:
                    return
                if ordinal % every == mine:
                    yield Place(place.epoch, index, number, ordinal), document.text
                ordinal += 1

    def _deal(self, epoch: int) -> tuple[list[Unit], int]:
        """Units that this lane reads, in order, and how many of the first it shares with all other lanes."""
        if self.max_examples is not None:
            return self.units, len(self.units)
        order = permute(np.arange(len(self.units)), len(self.units), derive_key(self.seed, epoch))
        # Shared units come first: their documents have the same ordinals in all lanes.
        shared = len(self.units) % self.lanes
        mine = [*order[:shared], *order[shared + self.number :: self.lanes]]
        return [self.units[index] for index in mine], shared

    def _refuse(self) -> None:
        names = ", ".join(dict.fromkeys(unit.source for unit in self.units))
        fewer = "; use fewer processes or dataloader_num_workers" if self.lanes > 1 else ""
        raise DataError(
            f"reader {self.number + 1} of {self.lanes} found no document to train on in {EMPTY_EPOCHS} passes over "
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
    documents: Iterable[tuple[Place, str]],
    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
    eos_token_id: int,
    block_size: int,
    stride: int,
    start: Place = START,
) -> Iterator[tuple[np.ndarray, Place]]:
    """Windows uint32 (block_size + 1,), each with the place at which the next one begins, `stride` tokens further on.

    encode: texts to their ids, flat, and how many each has. start: the place of the first document, of which
    `start.token` tokens are done; the tokens that the places count go on from there.
    """
    documents = iter(documents)
    tokens = np.empty(0, np.uint32)  # from the first of the next window on
    skip, given = start.token, start.tokens  # given: tokens of all documents before the next one
    first_tokens = start.first_tokens if start.epoch else None  # None: epoch 0 is not over
    starts, places = np.empty(0, np.int64), []  # of the documents in `tokens`: the first token of each, its place
    while group := list(itertools.islice(documents, GROUP)):
        ids, counts = encode([text for _, text in group])
        ends = np.cumsum(counts)
        begins = ends - counts + np.arange(len(group))  # an EOS behind each document before
        starts = np.concatenate([starts, begins + len(tokens) - skip])
        for (place, _), count in zip(group, counts.tolist(), strict=True):
            if first_tokens is None and place.epoch:
                first_tokens = given
            places.append(place._replace(tokens=given, first_tokens=first_tokens or 0))
            given += count + 1
        tokens = np.concatenate([tokens, np.insert(ids, ends, eos_token_id)[skip:]])
        skip = done = 0
        while len(tokens) - done > block_size:
            window = tokens[done : done + block_size + 1]
            done += stride
            document = _document_at(done, starts)
            yield window, places[document]._replace(token=int(done - starts[document]))
        document = _document_at(done, starts)
        tokens, starts, places = tokens[done:], starts[document:] - done, places[document:]


def _document_at(token: int, starts: np.ndarray) -> int:
    return int(np.searchsorted(starts, token, side="right")) - 1
