"""One generated text: its ids, its readable part up to a stop string, and why it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from mypt.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How many ids a token's text may depend on: blanks between words, bytes of one character.
CONTEXT_IDS = 8


class GrowingText:
    """Decodes each new token after the ones before it, and holds it back until its last character is whole.

    A tokenizer may need several tokens for one character, and may spell a token differently at the start of a text;
    so the difference that the new token makes to a short text is taken. Special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: list[int]):
        # The backend's own: transformers' `decode` adds only checks, at several times the cost of a small text.
        self._backend = tokenizer.backend_tokenizer
        self._ids = prompt[-CONTEXT_IDS:]
        self._text = self._decode()

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._decode()
        return "" if text.endswith("\ufffd") else self._hand_out(text)

    def rest(self) -> str:
        """Return the text held back, an unfinished character as U+FFFD."""
        return self._hand_out(self._decode())

    def _hand_out(self, text: str) -> str:
        piece, self._text = text[len(self._text) :], text
        if len(self._ids) > 4 * CONTEXT_IDS:
            self._ids = self._ids[-CONTEXT_IDS:]
            self._text = self._decode()
        return piece

    def _decode(self) -> str:
        return self._backend.decode(self._ids, skip_special_tokens=True)


class StoppedText:
    """Passes pieces of text on up to the first stop string, and holds back what may be the beginning of one.

    The stop string that is complete first counts, however the text is cut into pieces. strip: white
    space before and after the text is left out, and before it no stop string of white space counts.
    """

    def __init__(self, stop: tuple[str, ...], on_text: Callable[[str], object] | None = None, strip: bool = False):
        self._stop = stop
        self._on_text = on_text
        self._strip = strip
        self._held = ""
        self._passed: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._passed)

    def add(self, piece: str) -> bool:
        """Take a piece; return True if it completes a stop string, which ends the text."""
        self._held += piece
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._find(stop)) >= 0]
        if ends:
            self._held = self._held[: min(ends)[1]]
            self.end()
            return True
        self._pass_on(len(self._held) - self._beginning())
        return False

    def end(self) -> None:
        """No more pieces: what was held back is text."""
        if self._strip:
            self._held = self._held.rstrip()
        self._pass_on(len(self._held))

    def _find(self, stop: str) -> int:
        """Where the stop string is in what is held back, or -1; one of white space cannot end what has not begun."""
        blank = self._strip and not self._passed and stop.isspace()
        return self._held.find(stop, len(self._held) - len(self._held.lstrip()) if blank else 0)

    def _beginning(self) -> int:
        """The length of the longest end of the text that a stop string (or white space at the end) begins with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        kept = next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)
        if self._strip:
            kept = len(self._held) - len(self._held[: len(self._held) - kept].rstrip())
        return kept

    def _pass_on(self, length: int) -> None:
        piece, self._held = self._held[:length], self._held[length:]
        if self._strip and not self._passed:
            piece = piece.lstrip()
        if piece:
            self._passed.append(piece)
            if self._on_text:
                self._on_text(piece)


@dataclass(frozen=True)
class Completion:
    """A finished text; `tokens` counts the generated ones, an end of text and a stop string included."""

    prompt: str
    text: str
    prompt_tokens: int
    tokens: int
    # End of text; a stop string; max_new_tokens reached; the model's context is full; the caller stopped it.
    finish: Literal["eos", "stop", "length", "context", "stopped"]
    dropped_tokens: int  # at the start of prompt and text, no longer seen by the model when it ended
    seed: int
    path: Literal["fast", "int8", "transformers", "forward"]  # what computed it


class TokenSequence:
    """A prompt and the tokens generated after it; `window` is what the model reads, less after a slide."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        ids: list[int],
        settings: GenerationSettings,
        ends: frozenset[int],
        on_text: Callable[[str], object] | None = None,
        strip: bool = False,
    ):
        self.ids, self.prompt_tokens, self.dropped = list(ids), len(ids), 0
        self.settings, self.ends, self.random = settings, ends, Random(settings.seed)
        self.finish: str | None = None
        self._growing = GrowingText(tokenizer, ids)
        self._text = StoppedText(settings.stop, on_text, strip)

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def window(self) -> list[int]:
        return self.ids[self.dropped :]

    def add(self, token: int) -> None:
        """Take one more token, unless the text has ended."""
        if self.finish:
            return
        self.ids.append(token)
        if self._text.add(self._growing.add(token)):
            self.finish = "stop"
        elif token in self.ends:
            self.end("eos")
        elif self.tokens == self.settings.max_new_tokens:
            self.end("length")

    def end(self, finish: str) -> None:
        """End the text and pass on what was held back."""
        self.finish = "stop" if self._text.add(self._growing.rest()) else finish
        if self.finish != "stop":
            self._text.end()

    def slide(self, context: int) -> None:
        """Leave the last half of the context in the window."""
        self.dropped = len(self.ids) - context // 2

    def completion(self, prompt: str, path: str) -> Completion:
        text, seed = self._text.text, self.settings.seed
        return Completion(prompt, text, self.prompt_tokens, self.tokens, self.finish, self.dropped, seed, path)
