"""The general path: transformers' `generate`, for any causal language model and for beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mypt.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersDecoder:
    """Decodes with any model. Tokens are chosen by the caller, so both paths draw the same ones."""

    path = "transformers"

    def __init__(self, model: PreTrainedModel, pad: int):
        self.model, self.pad = model, pad

    def extend(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """As `LeanDecoder.extend`."""
        choice = _Choice(choose)
        with _without_saved_defaults(self.model):
            self.model.generate(
                **_padded(windows, self.pad, self.model.device),
                do_sample=False,
                max_new_tokens=budget,
                pad_token_id=self.pad,
                use_cache=True,
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=StoppingCriteriaList([_Ended(lambda ids: [choice.ended] * len(ids))]),
            )


def beam_search(
    model: PreTrainedModel,
    window: Sequence[int],
    budget: int,
    settings: GenerationSettings,
    banned: Iterable[int],
    ends: Iterable[int],
    pad: int,
    holds_stop: Callable[[list[int]], bool],
) -> list[int]:
    """The new ids of the best beam; `holds_stop` tells whether generated ids hold a stop string."""
    start = len(window)
    criteria = [_Ended(lambda rows: [holds_stop(row[start:].tolist()) for row in rows])] if settings.stop else []
    with _without_saved_defaults(model):
        output = model.generate(
            **_padded([window], pad, model.device),
            do_sample=False,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
            early_stopping=settings.early_stopping,
            max_new_tokens=budget,
            min_new_tokens=min(settings.min_new_tokens, budget) or None,
            repetition_penalty=settings.repetition_penalty,
            suppress_tokens=sorted(banned) or None,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    return output[0, start:].tolist()


def _padded(windows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    width = max(map(len, windows))
    ids = [[pad] * (width - len(window)) + list(window) for window in windows]
    mask = [[0] * (width - len(window)) + [1] * len(window) for window in windows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


@contextmanager
def _without_saved_defaults(model: PreTrainedModel) -> Iterator[None]:
    """transformers fills what is not given from the model's generation_config; here only what is given counts."""
    saved, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = saved


class _Choice(LogitsProcessor):
    """Leaves only the chosen id in the scores, so that transformers' greedy search takes it."""

    def __init__(self, choose: Callable[[torch.Tensor], torch.Tensor | None]):
        self.choose = choose
        self.ended = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = None if self.ended else self.choose(scores)
        if chosen is None:
            self.ended = True
            return scores
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Which rows have ended, from the ids (B, T) of all."""

    def __init__(self, ended: Callable[[torch.Tensor], list[bool]]):
        self.ended = ended

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.tensor(self.ended(input_ids), device=input_ids.device)
