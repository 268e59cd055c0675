"""The ledger of a stream: its size is an estimate at first, and exact once every reader was through an epoch."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import NamedTuple

from mypt.streams.lane import Place
from mypt.streams.ledger import Seen
from mypt.streams.timeline import Source

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

    def count(self, places: Iterable[Place], readers: int, next_sample: int) -> None:
        """Take note of where some of the readers are, and all of them together."""
        if self.expected.exact:
            return
        documents, per_document, _ = self.expected
        places = list(places)
        more = readers / len(places)  # the others are taken to be like those that are known
        given = more * sum(place.documents for place in places)
        if all(place.epoch for place in places):
            documents = more * sum(place.first_documents for place in places)
            per_document = more * sum(place.first_tokens for place in places) / max(1, documents)
            self.size = Size(documents, per_document, exact=len(places) == readers)
            return
        if given >= ENOUGH or not per_document:
            per_document = next_sample * self.stride / max(1, given)
        self.size = Size(documents, per_document)

    @property
    def documents_per_epoch(self) -> float:
        """By what is known now; 0: not known."""
        return self.size.documents

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
        """What would have been given after so many samples, by what is known now."""
        tokens, viewed = self.size.tokens, next_sample * self.block_size
        epochs, coverage = (next_sample * self.stride / tokens, viewed / tokens) if tokens else (None, None)
        return [Seen(self.name, next_sample, viewed, epochs, coverage, estimated=not self.size.exact)]

    def state(self, next_sample: int) -> dict:
        """What is known, for JSON; `seen` cannot be worked out from the rest."""
        return {
            "next_sample": next_sample,
            "block_size": self.block_size,
            "expected": list(self.expected),
            "sources": [asdict(source) for source in self.sources],
            "events": self.events,
            "seen": [asdict(seen) for seen in self.seen(next_sample)],
        }
