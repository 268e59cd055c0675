"""What has been seen, worked out from the number of the next sample: nothing is counted twice or lost in a resume."""

from dataclasses import dataclass
from functools import lru_cache

from mypt.streams.mixture import Mixture
from mypt.streams.windows import window_count


@dataclass(frozen=True)
class Source:
    """One training source: a name, its size in tokens and its weight in the mixture."""

    name: str
    tokens: int
    weight: float


@dataclass(frozen=True)
class Seen:
    """How much of one source was trained on."""

    name: str
    samples: int  # windows drawn
    tokens: int  # targets: samples x block_size
    epochs: float  # samples / windows per epoch
    coverage: float  # tokens / tokens in the source


def main_source(sources: list[Source]) -> int:
    """Index of the heaviest source, whose passes are the run's epochs and coverage."""
    return max(range(len(sources)), key=lambda index: sources[index].weight)


def seen_so_far(sources: list[Source], block_size: int, next_sample: int) -> list[Seen]:
    """The ledger after global samples 0 .. next_sample - 1."""
    drawn = _mixture(tuple(source.weight for source in sources)).drawn(next_sample)
    return [
        Seen(
            name=source.name,
            samples=samples,
            tokens=samples * block_size,
            epochs=samples / window_count(source.tokens, block_size),
            coverage=samples * block_size / source.tokens,
        )
        for source, samples in zip(sources, drawn, strict=True)
    ]


@lru_cache(maxsize=8)
def _mixture(weights: tuple[float, ...]) -> Mixture:
    """Its table costs 0.1 ms to build, too much for every training step."""
    return Mixture(list(weights))
