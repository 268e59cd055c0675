"""How the next token is chosen, and how many: checked values without torch."""

import math
import secrets
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mypt.errors import MyPTError

# docs/generate.md gives the reason for each value.
PRESETS = {
    "creative": {"temperature": 1.0, "min_p": 0.05},
    "factual": {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.1},
    "code": {"temperature": 0.2, "top_p": 0.95},
}

NO_CONTRASTIVE_SEARCH = (
    "transformers has no contrastive search since 5.0: it is code on the hub now (transformers-community/"
    "contrastive-search), to be fetched and run as it is; for lively text without repetition use --preset creative or "
    "--repetition-penalty 1.2"
)


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of one text. None: no such limit.

    The order is transformers': the logits of tokens that prompt or text hold already are divided (below zero:
    multiplied) by `repetition_penalty` (Keskar 2019, 1909.05858), all are divided by `temperature`; then of the
    distribution the `top_k` likeliest tokens are kept, the fewest that together have the probability `top_p` (Holtzman
    2019, 1904.09751), and those at least `min_p` times as likely as the likeliest (Nguyen 2024, 2407.01082); one of
    them is drawn.

    greedy: take the likeliest token instead. num_beams: above 1, keep so many texts at each step and take the one of
    the highest sum of log-probabilities divided by its tokens ** `length_penalty`; nothing is drawn. early_stopping:
    end when `num_beams` texts have ended, not when no better one can come.
    stop: the text ends before the first of these strings. min_new_tokens: no end-of-text token before so many.
    overflow: at the end of the context the text ends (`stop`), or continues from its last half (`slide`).
    Raises MyPTError for a value out of range.
    """

    max_new_tokens: int = 200
    min_new_tokens: int = 0
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    greedy: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    stop: tuple[str, ...] = ()
    overflow: Literal["stop", "slide"] = "stop"
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "from 0 to max_new_tokens"),
            "temperature": (0 < self.temperature < math.inf, "above 0; the likeliest token each time is --greedy"),
            "top_k": (self.top_k is None or self.top_k >= 1, "1 or more tokens"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "a probability above 0, up to 1"),
            "min_p": (self.min_p is None or 0 <= self.min_p <= 1, "a share from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 is no penalty"),
            "num_beams": (self.num_beams >= 1, "1 or more"),
            "length_penalty": (math.isfinite(self.length_penalty), "a number"),
            "stop": (all(self.stop), "strings that are not empty"),
            "overflow": (self.overflow in ("stop", "slide"), "stop or slide"),
            "seed": (0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
        }
        for name, (fine, expected) in checks.items():
            if not fine:
                raise MyPTError(f"{name} is {getattr(self, name)}; it must be {expected}")
        if self.num_beams > 1 and self.overflow == "slide":
            raise MyPTError(
                "overflow is slide and num_beams above 1, but beams end with the context; leave out one of them"
            )

    @property
    def draws(self) -> bool:
        """Whether the text depends on the seed."""
        return not self.greedy and self.num_beams == 1


def preset_settings(preset: str | None, **chosen: Any) -> GenerationSettings:
    """The settings of a preset (None: the defaults) with `chosen` fields, which win. MyPTError as GenerationSettings.

    A preset's way of drawing gives way to `greedy` and `num_beams`, its penalty stays.
    """
    if preset is not None and preset not in PRESETS:
        raise MyPTError(f"there is no preset {preset!r}; presets: {', '.join(PRESETS)}")
    return GenerationSettings(**(PRESETS.get(preset, {}) | chosen))


def sample_settings(settings: GenerationSettings, num_samples: int) -> list[GenerationSettings]:
    """Settings of `num_samples` texts, with the seeds seed, seed + 1, ...

    Raises MyPTError for fewer than one, or for several where nothing is drawn, which would all be the same.
    """
    if num_samples < 1:
        raise MyPTError(f"num_samples is {num_samples}; it must be 1 or more")
    if num_samples > 1 and not settings.draws:
        how, option = ("greedy", "--greedy") if settings.greedy else ("beam search", "--num-beams")
        raise MyPTError(
            f"{num_samples} samples by {how} would all be the same text; leave out {option} or --num-samples"
        )
    return [replace(settings, seed=settings.seed + index) for index in range(num_samples)]
