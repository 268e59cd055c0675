"""Text to token ids by the tokenizer itself: what every faster engine must equal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PIECE_CHARACTERS = 10_000

# Where no token of GPT-2's pattern ever spans: before white space that follows something else. What Python takes for
# white space holds all that the pattern does, so that \S is never a space to the pattern.
_SPACE = re.compile(r"(?<=\S)[ \t\n\r]")
_ANYWHERE = re.compile("")


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, uint32 (tokens,), as `encode_flat` gives them."""
    ids, counts = encode_flat(tokenizer.backend_tokenizer, texts)
    return np.split(ids, np.cumsum(counts)[:-1]) if len(texts) else []


def encode_flat(backend: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all texts, uint32 (tokens,), and how many each text has, int64 (len(texts),), without BOS or EOS.

    Special tokens are plain text here: a literal `<|endoftext|>` in a document becomes several ids, never EOS.
    Long texts are encoded in pieces where the tokenizer allows cuts that change no id: faster, and in less memory.
    """
    cut = _cut_pattern(backend)
    pieces = [list(_pieces(text, cut)) for text in texts]
    with _plain_text(backend):
        encodings = backend.encode_batch_fast([piece for parts in pieces for piece in parts], add_special_tokens=False)
    found = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
    counts, start = np.zeros(len(texts), dtype=np.int64), 0
    for i, parts in enumerate(pieces):
        counts[i] = sum(len(ids) for ids in found[start : start + len(parts)])
        start += len(parts)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint32), counts


@contextmanager
def _plain_text(backend: Tokenizer) -> Iterator[None]:
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


def _pieces(text: str, cut: re.Pattern[str] | None) -> Iterator[str]:
    """`text` in pieces of at least PIECE_CHARACTERS (but the last), cut where `cut` matches next."""
    start = 0
    while cut and len(text) - start > PIECE_CHARACTERS and (match := cut.search(text, start + PIECE_CHARACTERS)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def _cut_pattern(backend: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut without changing its ids; None where nothing is known."""
    from tokenizers import models, pre_tokenizers

    if backend.normalizer is not None or not all(t.special for t in backend.get_added_tokens_decoder().values()):
        return None
    rule = backend.pre_tokenizer
    if rule is None:
        characters = isinstance(backend.model, models.BPE) and backend.model.byte_fallback
        return _ANYWHERE if characters and not json.loads(backend.to_str())["model"]["merges"] else None
    gpt2 = isinstance(rule, pre_tokenizers.ByteLevel) and rule.use_regex and not rule.add_prefix_space
    return _SPACE if gpt2 else None
