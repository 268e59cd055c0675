"""Map token ids to the bytes of their text, without decoding string by string."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes] | None:
    """The UTF-8 bytes that each id stands for, an entry for each id up to the largest; EOS stands for none.

    None for a tokenizer of which the joined bytes of ids are not always the text: one that is neither byte-level BPE
    nor byte fallback without any other change.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = content["decoder"] or {}
    kinds = [part["type"] for part in decoder.get("decoders", [decoder]) if part]
    spell = {("ByteLevel",): _spell_byte_level, ("ByteFallback", "Fuse"): _spell_fallback}.get(tuple(kinds))
    if spell is None:
        return None
    vocabulary = tokenizer.get_vocab()
    table = [b""] * (max(vocabulary.values()) + 1)
    special = {token["id"] for token in content["added_tokens"]}
    for token, id in vocabulary.items():
        table[id] = token.encode() if id in special else spell(token)
    table[tokenizer.eos_token_id] = b""
    return table


class TextOf:
    """ids -> text: text(ids) is bytes, without end-of-text tokens.

    `lengths` is int64 (vocabulary,), the bytes of each id, or None where `token_bytes` gives none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer, self._table = tokenizer, token_bytes(tokenizer)
        self.lengths = None if self._table is None else np.array([len(text) for text in self._table], np.int64)

    def __call__(self, ids: np.ndarray) -> bytes:
        if self._table is not None:
            return b"".join([self._table[id] for id in ids.tolist()])
        eos = self._tokenizer.eos_token_id
        kept = [id for id in ids.tolist() if id != eos]
        return self._tokenizer.backend_tokenizer.decode(kept, skip_special_tokens=False).encode()

    def sizes(self, ids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The bytes of text, int64 (pieces,), in consecutive pieces of `ids` with `tokens` (pieces,) ids each."""
        ends = np.cumsum(tokens)
        if self.lengths is not None:
            return np.diff(np.cumsum(self.lengths[ids])[ends - 1], prepend=0)
        return np.array([len(self(ids[end - size : end])) for end, size in zip(ends, tokens, strict=True)], np.int64)


# The characters that byte-level BPE writes for bytes: themselves if printable, else U+0100 and up, in order.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = enumerate(sorted(set(range(256)) - set(_PRINTABLE)), 256)
_ALPHABET = {chr(byte): byte for byte in _PRINTABLE} | {chr(code): byte for code, byte in _OTHERS}


def _spell_byte_level(token: str) -> bytes:
    return bytes(_ALPHABET[character] for character in token) if _ALPHABET.keys() >= set(token) else token.encode()


def is_byte_token(token: str) -> bool:
    """Whether a token of a vocabulary with byte fallback stands for a byte: `<0x0A>`."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _spell_fallback(token: str) -> bytes:
    return bytes([int(token[3:5], 16)]) if is_byte_token(token) else token.encode()
