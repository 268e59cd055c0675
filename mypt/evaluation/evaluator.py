"""Measure a model on every evaluation set: the evaluator of Trainer, of its callbacks and of `mypt evaluate`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mypt.errors import DataError
from mypt.evaluation.loss import WindowLosses, window_losses
from mypt.streams.eval_windows import EvalWindows


@dataclass(frozen=True)
class Reading:
    """One evaluation set by one model: the loss of each window, and the mean in bits per UTF-8 byte."""

    losses: WindowLosses
    bits_per_byte: float


Readings = dict[str, Reading]


@dataclass(frozen=True)
class Evaluator:
    """Exact losses on whole evaluation sets.

    Attributes:
        sets: The evaluation sets by name.
        batch_size: Windows in a forward pass.
        rank: Which of the processes this is; each takes every `world_size`-th window.
        world_size: Processes of the default group; all of them measure together.
    """

    sets: dict[str, EvalWindows]
    batch_size: int = 8
    rank: int = 0
    world_size: int = 1

    def measure(self, model: torch.nn.Module, progress: Callable[[int], object] | None = None) -> Readings:
        """Evaluate any causal LM whose output has `.logits` (batch, T, vocabulary).

        Args:
            model: Left in the mode, training or evaluation, in which it came.
            progress: Called with the number of windows done after each forward pass.
        """
        readings = {}
        for name, windows in self.sets.items():
            losses = window_losses(model, windows, self.batch_size, self.rank, self.world_size, progress)
            readings[name] = Reading(losses, losses.bits_per_byte(windows.bytes_per_token))
        return readings


def require_fit(model: torch.nn.Module, sets: dict[str, EvalWindows]) -> None:
    """Raise DataError, naming the set, for ids or windows that a transformers model has no embeddings for."""
    if not hasattr(config := getattr(model, "config", None), "get_text_config"):
        return
    config = config.get_text_config()
    vocabulary, context = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    for name, windows in sets.items():
        if vocabulary and windows.reader.largest_id >= vocabulary:
            raise DataError(
                f"the evaluation set {name} has the token id {windows.reader.largest_id}, and the model's vocabulary "
                f"{vocabulary} ids; tokenize it with the model's own tokenizer"
            )
        if context and windows.block_size > context:
            raise DataError(
                f"the evaluation set {name} has windows of {windows.block_size} tokens, and the model's context is "
                f"{context}; give a block_size of at most {context}"
            )
