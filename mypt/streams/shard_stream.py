"""`ShardStream`: token windows of dataset directories as ready micro-batches, in one global order, from any sample."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mypt.errors import DataError
from mypt.shards.reader import ShardReader
from mypt.streams.ledger import Source, main_source
from mypt.streams.mixture import PERIOD, Mixture
from mypt.streams.windows import window_count, window_starts

CHUNK = 16_384  # samples whose places are worked out at once: numpy's cost per call then vanishes


class ShardStream(torch.utils.data.IterableDataset):
    """Endless training samples; the order depends on (data, block_size, seed) alone.

    Sample g of the global order is the same for every world size, micro-batch size and number of workers: rank r of w
    yields, as its k-th micro-batch, samples start_sample + (k * w + r) * micro_batch_size and the following. In each
    epoch of a source every window comes exactly once. A resume is `start_sample`: no batch is read to be skipped.

    directory: a dataset directory, or {directory: weight} for a mixture with exact proportions.
    Yields dicts of int64 tensors (micro_batch_size, block_size): `input_ids`, `labels` (= input_ids, HF's convention),
    `shift_labels` (contiguous; the token after each input), and with `document_mask` `position_ids` that start anew
    after each end-of-text token. With micro_batch_size=None: single samples (block_size,), for a stock DataLoader.

    Raises DataError for a damaged directory, or a split shorter than one window.
    """

    def __init__(
        self,
        directory: str | Path | dict[str, float],
        split: str = "train",
        *,
        block_size: int,
        seed: int = 0,
        micro_batch_size: int | None = 1,
        rank: int = 0,
        world_size: int = 1,
        start_sample: int = 0,
        document_mask: bool = False,
    ):
        weights = directory if isinstance(directory, dict) else {directory: 1.0}
        self.readers = [ShardReader(source, split) for source in weights]
        self.sources = [
            Source(str(name), len(reader), float(weight))
            for (name, weight), reader in zip(weights.items(), self.readers, strict=True)
        ]
        self.mixture = Mixture([source.weight for source in self.sources])
        self.windows_per_epoch = [window_count(source.tokens, block_size) for source in self.sources]
        if not 0 <= rank < world_size or start_sample < 0:
            raise DataError(
                f"rank {rank} of {world_size}, start_sample {start_sample}: expected 0 <= rank < world_size"
            )
        self.block_size = block_size
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_sample = start_sample
        self.document_mask = document_mask

    @property
    def samples_per_epoch(self) -> int:
        """Samples in which the heaviest source is seen once (of one directory: its number of windows)."""
        main = main_source(self.sources)
        return -(-self.windows_per_epoch[main] * PERIOD // self.mixture.counts[main])

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        size = self.micro_batch_size or 1
        per_chunk = max(1, CHUNK // size)
        for chunk in itertools.count(0, per_chunk):
            batches = first + stride * np.arange(chunk, chunk + per_chunk)
            samples = self.start_sample + (batches * self.world_size + self.rank)[:, None] * size + np.arange(size)
            owners, starts = self.places(samples.reshape(-1))
            for row in range(0, len(starts), size):
                batch = self._batch(owners[row : row + size], starts[row : row + size])
                yield batch if self.micro_batch_size else {name: tensor[0] for name, tensor in batch.items()}

    def places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global sample numbers int64 (k,) -> index of the source (k,) and first token of the window in it (k,)."""
        owners, local = self.mixture.locate(samples)
        starts = np.empty(len(samples), np.int64)
        for index, source in enumerate(self.sources):
            rows = np.flatnonzero(owners == index)
            starts[rows] = window_starts(local[rows], source.tokens, self.block_size, self.seed)
        return owners, starts

    def _batch(self, owners: np.ndarray, starts: np.ndarray) -> dict[str, torch.Tensor]:
        inputs = np.empty((len(starts), self.block_size), np.int64)
        targets = np.empty_like(inputs)
        positions = np.empty_like(inputs) if self.document_mask else None
        for index, reader in enumerate(self.readers):
            rows = slice(None) if len(self.readers) == 1 else np.flatnonzero(owners == index)
            window = reader.gather(starts[rows], self.block_size + 1)  # (rows, B + 1), uint16 or uint32
            inputs[rows], targets[rows] = window[:, :-1], window[:, 1:]
            if positions is not None:
                positions[rows] = document_positions(inputs[rows], reader.manifest.eos_token_id)
        batch = {"input_ids": torch.from_numpy(inputs), "shift_labels": torch.from_numpy(targets)}
        batch["labels"] = batch["input_ids"]
        if positions is not None:
            batch["position_ids"] = torch.from_numpy(positions)
        return batch


def document_positions(inputs: np.ndarray, eos_token_id: int) -> np.ndarray:
    """Positions that start at 0 again after each end-of-text token; int64 (n, B) -> int64 (n, B)."""
    index = np.arange(inputs.shape[1])
    begins = np.zeros(inputs.shape, bool)
    begins[:, 1:] = inputs[:, :-1] == eos_token_id
    return index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
