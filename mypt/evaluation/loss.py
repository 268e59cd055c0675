"""The loss of each token or window of a whole split, so that every token has the same weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from mypt.streams.eval_windows import EvalWindows

if TYPE_CHECKING:
    from mypt.streams.rolling_windows import RollingWindows

IGNORED = -100  # cross_entropy's own: in place of a target that is not predicted


@dataclass(frozen=True)
class WindowLosses:
    """Summed negative log-likelihood (nats) and number of targets of each window; float64 (n,) and int64 (n,)."""

    sums: np.ndarray
    tokens: np.ndarray

    @property
    def loss(self) -> float:
        """Mean nats per token over all windows."""
        return float(self.sums.sum() / self.tokens.sum())

    @property
    def standard_error(self) -> float:
        """The standard error of `loss` over windows (ratio estimator)."""
        return ratio_standard_error(self.sums, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite when that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss in bits per UTF-8 byte, which compares models with different tokenizers."""
        return self.loss / math.log(2) / bytes_per_token

    def delta(self, baseline: WindowLosses) -> tuple[float, float]:
        """Change of the loss since `baseline` on the same windows, and its paired standard error, both in nats."""
        difference = self.sums - baseline.sums
        return float(difference.sum() / self.tokens.sum()), ratio_standard_error(difference, self.tokens)


def ratio_standard_error(sums: np.ndarray, tokens: np.ndarray) -> float:
    """Standard error of sum(sums) / sum(tokens) with windows as the sampling unit (Cochran 1977, section 2.11).

    0 for a single window, which has no spread.
    """
    n = len(sums)
    if n < 2:
        return 0.0
    residual = sums - sums.sum() / tokens.sum() * tokens
    return float(math.sqrt(n / (n - 1) * np.square(residual).sum()) / tokens.sum())


@torch.no_grad()
def window_losses(
    model: torch.nn.Module, windows: EvalWindows, batch_size: int = 8, rank: int = 0, world_size: int = 1, progress=None
) -> WindowLosses:
    """Evaluate any causal LM whose output has `.logits` (batch, T, vocabulary).

    Each rank takes every world_size-th window; sums are added up over the default process group, so that all ranks
    return the same. `progress` is called with the number of windows done in each batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(len(windows), dtype=torch.float64)
    batches = [*windows.batches(batch_size, rank, world_size)]
    for number in range(_rounds(len(batches), device, world_size)):
        indices = batches[number] if number < len(batches) else np.array([0])
        losses, _ = _forward(model, windows, indices, device)
        if number >= len(batches):
            continue
        sums[torch.from_numpy(indices)] = losses.sum(dim=1, dtype=torch.float64)
        if progress:
            progress(len(indices))
    model.train(was_training)
    if world_size > 1:
        summed = sums.to(device)
        torch.distributed.all_reduce(summed)
        sums = summed.cpu()
    return WindowLosses(sums.numpy(), windows.lengths)


@torch.no_grad()
def token_losses(
    model: torch.nn.Module, windows: EvalWindows | RollingWindows, batch_size: int = 8, progress=None
) -> np.ndarray:
    """The negative log-likelihood in nats of every target, float32 (targets,), window by window; by one process.

    Arguments as of `window_losses`, whose sums are those of this array over `windows.lengths`.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ends = np.cumsum(windows.lengths)
    found = np.empty(ends[-1], np.float32)
    for indices in windows.batches(batch_size):
        losses, targets = _forward(model, windows, indices, device)
        places = [np.arange(ends[index] - windows.lengths[index], ends[index]) for index in indices]
        found[np.concatenate(places)] = losses[targets != IGNORED].numpy()
        if progress:
            progress(len(indices))
    model.train(was_training)
    return found


def _forward(
    model: torch.nn.Module, windows: EvalWindows | RollingWindows, indices: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and targets of some windows, each (k, T) on the CPU; the loss of an ignored target is 0."""
    inputs, targets = windows.gather(indices)
    # transformers detects the documents of a packed window only without a cache.
    logits = model(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False).logits
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.to(device).flatten(), reduction="none")
    return losses.view_as(targets).cpu(), targets


def _rounds(batches: int, device: torch.device, world_size: int) -> int:
    """Forward passes of every rank, which are equal: a sharded model gathers its weights from all ranks for each."""
    if world_size == 1:
        return batches
    most = torch.tensor(batches, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)
