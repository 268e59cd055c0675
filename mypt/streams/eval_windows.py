"""The windows of an evaluation split: in order, each token a target once, the last partial window included."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
import xxhash

from mypt.errors import DataError
from mypt.shards.format import Manifest
from mypt.shards.reader import ShardReader
from mypt.streams.stream_config import to_batch
from mypt.streams.windows import evaluation_starts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EvalWindows(torch.utils.data.Dataset):
    """A map-style dataset over a whole split, or over `max_windows` of its windows, evenly spaced.

    They come from a dataset directory, or from memory: `from_texts`, `from_dataset`.

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
        reader = ShardReader(directory, split, reading=reading, shards=shards, manifest=manifest)
        self._cut(reader, block_size, max_windows, document_mask)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        block_size: int,
        max_windows: int | None = None,
        document_mask: bool = False,
    ) -> EvalWindows:
        """Windows of texts, each as `tokenizer(text)` gives it, ended by EOS; all are kept in memory.

        Raises:
            DataError: There is no text, or the tokenizer has no EOS token.
        """
        return cls.from_dataset(
            ({"text": text} for text in ([texts] if isinstance(texts, str) else texts)),
            tokenizer,
            block_size=block_size,
            column="text",
            max_windows=max_windows,
            document_mask=document_mask,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: Iterable[Mapping],
        tokenizer: PreTrainedTokenizerBase,
        *,
        block_size: int,
        column: str | None = None,
        max_windows: int | None = None,
        document_mask: bool = False,
    ) -> EvalWindows:
        """Windows of a HF dataset, map-style or streaming (`.take(N)` of one that is long); all are kept in memory.

        Every token is a target, prompts included.

        Args:
            dataset: Rows with token ids, which are taken as they are; the messages of a dialogue, to which the
                tokenizer's chat template is applied; or a text, as for `from_texts`.
            column: Which one; the first of input_ids, messages and text that the first row has.

        Raises:
            DataError: There is no row with text, no such column, or no EOS token of the tokenizer.
        """
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no EOS token to end documents with; set tokenizer.eos_token")
        tokens = _Tokens(_documents(dataset, tokenizer, column), tokenizer.eos_token_id)
        if not tokens.text_bytes:
            raise DataError("the rows of an evaluation set have no text; give it at least one that has")
        windows = cls.__new__(cls)
        windows._cut(tokens, block_size, max_windows, document_mask)
        return windows

    @classmethod
    def from_encoded(
        cls, documents: Iterable[tuple[np.ndarray, int]], eos_token_id: int, *, block_size: int, document_mask: bool
    ) -> EvalWindows:
        """Windows of documents that are encoded, without EOS, which ends each: ids (tokens,), UTF-8 bytes of text.

        Raises DataError if there is no document.
        """
        ended = [(np.append(ids, eos_token_id).astype(np.int64), size) for ids, size in documents]
        if not ended:
            raise DataError("the text of an evaluation set is empty; give it at least one document")
        windows = cls.__new__(cls)
        windows._cut(_Tokens(ended, eos_token_id), block_size, None, document_mask)
        return windows

    def _cut(
        self, reader: ShardReader | _Tokens, block_size: int, max_windows: int | None, document_mask: bool
    ) -> None:
        self.reader = reader
        self.block_size = block_size
        self.document_mask = document_mask
        starts = evaluation_starts(len(reader), block_size)
        if max_windows is not None and max_windows < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, max_windows).round().astype(np.int64)]
        self.starts = starts
        # targets of each window, int64 (n,)
        self.lengths = np.minimum(block_size, len(reader) - 1 - starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs, targets = self.gather(np.array([index]))
        missing = (0, self.block_size - targets.shape[1])
        item = {
            "input_ids": F.pad(inputs["input_ids"][0], missing, value=self.reader.eos_token_id),
            "labels": F.pad(inputs["input_ids"][0], missing, value=-100),
            "shift_labels": F.pad(targets[0], missing, value=-100),
        }
        if self.document_mask:
            item["position_ids"] = F.pad(inputs["position_ids"][0], missing)
        return item

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the split."""
        return self.reader.text_bytes / len(self.reader)

    def gather(self, indices: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs of a model for k windows of one length T, and their targets; each int64 (k, T)."""
        length = int(self.lengths[indices[0]])
        eos = self.reader.eos_token_id if self.document_mask else None
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


class _Tokens:
    """Documents in memory, with what `EvalWindows` needs of a `ShardReader`.

    documents: Ids and UTF-8 bytes of text of each.
    """

    def __init__(self, documents: Iterable[tuple[np.ndarray, int]], eos_token_id: int):
        ids, sizes = zip(*documents, strict=True)
        self.eos_token_id = eos_token_id
        self.text_bytes = sum(sizes)
        self._ids = np.concatenate(ids)
        self.largest_id = int(self._ids.max())
        self.fingerprint = xxhash.xxh3_128_hexdigest(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self._ids[starts[:, None] + np.arange(length)]


def _documents(
    dataset: Iterable[Mapping], tokenizer: PreTrainedTokenizerBase, column: str | None
) -> Iterator[tuple[np.ndarray, int]]:
    """The ids of each row, int64 (tokens,), and the UTF-8 bytes of its text.

    Raises DataError for a dataset without rows or without the column.
    """
    rows = iter(dataset)
    if (first := next(rows, None)) is None:
        raise DataError("an evaluation set without rows or texts; give it at least one")
    names = (column,) if column else ("input_ids", "messages", "text")
    if (column := next((name for name in names if name in first), None)) is None:
        raise DataError(
            f"the evaluation set has the columns {', '.join(first)}; name the one with text, messages or token ids: "
            "column=NAME"
        )
    for row in itertools.chain([first], rows):
        content = row[column]
        if isinstance(content, str):
            ids, text = tokenizer(content, verbose=False)["input_ids"], content
            if ids[-1:] != [tokenizer.eos_token_id]:
                ids = [*ids, tokenizer.eos_token_id]
        else:
            ids = content
            if len(content) and isinstance(content[0], Mapping):
                ids = tokenizer.apply_chat_template(content, return_dict=True)["input_ids"]
            text = tokenizer.decode(ids, skip_special_tokens=True)
        yield np.asarray(ids, dtype=np.int64), len(text.encode("utf-8", "surrogatepass"))
