"""A character tokenizer: one id per character of the corpus, UTF-8 bytes for any other, so every text round-trips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mypt.tokenization.load import EOS, wrap

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def build_char_tokenizer(characters: Iterable[str]) -> PreTrainedTokenizerFast:
    """What `build_char` gives, as a tokenizer of transformers."""
    return wrap(build_char(characters))


def build_char(characters: Iterable[str]) -> Tokenizer:
    """A tokenizer with the ids 0 (EOS), 1-256 (the bytes `<0x00>` to `<0xFF>`), then `characters` by code point.

    It is a BPE model without merges: byte fallback spells a character outside the vocabulary in its UTF-8 bytes.
    """
    from tokenizers import Tokenizer, decoders, models

    tokens = [EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(set(characters))]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend
