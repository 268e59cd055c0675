"""The next token of every row of a batch: transformers' rules, drawn with each row's own random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import torch

from mypt.errors import MyPTError
from mypt.generation.settings import GenerationSettings

# So many likeliest tokens nearly always hold `top_p` of the probability; finding them is cheaper than a sort of all.
NUCLEUS_GUESS = 256


class Sampler:
    """Chooses one token for each of B rows; a row's choice depends on nothing but its logits, its ids and its `Random`.

    settings: those of all rows (their seeds are in `randoms`). histories: the ids that each row has so far; needed for
    `repetition_penalty`. banned: ids never chosen. ends: ids not chosen before `min_new_tokens`; `done` tokens were
    generated before. Padding is no part of a history, so a row of a batch gets what it would get alone.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        randoms: Sequence[Random],
        histories: Sequence[Sequence[int]],
        banned: Iterable[int],
        ends: Iterable[int],
        done: int = 0,
    ):
        self.settings = settings
        self.randoms = randoms
        self._histories = histories
        self._banned = sorted(banned)
        self._ends = sorted(ends)
        self._done = done
        self._bias: torch.Tensor | None = None  # (V,): -inf at banned ids
        self._seen: torch.Tensor | None = None  # bool (B, V)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """int64 (B,) for logits (B, V) of the last positions; counts as one more token of every row.

        Raises MyPTError for logits that are NaN or infinite.
        """
        require_finite(logits)
        scores = self.scores(logits)
        chosen = self._draw(self.probabilities(scores)) if self.settings.draws else scores.argmax(-1)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        self._done += 1
        return chosen

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits in float32 after the repetition penalty, -inf where an id must not be chosen."""
        scores = logits.float()
        if self.settings.repetition_penalty != 1:
            scores = self._penalize(scores)
        if self._banned:
            if self._bias is None:
                self._bias = scores.new_zeros(scores.shape[-1])
                self._bias[self._banned] = -torch.inf
            scores = scores + self._bias
        if self._done < self.settings.min_new_tokens:
            scores = scores.clone()
            scores[:, self._ends] = -torch.inf
        return scores

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the weights by which a token is drawn, (B, V), 0 where it cannot be; a row's sum is at most 1."""
        settings = self.settings
        if settings.temperature != 1:
            scores = scores / settings.temperature
        if settings.top_k is not None and settings.top_k < scores.shape[-1]:
            least = scores.topk(settings.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        probabilities = scores.softmax(-1)
        if settings.top_p is not None and settings.top_p < 1:
            probabilities = _nucleus(probabilities, settings.top_p)
        if settings.min_p:
            least = settings.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        return probabilities

    def _penalize(self, scores: torch.Tensor) -> torch.Tensor:
        penalty = self.settings.repetition_penalty
        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, history in zip(self._seen, self._histories, strict=True):
                row[list(history)] = True
        return torch.where(self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """One id per row: the first at which the sum of probabilities exceeds the row's random share of the whole."""
        shares = [[random.random()] for random in self.randoms]
        sums = probabilities.cumsum(-1, dtype=torch.float64)
        targets = sums[:, -1:] * torch.tensor(shares, dtype=torch.float64, device=sums.device)
        return torch.searchsorted(sums, targets, right=True)[:, 0]


def require_finite(logits: torch.Tensor) -> None:
    """Raises MyPTError where the largest of logits (..., V) is NaN or infinite; -inf beside others is an id ruled out.

    torch's maximum is NaN where any value is.
    """
    if not logits.amax(-1).isfinite().all():
        raise MyPTError(
            "the model's logits are NaN or infinite, so no token can be chosen: its weights are damaged or training "
            "diverged, or float16 overflows; use an earlier checkpoint, or weights in float32 or bfloat16"
        )


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zeros for all but the fewest likeliest tokens that together have `top_p`; the one that crosses it is kept."""
    guess = min(NUCLEUS_GUESS, probabilities.shape[-1])
    likeliest, ids = probabilities.topk(guess)
    if guess < probabilities.shape[-1] and likeliest.sum(-1).min() < top_p:
        likeliest, ids = probabilities.sort(descending=True)
    before = likeliest.cumsum(-1) - likeliest
    kept = likeliest.masked_fill(before >= top_p, 0)
    return torch.zeros_like(probabilities).scatter_(1, ids, kept)
