"""The ids of a text that is too long to be encoded at once: those of the whole, proved for BPE.

The text is encoded in windows that overlap; two windows are joined where their tokens agree. For BPE one common token
proves the join: a merge across one of its ends would happen in a window, too, since each window holds all of the text
on one side of that end. Other models and pre-tokenizers look a few characters far; windows are joined in the middle of
a stretch of text that both of them cut into the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mypt.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WINDOW = 100_000  # characters
OVERLAPS = (2_000, 20_000)  # characters; the next one is tried when the tokens do not agree in the one before
_FEWEST = 4  # tokens in the stretch that has to agree


class _Tokens(NamedTuple):
    """Tokens with their first character and the one after their last, each an array (tokens,)."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def cut(self, first: int = 0, last: int | None = None, origin: int = 0) -> _Tokens:
        """The tokens from `first` to `last`, with places that count from `origin`."""
        span = slice(first, last)
        return _Tokens(self.ids[span], self.starts[span] - origin, self.ends[span] - origin)


class LongText:
    """Encodes one text that comes in parts, in memory for a few windows. Special tokens are plain text.

    Raises TokenizerError for a text in which no two windows agree, whatever their size.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._text = ""  # from the beginning of the current window
        self._window = 0  # its characters; 0 before the first
        self._tokens = _Tokens(*(np.empty(0, np.int64) for _ in range(3)))  # of the current window, not given out yet
        self._at_start = True

    def add(self, part: str, ended: bool = True) -> np.ndarray:
        """The ids, uint32 (tokens,), that are certain with this part; all that are left if it is the last."""
        self._text += part
        found = []
        if not self._window and (ended or len(self._text) >= 2 * WINDOW):
            self._window = self._until(WINDOW, ended)
            self._tokens = self._encoded(0, self._window)
        while self._window and not (ended and self._window == len(self._text)):
            if not ended and len(self._text) < 2 * self._window + WINDOW:
                break
            found.append(self._advance(ended))
        if ended:
            found.append(self._tokens.ids)
            self.__init__(self._backend)
        return np.concatenate([np.empty(0, np.uint32), *found]).astype(np.uint32, copy=False)

    def _advance(self, ended: bool) -> np.ndarray:
        """Take the next window; returns the ids before the join. Enlarges the window where there is no join."""
        tokens = self._tokens
        for overlap in OVERLAPS:
            first = int(np.searchsorted(tokens.starts, self._window - overlap))
            if overlap > self._window // 2 or first == len(tokens.ids):
                continue
            origin = int(tokens.starts[first])
            stop = self._until(origin + WINDOW, ended)
            new = self._encoded(origin, stop)
            if join := _agreement(tokens.cut(first, origin=origin), new, overlap):
                before, behind = join
                self._text, self._window = self._text[origin:], stop - origin
                self._tokens, self._at_start = new.cut(behind), False
                return tokens.ids[: first + before]
        self._enlarge(ended)
        return np.empty(0, np.uint32)

    def _enlarge(self, ended: bool) -> None:
        """Encode twice as much: the ids of the window depend on text far after it."""
        self._window = self._until(2 * self._window, ended)
        larger = self._encoded(0, self._window)
        place = 0
        if not self._at_start and len(self._tokens.ids):
            known = self._tokens.starts[0]  # here a token begins, as the join before has shown
            place = int(np.searchsorted(larger.starts, known))
            if place == len(larger.ids) or larger.starts[place] != known:
                raise TokenizerError(
                    f"this tokenizer cannot encode a document of more than {len(self._text):,} characters in parts: "
                    "the ids depend on text far behind; split the document"
                )
        self._tokens = larger.cut(place)

    def _until(self, place: int, ended: bool) -> int:
        """`place`, or the end of the text if it is near and known."""
        return len(self._text) if ended and len(self._text) - place < WINDOW // 2 else min(place, len(self._text))

    def _encoded(self, start: int, stop: int) -> _Tokens:
        with plain_text(self._backend):
            encoding = self._backend.encode(self._text[start:stop], add_special_tokens=False)
        places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return _Tokens(np.array(encoding.ids, np.uint32), places[:, 0], places[:, 1])


def _agreement(old: _Tokens, new: _Tokens, overlap: int) -> tuple[int, int] | None:
    """The first token, as a place in each, from which both agree until a quarter of the overlap is left; else None.

    The last tokens of `old` may differ since its text ends there, the first ones of `new` since its text begins there.
    """
    stop_old, stop_new = (int(np.searchsorted(tokens.starts, overlap * 3 // 4)) for tokens in (old, new))
    most = min(stop_old, stop_new)
    same = np.ones(most, bool)
    for a, b in zip(old, new, strict=True):
        same &= a[stop_old - most : stop_old] == b[stop_new - most : stop_new]
    length = most - (int(np.flatnonzero(~same)[-1]) + 1 if not same.all() else 0)
    if length < _FEWEST or old.starts[stop_old - length] > overlap // 2:
        return None
    # In the middle of the stretch; where a character has several tokens, before the first of them.
    middle = old.starts[stop_old - length // 2 - 1]
    first = int(np.searchsorted(old.starts, middle))
    if first <= stop_old - length:
        return None
    return first, first - stop_old + stop_new


@contextmanager
def plain_text(backend: Tokenizer) -> Iterator[None]:
    """No special tokens, no truncation, no padding; as they were afterwards."""
    special, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.encode_special_tokens = special
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)
