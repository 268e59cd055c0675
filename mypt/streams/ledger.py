"""The seen data, worked out from the number of the next sample: a resume counts nothing twice and loses nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mypt.streams.timeline import Source, Timeline


@dataclass(frozen=True)
class Seen:
    """How much of one source was trained on."""

    name: str
    samples: int  # windows drawn
    tokens: int  # targets: samples x block_size
    epochs: float | None  # passes: whole ones, and the share of the windows of the one under way
    coverage: float | None  # tokens / tokens in the source, as it has grown
    estimated: bool = False  # of a `JitStream`: a guess at the size of its source; None: there is not even that


class Ledger:
    """The account of a stream of samples: a pure function of (sources, events, next_sample).

    sources: as at sample 0. block_size: targets per sample. events: what changed on the way, as of `Timeline`.
    """

    def __init__(self, sources: Sequence[Source], block_size: int, events: Sequence[dict] = ()):
        self.block_size = block_size
        self.events = list(events)
        self.timeline = Timeline(sources, block_size, self.events)

    @property
    def sources(self) -> list[Source]:
        """The sources as they are by now: all events counted."""
        return self.timeline.now

    @property
    def main(self) -> int:
        """Index of the source that was heaviest at sample 0: its passes are the run's epochs and coverage."""
        return self.timeline.main

    def sources_before(self, index: int) -> list[Source]:
        """The sources before event number `index`."""
        return Timeline(self.timeline.sources, self.block_size, self.events[:index]).now

    def add_event(self, event: dict) -> None:
        """Count an event from its sample on. Raises DataError for weights that are not one per source."""
        self.timeline = Timeline(self.timeline.sources, self.block_size, [*self.events, event])
        self.events.append(event)

    def seen(self, next_sample: int) -> list[Seen]:
        """The account of each source after global samples 0 .. next_sample - 1."""
        return [
            Seen(
                name=source.name,
                samples=samples,
                tokens=samples * self.block_size,
                epochs=self.timeline.epochs(index, samples),
                coverage=samples * self.block_size / source.tokens,
            )
            for index, (source, samples) in enumerate(zip(self.sources, self.timeline.drawn(next_sample), strict=True))
        ]

    def state(self, next_sample: int) -> dict:
        """All that this account follows from, for JSON."""
        return {
            "next_sample": next_sample,
            "block_size": self.block_size,
            "sources": [asdict(source) for source in self.timeline.sources],
            "events": list(self.events),
        }


def saved_ledger(state: dict) -> list[dict]:
    """The account of each source when a stream's state was saved; that of a `JitStream` records it."""
    if "seen" in state:
        return state["seen"]
    ledger = Ledger([Source(**source) for source in state["sources"]], state["block_size"], state["events"])
    return [asdict(seen) for seen in ledger.seen(state["next_sample"])]
