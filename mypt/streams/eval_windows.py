"""The windows of an evaluation split: in order, each token a target once, the last partial window included."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mypt.shards.format import Manifest
from mypt.shards.reader import ShardReader
from mypt.streams.config import to_batch
from mypt.streams.windows import evaluation_starts


class EvalWindows(torch.utils.data.Dataset):
    """A map-style dataset over a whole split, or over `max_windows` of its windows, evenly spaced.

    Item i is {input_ids, labels, shift_labels}: int64 (block_size,); the split's last window is filled up with
    end-of-text tokens whose labels are -100, so that windows stack and nothing else is predicted. With document_mask
    also position_ids, as of `ShardStream`. shards: only the first so many (data that was appended later left out).
    reading, manifest: as of `ShardReader`.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str = "val",
        *,
        block_size: int,
        max_windows: int | None = None,
        document_mask: bool = False,
        shards: int | None = None,
        reading: str = "auto",
        manifest: Manifest | None = None,
    ):
        self.reader = ShardReader(directory, split, reading=reading, shards=shards, manifest=manifest)
        self.block_size = block_size
        self.document_mask = document_mask
        starts = evaluation_starts(len(self.reader), block_size)
        if max_windows is not None and max_windows < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, max_windows).round().astype(np.int64)]
        self.starts = starts
        # targets of each window, int64 (n,)
        self.lengths = np.minimum(block_size, len(self.reader) - 1 - starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs, targets = self.gather(np.array([index]))
        missing = (0, self.block_size - targets.shape[1])
        item = {
            "input_ids": F.pad(inputs["input_ids"][0], missing, value=self.reader.manifest.eos_token_id),
            "labels": F.pad(inputs["input_ids"][0], missing, value=-100),
            "shift_labels": F.pad(targets[0], missing, value=-100),
        }
        if self.document_mask:
            item["position_ids"] = F.pad(inputs["position_ids"][0], missing)
        return item

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the split."""
        return sum(shard.bytes for shard in self.reader.shards) / len(self.reader)

    def gather(self, indices: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What a model gets for k windows of one length T, and their targets; each int64 (k, T)."""
        length = int(self.lengths[indices[0]])
        eos = self.reader.manifest.eos_token_id if self.document_mask else None
        inputs = to_batch(self.reader.gather(self.starts[indices], length + 1), eos)
        del inputs["labels"]
        return inputs, inputs.pop("shift_labels")

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
        """Window numbers for one rank, in batches of equal length: the shorter last window comes alone."""
        mine = np.arange(rank, len(self), world_size)
        full = mine[self.lengths[mine] == self.block_size]
        for start in range(0, len(full), batch_size):
            yield full[start : start + batch_size]
        for index in mine[self.lengths[mine] < self.block_size]:
            yield np.array([index])
