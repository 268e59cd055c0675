"""The ledger of a stream whose size nobody knows: expected at first, counted once every reader was through an epoch."""

from collections.abc import Iterable
from dataclasses import asdict

from mypt.streams.lane import Place
from mypt.streams.ledger import Seen
from mypt.streams.timeline import Source

ENOUGH = 1_000  # documents, from which on the mean length of those seen is better than an expectation


class EstimatedLedger:
    """The account of a `JitStream`, with the attributes of a `Ledger`; nothing of it changes on the way.

    name: of all sources together. block_size: targets per sample. stride: tokens from one window to the next.
    expected: documents per epoch (0: not known), tokens per document.
    """

    main = 0

    def __init__(self, name: str, block_size: int, stride: int, expected: tuple[float, float]):
        self.name = name
        self.block_size = block_size
        self.stride = stride
        self.expected = expected
        self.events: list[dict] = []
        self._size = expected

    def count(self, places: Iterable[Place], readers: int, next_sample: int) -> None:
        """Take note of where some of the readers are, and all of them together."""
        documents, per_document = self.expected
        places = list(places)
        more = readers / len(places)  # the others are taken to be like those that are known
        given = more * sum(place.documents for place in places)
        if all(place.epoch for place in places):
            documents = more * sum(place.before / place.epoch for place in places)
        if given >= ENOUGH or not per_document:
            per_document = next_sample * self.stride / max(1, given)
        self._size = documents, per_document

    @property
    def documents_per_epoch(self) -> float:
        """0: not known."""
        return self._size[0]

    @property
    def tokens_per_epoch(self) -> int:
        """0: not known."""
        return round(self._size[0] * self._size[1])

    @property
    def samples_per_epoch(self) -> int:
        """0: not known."""
        return self.tokens_per_epoch // self.stride

    @property
    def sources(self) -> list[Source]:
        """All of them as one."""
        return [Source(self.name, self.tokens_per_epoch, 1.0)]

    def seen(self, next_sample: int) -> list[Seen]:
        """What would have been given after so many samples, by what is known now."""
        tokens, viewed = self.tokens_per_epoch, next_sample * self.block_size
        epochs, coverage = (next_sample * self.stride / tokens, viewed / tokens) if tokens else (None, None)
        return [Seen(self.name, next_sample, viewed, epochs, coverage, estimated=True)]

    def state(self, next_sample: int) -> dict:
        """What is known, for JSON; `seen` cannot be worked out from the rest."""
        return {
            "next_sample": next_sample,
            "block_size": self.block_size,
            "sources": [asdict(source) for source in self.sources],
            "events": self.events,
            "seen": [asdict(seen) for seen in self.seen(next_sample)],
        }
