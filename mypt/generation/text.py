"""Token ids to text, one token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        self._tokenizer = tokenizer
        self._ids = prompt[-CONTEXT_IDS:]
        self._text = self._decode()

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._ids.append(token)
        return "" if self._decode().endswith("\ufffd") else self.rest()

    def rest(self) -> str:
        """What was held back, an unfinished character as U+FFFD."""
        piece = self._decode()[len(self._text) :]
        self._ids = self._ids[-CONTEXT_IDS:]
        self._text = self._decode()
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
