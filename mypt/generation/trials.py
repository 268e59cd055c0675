"""Try, once per model, whether transformers' `generate` computes what the model's own forward pass computes.

Nothing is concluded from an architecture's name: recurrent states that take in padding, rotary positions that depend on
the longest row, positions counted otherwise than in training and caches that beams cannot reorder are found by logits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from mypt.generation.hf_decoder import HFDecoder, beam_search
from mypt.generation.sampler import require_finite
from mypt.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORT, STEPS = 3, 3  # tokens of the short prompt, and tokens generated after each prompt
BEAMS, BEAM_STEPS = 4, 8

Say = Callable[[str], object]

# {model: {name of a trial: its result}}
_RESULTS: WeakKeyDictionary[PreTrainedModel, dict] = WeakKeyDictionary()
_TRYING = RLock()  # one trial at a time, whichever thread asks first


def generates_alone(model: PreTrainedModel, say: Say = warnings.warn) -> bool:
    """Whether the logits of `generate` with a cache are those of the forward pass without one, for a single prompt.

    say: gets one line when a trial fails. Raises MyPTError for a model whose logits are NaN or infinite.
    """

    def trial() -> bool:
        ids = _ids(model, SHORT + STEPS - 1)
        inputs = torch.tensor([ids], device=model.device)
        expected = model(inputs, use_cache=False, return_dict=True).logits[0, SHORT - 1 :].float()
        require_finite(expected)
        return _agree(model, lambda: _logits(model, [ids[:SHORT]], [ids[SHORT:]])[:, 0], expected)

    words = "transformers' generate gives other logits than the model's forward pass: each token is computed from the "
    return _once(model, "alone", trial, say, f"{words}whole text, one text at a time")


def generates_batches(model: PreTrainedModel, longest: int, say: Say = warnings.warn) -> bool:
    """Whether the rows of a padded batch have the logits that they have alone.

    longest: tokens of prompt and text together, at most; the trial has one row of so many and a short one. say: as in
    `generates_alone`, whose result must be True.
    """
    if longest <= SHORT + STEPS:  # no room for two lengths
        return False
    tried = _RESULTS.get(model, {}).get("longest", 0)

    def trial() -> bool:
        ids = _ids(model, longest)
        rows = [ids[:SHORT], ids[: longest - STEPS]]
        forced = [ids[-STEPS:], ids[-STEPS:]]
        alone = torch.cat([_logits(model, [row], forced[:1]) for row in rows], dim=1)
        return _agree(model, lambda: _logits(model, rows, forced), alone)

    words = "rows of a padded batch get other logits than alone: texts are generated one at a time"
    with _TRYING:
        if longest > tried and _RESULTS.get(model, {}).get("batches"):
            del _RESULTS[model]["batches"]
        result = _once(model, "batches", trial, say, words)
        _RESULTS[model]["longest"] = max(longest, tried)
    return result


def caches_beams(model: PreTrainedModel, say: Say = warnings.warn) -> bool:
    """Whether beam search with a cache finds the beams that it finds without one. say: as in `generates_alone`."""

    def trial() -> bool:
        settings = GenerationSettings(num_beams=BEAMS, max_new_tokens=BEAM_STEPS)
        prompt = _ids(model, SHORT)

        def beams(use_cache: bool) -> list[list[int]]:
            return beam_search(model, prompt, BEAM_STEPS, settings, use_cache=use_cache, all_beams=True)

        expected = beams(use_cache=False)
        try:
            return beams(use_cache=True) == expected
        except Exception:  # whatever the model's code is able to raise
            return False

    words = "beams found with a cache differ from those without: each token is computed from the whole text"
    return _once(model, "beams", trial, say, words)


def _once(model: PreTrainedModel, name: str, trial: Callable[[], bool], say: Say, words: str) -> bool:
    with _TRYING:
        results = _RESULTS.setdefault(model, {})
        if name not in results:
            with torch.inference_mode():
                results[name] = trial()
            if not results[name]:
                say(f"{type(model).__name__}: {words}")
        return results[name]


def _agree(model: PreTrainedModel, compute: Callable[[], torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether the logits differ by less than rounding does, relative to the range of those expected."""
    try:
        difference = (compute() - expected).abs().max().item()
    except Exception:  # whatever the model's code is able to raise
        return False
    scale = (expected.max() - expected.min()).item()
    return difference <= math.sqrt(torch.finfo(model.dtype).eps) * scale  # False for NaN


def _logits(model: PreTrainedModel, rows: list[list[int]], forced: list[list[int]]) -> torch.Tensor:
    """Float32 logits (STEPS, B, V) after each prompt and each of the forced tokens but the last."""
    seen = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.float().clone())
        step = min(len(seen), STEPS - 1) - 1
        return torch.tensor([tokens[step] for tokens in forced], device=logits.device)

    HFDecoder(model, pad=0).extend(rows, STEPS, choose)
    return torch.stack(seen)


def _ids(model: PreTrainedModel, count: int) -> list[int]:
    """The same random ids each time; id 0 is left to the padding."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, max(2, vocabulary), (count,), generator=generator).tolist()
