"""How the next token is chosen, and how many: checked values without torch."""

import math
import secrets
from dataclasses import dataclass, field, replace

from mypt.errors import MyPTError


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of one text.

    Of the model's distribution, flattened or sharpened by `temperature`, only the `top_k` likeliest tokens are kept,
    then the fewest that together have the probability `top_p` (Holtzman 2019, 1904.09751); one of them is drawn.
    `greedy` takes the likeliest token instead, whatever the other three say. None: no such limit.
    Raises MyPTError for a value out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))

    def __post_init__(self) -> None:
        wrong = {}
        if self.max_new_tokens < 1:
            wrong["max_new_tokens"] = "1 or more"
        if not 0 < self.temperature < math.inf:
            wrong["temperature"] = "above 0; the likeliest token each time is --greedy"
        if self.top_k is not None and self.top_k < 1:
            wrong["top_k"] = "1 or more tokens"
        if self.top_p is not None and not 0 < self.top_p <= 1:
            wrong["top_p"] = "a probability above 0, up to 1"
        if not 0 <= self.seed < 2**63:
            wrong["seed"] = "from 0 to 2^63 - 1"
        for name, expected in wrong.items():
            raise MyPTError(f"{name} is {getattr(self, name)}; it must be {expected}")


def sample_settings(settings: GenerationSettings, num_samples: int) -> list[GenerationSettings]:
    """Settings of `num_samples` texts, with the seeds seed, seed + 1, ...

    Raises MyPTError for fewer than one, or for several greedy ones, which would all be the same.
    """
    if num_samples < 1:
        raise MyPTError(f"num_samples is {num_samples}; it must be 1 or more")
    if settings.greedy and num_samples > 1:
        raise MyPTError(f"{num_samples} greedy samples would all be the same text; leave out --greedy or --num-samples")
    return [replace(settings, seed=settings.seed + index) for index in range(num_samples)]
