"""`ShardStream`: token windows of dataset directories as ready micro-batches, in one global order, from any sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mypt.errors import DataError
from mypt.shards.open_dataset import open_dataset
from mypt.shards.reader import ShardReader
from mypt.streams.curriculum import cut, length_at
from mypt.streams.ledger import Ledger
from mypt.streams.stream_config import StreamConfig, to_batch
from mypt.streams.timeline import Source, events_since

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerFast

CHUNK = 16_384  # samples whose places are worked out at once: numpy's cost per call then vanishes
FIRST_CHUNK = 256  # doubled up to CHUNK: a small dataset has many epochs in a large chunk, each with its own order
AHEAD = 256  # windows (to twice as many) for which the system is asked before they are read
READ_TOKENS = 65_536  # copied out of the shards at once: few calls, and they are still in the cache when widened
SINGLES = 16  # samples that share memory when they are given one by one: one that is kept keeps so many


class ShardStream(Ledger, torch.utils.data.IterableDataset):
    """Endless training samples; the order depends on (data, block_size, seed, order) and recorded events alone.

    Sample g of the global order is the same for every world size, micro-batch size and number of workers: rank r of w
    yields, as its k-th micro-batch, samples start_sample + (k * w + r) * micro_batch_size and the following. In each
    epoch of a source every window comes exactly once. A resume is `start_sample`: no batch is read to be skipped.

    Yields dicts of int64 tensors (micro_batch_size, block_size): `input_ids`, `labels` (= input_ids, HF's convention),
    `shift_labels` (contiguous; the token after each input), and with `document_mask` `position_ids` that start at 0
    again after each end-of-text token. With micro_batch_size=None: single samples (block_size,), for any DataLoader.

    Args:
        directory: a dataset directory, or {directory: weight} for a mixture with exact proportions.
        split: `train`, or another split of the directories.
        start_sample: global number of the first sample.
        order: `full`, or `blocks` for disks that cannot seek.
        reading: as of `ShardReader`.
        dtype: `uint16` or `uint32`, of directories that do not record one.
        curriculum: [(first sample, length), ...] of `mypt.streams.curriculum`: windows cut into shorter rows.
        state: what `state` gave, from a checkpoint: the stream resumes at its next sample instead of start_sample.
            Weights other than those given then, and shards appended since, become events there.
        **settings: block_size, seed, micro_batch_size, rank, world_size, document_mask of `StreamConfig`.

    Raises:
        DataError: a damaged directory, a split shorter than one window, or a state of other data.
    """

    def __init__(
        self,
        directory: str | Path | dict[str, float],
        split: str = "train",
        *,
        start_sample: int = 0,
        order: str = "full",
        reading: str = "auto",
        dtype: str | None = None,
        curriculum: list[tuple[int, int]] | None = None,
        state: dict | None = None,
        **settings,
    ):
        self.config = StreamConfig(**settings)
        if start_sample < 0:
            raise DataError(f"start_sample {start_sample}: expected 0 or more")
        weights = directory if isinstance(directory, dict) else {directory: 1.0}
        options = {"reading": reading, "blocks": order == "blocks"}
        self.readers = [
            ShardReader(source, split, manifest=open_dataset(source, dtype), **options) for source in weights
        ]
        self._weights = [float(weight) for weight in weights.values()]  # as given: they may change on the way
        sources = [
            Source(str(name), len(reader), weight, len(reader.shards), reader.fingerprint)
            for name, weight, reader in zip(weights, self._weights, self.readers, strict=True)
        ]
        super().__init__(sources, self.config.block_size)
        self.start_sample = start_sample
        self.order = order
        self.curriculum = curriculum
        self._reached = start_sample  # samples below are handed out, by all ranks together
        if state:
            self._resume(state)
        if self.curriculum and self.config.micro_batch_size is None:
            raise DataError("a curriculum cuts micro-batches into shorter rows; give micro_batch_size, not None")

    @property
    def samples_per_epoch(self) -> int:
        """Samples in which the heaviest source is seen once (of one directory: its number of windows)."""
        return self.timeline.samples_per_epoch

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of the mixture in which the heaviest source is seen once."""
        return self.timeline.tokens_per_epoch

    def state(self, next_sample: int) -> dict:
        """All that a resume needs, for JSON: `ShardStream(..., state=...)` resumes at `next_sample`."""
        order = {"seed": self.config.seed, "order": self.order, "curriculum": self.curriculum}
        return super().state(next_sample) | order | {"weights": self._weights}

    def _resume(self, state: dict) -> None:
        now = {"seed": self.config.seed, "block_size": self.block_size, "order": self.order}
        for name, value in now.items():
            if state[name] != value:
                raise DataError(f"the state was saved with {name} {state[name]}, this stream has {value}")
        super().__init__(*events_since(state, self.sources, self.readers))
        self.start_sample = self._reached = state["next_sample"]
        self.curriculum = state["curriculum"]

    def change_weights(self, weights: list[float], sample: int) -> dict:
        """Draw from the sources with other weights from global sample `sample` on; returns the event.

        A running iteration continues with them. All ranks call it alike, with the next sample of all. Raises
        DataError for a sample that is already handed out. It cannot reach the copies that DataLoader workers have.
        """
        if sample < self._reached or len(weights) != len(self.sources):
            raise DataError(
                f"weights {weights} for {len(self.sources)} sources from sample {sample} on, but samples below "
                f"{self._reached} are already handed out; give one weight per source and the next sample"
            )
        event = {"sample": sample, "weights": [float(weight) for weight in weights]}
        self.add_event(event)
        return event

    def to_iterable_dataset(self) -> IterableDataset:
        """The same samples as a streaming HF dataset with the column `input_ids`, for trainers that take no other.

        Raises DataError unless micro_batch_size is None.
        """
        from datasets import IterableDataset

        if self.config.micro_batch_size is not None:
            raise DataError("a HF dataset has single samples; build the stream with micro_batch_size=None")
        return IterableDataset.from_generator(_rows, gen_kwargs={"stream": self})

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        batch, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        size, rank, world_size = self.config.micro_batch_size or 1, self.config.rank, self.config.world_size
        chunk = FIRST_CHUNK
        while True:
            timeline = self.timeline
            batches = batch + stride * np.arange(max(1, chunk // size))
            samples = self.start_sample + (batches * world_size + rank)[:, None] * size + np.arange(size)
            items = self._items(*self.places(samples.reshape(-1)))
            for first, item in zip(samples[:, 0].tolist(), items, strict=True):
                if self.timeline is not timeline:
                    break  # the weights changed: what comes next has another place
                self._reached = self.start_sample + (batch + 1) * world_size * size
                yield cut(item, length_at(self.curriculum, first)) if self.curriculum else item
                batch += stride
            chunk = min(2 * chunk, CHUNK)

    def _items(self, owners: np.ndarray, starts: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
        """The windows at these places: in micro-batches, or one by one out of small ones, which is faster."""
        size, asked = self.config.micro_batch_size or SINGLES, 0
        per_read = max(1, READ_TOKENS // (size * self.block_size)) * size
        for first in range(0, len(starts), per_read):
            if first + AHEAD >= asked:
                soon = slice(asked, first + per_read + 2 * AHEAD)
                for index, reader in enumerate(self.readers):
                    reader.prefetch(starts[soon][owners[soon] == index], self.block_size + 1)
                asked = soon.stop
            windows = self._windows(owners[first : first + per_read], starts[first : first + per_read])
            for row in range(0, len(windows), size):
                batch = to_batch(windows[row : row + size], self._ends(owners[first + row : first + row + size]))
                if self.config.micro_batch_size:
                    yield batch
                else:
                    for single in zip(*(tensor.unbind() for tensor in batch.values()), strict=True):
                        yield dict(zip(batch, single, strict=True))

    def places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global sample numbers int64 (k,) -> index of the source (k,) and first token of the window in it (k,)."""
        owners, local = self.timeline.locate(samples)
        starts = np.empty(len(samples), np.int64)
        for index in range(len(self.sources)):
            rows = np.flatnonzero(owners == index)
            starts[rows] = self.timeline.starts(index, local[rows], self.config.seed, self.order)
        return owners, starts

    def _windows(self, owners: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Token ids (n, B + 1) in the shards' own dtype."""
        if len(self.readers) == 1:
            return self.readers[0].gather(starts, self.block_size + 1)
        dtype = np.result_type(*(reader.manifest.numpy_dtype for reader in self.readers))
        windows = np.empty((len(starts), self.block_size + 1), dtype)
        for index, reader in enumerate(self.readers):
            rows = (owners == index).nonzero()[0]
            windows[rows] = reader.gather(starts[rows], self.block_size + 1)
        return windows

    def _ends(self, owners: np.ndarray) -> np.ndarray | None:
        """The end-of-text id of each window's source, (n, 1), if documents are masked."""
        if not self.config.document_mask:
            return None
        return np.array([reader.manifest.eos_token_id for reader in self.readers])[owners, None]


def _rows(stream: ShardStream) -> Iterator[dict[str, np.ndarray]]:
    for sample in stream:
        yield {"input_ids": sample["input_ids"].numpy()}


@dataclass(frozen=True)
class ShownWindow:
    """One training sample: its number, the place of its first token in the split, its input ids and their text."""

    sample: int
    first_token: int
    input_ids: list[int]
    text: str


def decoded_windows(
    directory: str | Path, tokenizer: PreTrainedTokenizerFast, count: int, *, block_size: int
) -> list[ShownWindow]:
    """Samples 0 .. count - 1 of the train split, as a model with this block size gets them; EOS is shown.

    Raises DataError if `count` is below 1 or the split is shorter than one window.
    """
    if count < 1 or block_size < 1:
        raise DataError(f"{count} windows of {block_size} tokens were asked for; give 1 or more of each")
    stream = ShardStream(directory, block_size=block_size, micro_batch_size=None)
    _, starts = stream.places(np.arange(count))
    shown = []
    for sample, (start, window) in enumerate(zip(starts.tolist(), stream, strict=False)):
        ids = window["input_ids"].tolist()
        text = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        shown.append(ShownWindow(sample, start, ids, text))
    return shown
