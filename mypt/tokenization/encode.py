"""Text to token ids by the tokenizer itself: what every faster engine must equal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mypt.tokenization.long_text import LongText, plain_text
from mypt.tokenization.special import SpecialIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PIECE_CHARACTERS = 10_000
LONG = 500_000  # characters; a longer text (or a longer piece of one) is encoded in windows

# Where no token of GPT-2's pattern ever spans: before white space that follows something else. What Python takes for
# white space holds all that the pattern does, so that \S is never a space to the pattern.
_SPACE = re.compile(r"(?<=\S)[ \t\n\r]")
_ANYWHERE = re.compile("")


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, uint32 (tokens,), as they stand in a dataset: special tokens are text (`SpecialIds`)."""
    backend = tokenizer.backend_tokenizer
    ids, counts = SpecialIds(backend, tokenizer.eos_token_id)(*encode_flat(backend, texts))
    return np.split(ids, np.cumsum(counts)[:-1]) if len(texts) else []


def encode_flat(backend: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all texts, uint32 (tokens,), and how many each text has, int64 (len(texts),), without BOS or EOS.

    Special tokens are plain text here: a literal `<|endoftext|>` in a document becomes several ids, never EOS, unless
    the model itself has it in its vocabulary (`SpecialIds`).
    Long texts are encoded in pieces where the tokenizer allows cuts that change no id: faster, and in less memory.
    """
    cut = cut_pattern(backend)
    pieces = [list(_pieces(text, cut)) for text in texts]
    together = [piece for parts in pieces for piece in parts if len(piece) <= LONG]
    with plain_text(backend):
        encodings = iter(backend.encode_batch_fast(together, add_special_tokens=False))
    found = [
        np.array(next(encodings).ids, dtype=np.uint32) if len(piece) <= LONG else LongText(backend).add(piece)
        for parts in pieces
        for piece in parts
    ]
    counts, start = np.zeros(len(texts), dtype=np.int64), 0
    for i, parts in enumerate(pieces):
        counts[i] = sum(len(ids) for ids in found[start : start + len(parts)])
        start += len(parts)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint32), counts


def _pieces(text: str, cut: re.Pattern[str] | None) -> Iterator[str]:
    """`text` in pieces of at least PIECE_CHARACTERS (but the last), cut where `cut` matches next."""
    start = 0
    while cut and len(text) - start > PIECE_CHARACTERS and (match := cut.search(text, start + PIECE_CHARACTERS)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def last_cut(text: str, cut: re.Pattern[str]) -> int:
    """The last place in `text` where `cut` matches; 0 if there is none."""
    reach = 1_000
    while True:
        start = max(0, len(text) - reach)
        places = [match.start() for match in cut.finditer(text, start)]
        if places or not start:
            return places[-1] if places else 0
        reach *= 4


def cut_pattern(backend: Tokenizer) -> re.Pattern[str] | None:
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
