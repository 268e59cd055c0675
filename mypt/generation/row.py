"""One text while it grows: its ids, its readable part, and why it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from mypt.generation.settings import GenerationSettings
from mypt.generation.text import GrowingText, StoppedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Completion:
    """A finished text; `tokens` counts the generated ones, an end of text and a stop string included."""

    prompt: str
    text: str
    prompt_tokens: int
    tokens: int
    # End of text; a stop string; max_new_tokens reached; the model's context is full.
    finish: Literal["eos", "stop", "length", "context"]
    dropped_tokens: int  # at the start of prompt and text, no longer seen by the model when it ended
    seed: int
    path: Literal["lean", "transformers", "forward"]  # what computed it


class Row:
    """The text of one prompt. `window` is what the model sees of it: all, or its last part after a slide."""

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
        """End the text; what was held back of it is told."""
        self.finish = "stop" if self._text.add(self._growing.rest()) else finish
        if self.finish != "stop":
            self._text.end()

    def slide(self, context: int) -> None:
        """Leave the last half of the context in the window."""
        self.dropped = len(self.ids) - context // 2

    def completion(self, prompt: str, path: str) -> Completion:
        return Completion(
            prompt,
            self._text.text,
            self.prompt_tokens,
            self.tokens,
            self.finish,
            self.dropped,
            self.settings.seed,
            path,
        )
