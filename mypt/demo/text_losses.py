"""The loss of each token of one text, and of the same pieces of text by several models, whatever their tokenizers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mypt.errors import MyPTError
from mypt.generation.engine import TOKENIZING, Engine
from mypt.generation.sampler import require_finite
from mypt.generation.sequence import GrowingText

LONGEST = 1024  # tokens of a window, whose logits (LONGEST, V) are computed at once


@dataclass(frozen=True)
class TextLosses:
    """A text as one model reads it.

    Attributes:
        text: The text, as its tokens spell it.
        ends: Place in it after each token, in characters; one that is only a part of a character ends with that.
        losses: Nats of each token given all tokens before it that are in its window; None for a first token that
            nothing stands before.
    """

    text: str
    ends: list[int]
    losses: list[float | None]

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        known = [loss for loss in self.losses if loss is not None]
        return sum(known) / len(known)

    @property
    def bits_per_byte(self) -> float:
        return sum(loss for loss in self.losses if loss is not None) / math.log(2) / len(self.text.encode())


@dataclass(frozen=True)
class Piece:
    """The shortest piece of a text that begins and ends with a token in all models; nats by each of them."""

    text: str
    losses: tuple[float | None, ...]


@torch.inference_mode()
def text_losses(engine: Engine, text: str) -> TextLosses:
    """The loss of each token of `text`, which begins a document; special tokens in it are plain text.

    A text beyond the context is read in windows that overlap by a half, and each token counts in the first one that
    has it, so it has at least half of a context before it.

    Raises:
        MyPTError: The text is empty, or the model's logits are NaN or infinite.
        TokenizerError: The tokenizer is not the model's, or knows nothing of the text.
    """
    if not text:
        raise MyPTError("the text is empty; give one to measure")
    [ids] = engine.encode([text])
    with TOKENIZING:
        first = len(engine.tokenizer("").input_ids)  # what the tokenizer itself begins with
    if not first:
        beginning = engine.beginning()
        ids, first = [*beginning, *ids], len(beginning)
    growing = GrowingText(engine.tokenizer, ids[:first])
    pieces = [growing.add(id) for id in ids[first:]]
    pieces[-1] += growing.rest()
    losses = _losses(engine, ids)[max(first - 1, 0) :]
    return TextLosses("".join(pieces), _ends(pieces), losses if first else [None, *losses])


def compare_texts(read: list[TextLosses]) -> list[Piece]:
    """The pieces of a text that all models have in common, in order; their losses are sums over their tokens.

    Raises MyPTError where the models' tokenizers do not give the same text back.
    """
    text = read[0].text
    if any(other.text != text for other in read):
        raise MyPTError("the models' tokenizers do not spell this text alike, so their losses have no common pieces")
    common = sorted(set.intersection(*(set(one.ends) for one in read)))
    sums = [_sums(one, common) for one in read]
    starts = [0, *common[:-1]]
    return [Piece(text[start:end], tuple(of)) for start, end, *of in zip(starts, common, *sums, strict=True)]


def _losses(engine: Engine, ids: list[int]) -> list[float]:
    """Nats of ids[1:]."""
    size = min(engine.context or LONGEST, LONGEST)
    found: list[float] = []
    start = 0
    while len(found) < len(ids) - 1:
        window = torch.tensor([ids[start : start + size + 1]], device=engine.model.device)
        logits = engine.model(window[:, :-1], use_cache=False, return_dict=True).logits[0].float()
        require_finite(logits)
        losses = F.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
        found += losses[len(found) - start :]
        start += max(1, size // 2)
    return found


def _ends(pieces: list[str]) -> list[int]:
    """Place after each piece; an empty one, a part of a character, ends with the next that is not."""
    ends, place = [], 0
    for piece in pieces:
        place += len(piece)
        ends.append(place)
    for index in reversed(range(len(pieces) - 1)):
        if not pieces[index]:
            ends[index] = ends[index + 1]
    return ends


def _sums(read: TextLosses, boundaries: list[int]) -> list[float | None]:
    """The losses of the tokens that end up to each boundary, since the one before; None if one of them is not known."""
    sums: list[float | None] = [0.0] * len(boundaries)
    index = 0
    for end, loss in zip(read.ends, read.losses, strict=True):
        index += end > boundaries[index]
        known = sums[index] is not None and loss is not None
        sums[index] = sums[index] + loss if known else None
    return sums
