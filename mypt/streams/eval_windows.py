"""The windows of an evaluation split: in order, each token a target once, the last partial window included."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mypt.shards.reader import ShardReader
from mypt.streams.windows import evaluation_starts


class EvalWindows(torch.utils.data.Dataset):
    """A map-style dataset over a whole split, or over `max_windows` of its windows, evenly spaced.

    Item i is {input_ids, labels, shift_labels}: int64 (block_size,); the split's last window is filled up with
    end-of-text tokens whose labels are -100, so that windows stack and nothing else is predicted.
    """

    def __init__(self, directory: str | Path, split: str = "val", *, block_size: int, max_windows: int | None = None):
        self.reader = ShardReader(directory, split)
        self.block_size = block_size
        starts = evaluation_starts(len(self.reader), block_size)
        if max_windows is not None and max_windows < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, max_windows).round().astype(np.int64)]
        self.starts = starts
        # targets of each window, int64 (n,)
        self.lengths = np.minimum(block_size, len(self.reader) - 1 - starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs, targets = (tensor[0] for tensor in self.gather(np.array([index])))
        missing = (0, self.block_size - len(inputs))
        return {
            "input_ids": F.pad(inputs, missing, value=self.reader.manifest.eos_token_id),
            "labels": F.pad(inputs, missing, value=-100),
            "shift_labels": F.pad(targets, missing, value=-100),
        }

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the split."""
        split = self.reader.manifest.splits[self.reader.split]
        return split.bytes / split.tokens

    def gather(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 (k, T), of k windows of one length T."""
        length = int(self.lengths[indices[0]])
        window = torch.from_numpy(self.reader.gather(self.starts[indices], length + 1).astype(np.int64))
        return window[:, :-1], window[:, 1:]

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Window numbers for one rank, in batches of equal length: the shorter last window comes alone."""
        mine = np.arange(rank, len(self), world_size)
        full = mine[self.lengths[mine] == self.block_size]
        for start in range(0, len(full), batch_size):
            yield full[start : start + batch_size]
        for index in mine[self.lengths[mine] < self.block_size]:
            yield np.array([index])
