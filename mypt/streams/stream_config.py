"""Settings that `ShardStream` and `JitStream` share, and the tensors of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mypt.errors import DataError
from mypt.streams.windows import document_positions

if TYPE_CHECKING:  # a recipe is checked with this module before torch is imported
    import torch


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a stream. Raises DataError unless 0 <= rank < world_size."""

    block_size: int  # inputs, and targets, per window
    seed: int = 0  # of the order
    micro_batch_size: int | None = 1  # windows per item; None: single samples
    rank: int = 0
    world_size: int = 1
    document_mask: bool = False  # adds position_ids

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} of {self.world_size}: expected 0 <= rank < world_size")


@dataclass(frozen=True)
class JitConfig(StreamConfig):
    """Settings of a `JitStream`. Raises DataError for a value out of range."""

    shuffle_buffer: int = 10_000  # documents shuffled at a time
    stride: int | None = None  # tokens from one window to the next; None: block_size, so that no target comes twice
    max_examples: int | None = None  # only the first so many documents of the sources
    val_fraction: float = 0.0  # share of the documents, chosen by hash, that is left out

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None and not 1 <= self.stride <= self.block_size:
            raise DataError(
                f"stride {self.stride}: expected 1 to block_size ({self.block_size}), or tokens would be left out"
            )
        for name in ("shuffle_buffer", "max_examples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"{name} is {value}, expected 1 or more")


def to_batch(windows: np.ndarray, eos_token_id: int | np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """Token ids (m, B + 1) of any dtype as int64 tensors (m, B); eos_token_id (one, or (m, 1)): adds position_ids."""
    import torch

    inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in (windows[:, :-1], windows[:, 1:]))
    batch = {"input_ids": inputs, "shift_labels": targets, "labels": inputs}
    if eos_token_id is not None:
        batch["position_ids"] = torch.from_numpy(document_positions(windows[:, :-1], eos_token_id))
    return batch
