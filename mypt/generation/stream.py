"""A text that is read in pieces while a thread of its own generates it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread

from mypt.generation.sequence import Completion


@dataclass
class _Progress:
    """What the thread shares with the reader."""

    pieces: SimpleQueue[str | None] = field(default_factory=SimpleQueue)  # None comes last
    text: str = ""
    seconds: float = 0.0
    completion: Completion | None = None
    error: BaseException | None = None
    closed: Event = field(default_factory=Event)
    ended: Event = field(default_factory=Event)


class TextStream:
    """Iterate to get the pieces of the text; the thread ends early when the stream is closed or no longer referenced.

    Use it as a context (`with engine.stream(...) as pieces`) to be sure that nothing is computed after the block.
    Errors of the generation are raised while it is read, after the pieces that came before them.
    """

    def __init__(self, complete: Callable[[Callable[[str], object], Callable[[], bool]], Completion]):
        """complete(on_text, closed) generates the text, unless `closed()` says that nobody wants it any more."""
        self._progress = _Progress()
        Thread(target=_generate, args=(complete, self._progress), name="mypt-text", daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._progress.pieces.get()
        if piece is not None:
            return piece
        self._progress.pieces.put(None)  # for whoever asks again
        if self._progress.error:
            raise self._progress.error
        raise StopIteration

    @property
    def text(self) -> str:
        """What there is so far, read or not."""
        return self._progress.text

    @property
    def ended(self) -> bool:
        return self._progress.ended.is_set()

    @property
    def seconds(self) -> float:
        """How long the text took; 0 while it is generated."""
        return self._progress.seconds

    @property
    def completion(self) -> Completion:
        """The finished text, for which this waits."""
        self._progress.ended.wait()
        if self._progress.error:
            raise self._progress.error
        return self._progress.completion

    def close(self) -> None:
        """End the text at its next token, and wait for that."""
        self._progress.closed.set()
        self._progress.ended.wait()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __del__(self) -> None:
        self._progress.closed.set()


def _generate(complete: Callable, progress: _Progress) -> None:
    """Runs in the thread; it holds no reference to the stream, so that one that nobody reads can be noticed."""

    def on_text(piece: str) -> None:
        progress.text += piece
        progress.pieces.put(piece)

    begun = time.monotonic()
    try:
        progress.completion = complete(on_text, progress.closed.is_set)
    except BaseException as error:  # raised where the stream is read
        progress.error = error
    finally:
        progress.seconds = time.monotonic() - begun
        progress.ended.set()
        progress.pieces.put(None)
