"""Text to token ids: the one way in which the package encodes documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PIECE_CHARACTERS = 10_000

# Where no token of GPT-2's pattern ever spans: before a line end that follows something other than white space.
_LINE_END = re.compile(r"(?<=\S)\n")
_ANYWHERE = re.compile("")


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, uint32 (tokens,), without BOS or EOS.

    Special tokens are plain text here: a literal `<|endoftext|>` in a document becomes several ids, never EOS.
    Long texts are encoded in pieces where the tokenizer allows cuts that change no id: faster, and in less memory.
    """
    backend = tokenizer.backend_tokenizer
    cut = _cut_pattern(backend)
    pieces = [list(_pieces(text, cut)) for text in texts]
    before = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        flat = [piece for parts in pieces for piece in parts]
        encodings = iter(backend.encode_batch_fast(flat, add_special_tokens=False))
        return [_join([np.array(next(encodings).ids, dtype=np.uint32) for _ in parts]) for parts in pieces]
    finally:
        backend.encode_special_tokens = before[0]
        if before[1]:
            backend.enable_truncation(**before[1])
        if before[2]:
            backend.enable_padding(**before[2])


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pieces(text: str, cut: re.Pattern[str] | None) -> Iterator[str]:
    """`text` in pieces of at least PIECE_CHARACTERS (but the last), cut where `cut` matches next."""
    start = 0
    while cut and len(text) - start > PIECE_CHARACTERS and (match := cut.search(text, start + PIECE_CHARACTERS)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def _cut_pattern(backend: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut without changing its ids; None where nothing is known."""
    from tokenizers import pre_tokenizers

    if backend.normalizer is not None or not all(t.special for t in backend.get_added_tokens_decoder().values()):
        return None
    rule = backend.pre_tokenizer
    if rule is None:
        model = json.loads(backend.to_str())["model"]
        return _ANYWHERE if model["type"] == "BPE" and not model["merges"] else None
    gpt2 = isinstance(rule, pre_tokenizers.ByteLevel) and rule.use_regex and not rule.add_prefix_space
    return _LINE_END if gpt2 else None
