"""Measure a model on every evaluation set: the evaluator of Trainer, of its callbacks and of `mypt evaluate`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

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
