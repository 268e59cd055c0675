"""Encode text by the tokenizer itself: the ids that every faster engine must equal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mypt.tokenization.long_text import LongText, plain_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PIECE_CHARACTERS = 10_000
LONG = 500_000  # characters; a longer text (or a longer piece of one) is encoded in windows

# No token of GPT-2's pattern spans the place before white space that follows something else. Python's white space
# includes all of the pattern's.
_SPACE = re.compile(r"(?<=\S)[ \t\n\r]")
_ANYWHERE = re.compile("")
_UNK_ID = re.compile(rb'"unk_id":(\d+)')


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


class SpecialIds:
    """Replaces the special ids in the ids of documents by the pieces of their text; drops and counts them otherwise.

    Special tokens are not searched in text, but a model with their text in its vocabulary can still give their ids
    (Unigram, WordLevel), and so can one whose EOS is an ordinary character or its unknown token. A special id is
    replaced by the ids of two or more tokens that spell the same text, or dropped if there are none. The unknown token,
    and a special token of one character (a padding token "!"), are left as they are unless they are EOS.

    Args:
        backend: The tokenizer that gives the ids.
        eos_token_id: The id that must only stand between documents; None if there is none.

    Attributes:
        dropped: Special ids that were dropped so far.
        unknown: Ids of the unknown token that were seen so far.
    """

    def __init__(self, backend: Tokenizer, eos_token_id: int | None) -> None:
        self._model = backend.model
        self._unknown_id = unknown_id(backend)
        added = backend.get_added_tokens_decoder().items()
        reachable = {id for id, token in added if token.special and len(self._model.id_to_token(id) or "") > 1}
        reachable -= {self._unknown_id}
        if eos_token_id is not None:
            reachable.add(eos_token_id)
        self._ids = np.array(sorted(reachable), dtype=np.uint32)
        self._pieces: dict[int, np.ndarray] = {}
        self.dropped = self.unknown = 0

    def __call__(self, ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of documents, uint32 (tokens,), and how many each has, int64 (documents,), without special ids."""
        if self._unknown_id is not None:
            self.unknown += int(np.count_nonzero(ids == self._unknown_id))
        places = np.flatnonzero(ids == self._ids[0] if len(self._ids) == 1 else np.isin(ids, self._ids))
        if not len(places):
            return ids, counts
        sizes = np.ones(len(ids), dtype=np.int64)  # ids that take the place of each
        special = ids[places]
        for id in np.unique(special).tolist():
            sizes[places[special == id]] = len(self._spelling(id))
        starts = np.cumsum(sizes) - sizes
        out = np.repeat(ids, sizes)
        for id in np.unique(special).tolist():
            pieces = self._spelling(id)
            out[starts[places[special == id], None] + np.arange(len(pieces))] = pieces
        counts = counts.copy()
        np.add.at(counts, np.searchsorted(np.cumsum(counts), places, side="right"), sizes[places] - 1)
        self.dropped += int(np.count_nonzero(sizes[places] == 0))
        return out, counts

    def _spelling(self, id: int) -> np.ndarray:
        if id not in self._pieces:
            self._pieces[id] = np.array(self._spelled(id), dtype=np.uint32)
        return self._pieces[id]

    def _spelled(self, id: int) -> list[int]:
        """The fewest other ids with the same text; none if the vocabulary has no such ids."""
        if id == self._unknown_id:  # it stands for any text
            return []
        text, found = self._model.id_to_token(id) or "", []
        for place in range(1, len(text)):
            tokens = [*self._model.tokenize(text[:place]), *self._model.tokenize(text[place:])]
            exact = "".join(self._model.id_to_token(token.id) for token in tokens) == text
            if exact and not np.isin([token.id for token in tokens], self._ids).any():
                found.append([token.id for token in tokens])
        return min(found, key=len, default=[])


def unknown_id(backend: Tokenizer) -> int | None:
    """The id that the model gives to what it does not know; None if it has none."""
    if hasattr(backend.model, "unk_token"):
        token = backend.model.unk_token
        return None if token is None else backend.model.token_to_id(token)
    match = _UNK_ID.search(backend.model.__getstate__()[:1000])  # Unigram has no attribute for it
    return int(match[1]) if match else None
