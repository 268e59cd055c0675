"""The windows of lm-eval's rolling log-likelihood: each document alone, its first token predicted, no end of text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mypt.errors import DataError
from mypt.shards.reader import ShardReader


class RollingWindows:
    """Every token of every document once, each document from the prefix token on; EOS is never a target.

    A window has up to `block_size` targets and as many inputs. The last one of a document reaches back: its inputs
    are the `block_size` tokens before its last target, of which the earlier ones are context alone. This is
    `get_rolling_token_windows` of lm-evaluation-harness with a context of 1, from which its tasks of the type
    `loglikelihood_rolling` (word_perplexity, byte_perplexity, bits_per_byte) are computed.

    Args:
        reader: The tokens of a split, in which EOS ends a document, with its `text_bytes`.
        block_size: Inputs of a window, in tokens.
        prefix_token_id: Stands before the first token of a document: BOS, or EOS for a tokenizer without BOS.

    Attributes:
        lengths: Targets of each window, int64 (n,).
        firsts: Place of its first target in the stream, int64 (n,).
        reach: Targets that are left out before it, since they are context alone, int64 (n,).
        documents: Which document it is of, int64 (n,).

    Raises:
        DataError: There is no document with a token.
    """

    def __init__(self, reader: ShardReader, *, block_size: int, prefix_token_id: int):
        self.reader, self.block_size, self.prefix_token_id = reader, block_size, prefix_token_id
        self._ids = reader.gather(np.array([0]), len(reader))[0].astype(np.int64)
        ends = np.flatnonzero(self._ids == reader.eos_token_id)
        begins, ends = np.append(0, ends + 1), np.append(ends, len(self._ids))
        begins, ends = begins[ends > begins], ends[ends > begins]
        if not len(begins):
            raise DataError("an evaluation split without a single token of text; prepare more text")
        counts = -(-(ends - begins) // block_size)
        self.documents = np.repeat(np.arange(len(begins)), counts)
        number = np.arange(len(self.documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._begins = begins[self.documents]
        self.firsts = self._begins + number * block_size
        self._stops = np.minimum(self.firsts + block_size, ends[self.documents])
        self.lengths = self._stops - self.firsts
        self.reach = self.firsts - np.maximum(self._stops - block_size, self._begins)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per target."""
        return self.reader.text_bytes / int(self.lengths.sum())

    def gather(self, indices: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs of a model for k windows, and their targets; each int64 (k, T), T the longest of them.

        Shorter ones are filled up at the right. Targets that are no targets of the window are -100.
        """
        begins = (self.firsts - self.reach)[indices, None]
        places = begins + np.arange((self.lengths + self.reach)[indices].max())
        inside = places < self._stops[indices, None]
        last = len(self._ids) - 1
        inputs = np.where(
            places > self._begins[indices, None], self._ids[np.clip(places - 1, 0, last)], self.prefix_token_id
        )
        targets = np.where(inside & (places >= self.firsts[indices, None]), self._ids[np.minimum(places, last)], -100)
        inputs = np.where(inside, inputs, self.prefix_token_id)
        return {"input_ids": torch.from_numpy(inputs)}, torch.from_numpy(targets)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Window numbers in batches of similar widths."""
        order = np.argsort(-(self.lengths + self.reach), kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
