"""Decode any causal language model with transformers' `generate`; beam search.

`mypt.generation.trials` checks whether a model's `generate` is correct; ForwardDecoder serves models where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mypt.errors import MyPTError
from mypt.generation.sampler import require_finite
from mypt.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUTPUTS = ("output_router_logits", "output_attentions", "output_hidden_states")


class HFDecoder:
    """Decodes with any model. Tokens are chosen by the caller, so both paths draw the same ones."""

    path = "transformers"

    def __init__(self, model: PreTrainedModel, pad: int):
        self.model, self.pad = model, pad

    def extend(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """As `FastDecoder.extend`."""
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


class ForwardDecoder:
    """Decodes one row with the model's forward pass alone: each token is computed from all tokens before it."""

    path = "forward"

    def __init__(self, model: PreTrainedModel):
        self.model = model

    @torch.inference_mode()
    def extend(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """As `FastDecoder.extend`, for one row."""
        [window] = windows
        ids = torch.tensor([window], device=self.model.device)
        for _ in range(budget):
            chosen = choose(self.model(ids, use_cache=False, return_dict=True).logits[:, -1])
            if chosen is None:
                return
            ids = torch.cat([ids, chosen[:, None]], dim=1)


def beam_search(
    model: PreTrainedModel,
    window: Sequence[int],
    budget: int,
    settings: GenerationSettings,
    banned: Iterable[int] = (),
    ends: Iterable[int] = (),
    pad: int = 0,
    ended: Callable[[list[int]], bool] | None = None,
    *,
    use_cache: bool = True,
    all_beams: bool = False,
) -> list[list[int]]:
    """The new ids of the best beam, or of all beams, the best first.

    ended: whether a beam of these new ids ends here. use_cache: as `trials.caches_beams` found.
    Raises MyPTError for logits that are NaN or infinite, and for more beams than there are tokens.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if settings.num_beams > vocabulary:
        raise MyPTError(
            f"num_beams is {settings.num_beams:,}; it must be at most {vocabulary:,}, the texts that a first token of "
            "this model can begin"
        )
    start = len(window)
    criteria = [_Ended(lambda rows: [ended(row[start:].tolist()) for row in rows])] if ended else []
    with _without_saved_defaults(model):
        output = model.generate(
            **_padded([window], pad, model.device),
            do_sample=False,
            num_beams=settings.num_beams,
            num_return_sequences=settings.num_beams if all_beams else 1,
            length_penalty=settings.length_penalty,
            early_stopping=settings.early_stopping,
            max_new_tokens=budget,
            min_new_tokens=min(settings.min_new_tokens, budget) or None,
            repetition_penalty=settings.repetition_penalty,
            suppress_tokens=sorted(banned) or None,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            use_cache=use_cache,
            logits_processor=LogitsProcessorList([_Finite()]),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    return output[:, start:].tolist()


def _padded(windows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    width = max(map(len, windows))
    ids = [[pad] * (width - len(window)) + list(window) for window in windows]
    mask = [[0] * (width - len(window)) + [1] * len(window) for window in windows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


# {model: (calls of `generate` that run now, its own generation_config, what puts everything back)}
_BLANK: WeakKeyDictionary[PreTrainedModel, tuple[int, GenerationConfig, Callable[[], None]]] = WeakKeyDictionary()
_LOCK = Lock()


def saved_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """The model's own, also while a thread generates with the model."""
    with _LOCK:
        return _BLANK[model][1] if model in _BLANK else model.generation_config


@contextmanager
def _without_saved_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Only what is given counts: transformers fills the rest from the model's generation_config and config.

    Router logits, attentions and hidden states that a config asks for are of no use here; the router's loss even fails,
    because its mask is that of the whole text and a step has the logits of one token. The last of several threads that
    generate with one model puts all of it back.
    """
    with _LOCK:
        users, saved, restore = _BLANK.get(model) or (0, model.generation_config, _blank(model))
        _BLANK[model] = users + 1, saved, restore
    try:
        yield
    finally:
        with _LOCK:
            users, saved, restore = _BLANK.pop(model)
            if users > 1:
                _BLANK[model] = users - 1, saved, restore
            else:
                restore()


def _blank(model: PreTrainedModel) -> Callable[[], None]:
    """Take the defaults away; returns what puts them back."""
    saved, model.generation_config = model.generation_config, GenerationConfig()
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    asked = [(config, name) for config in configs for name in _OUTPUTS if getattr(config, name, False) is True]
    for config, name in asked:
        setattr(config, name, False)

    def restore() -> None:
        model.generation_config = saved
        for config, name in asked:
            setattr(config, name, True)

    return restore


class _Finite(LogitsProcessor):
    """Ends beam search at logits that are NaN or infinite."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        require_finite(scores)
        return scores


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
