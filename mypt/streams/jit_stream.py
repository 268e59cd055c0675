"""`JitStream`: windows of documents that are cleaned and tokenized as they come; `JitLoader` keeps their position."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mypt.errors import DataError
from mypt.streams.document_reader import GROUP, Cursor, DocumentReader, kept_text, pack
from mypt.streams.size import UNKNOWN, EstimatedLedger, Size, document_encoder, fingerprint
from mypt.streams.stream_config import JitConfig, to_batch
from mypt.text.clean import Cleaner
from mypt.text.sources import Unit, find_units
from mypt.tokenization.load import load_tokenizer, tokenizer_hash

DEALING = 2  # of documents to readers, as `DocumentReader` does it: under another way a cursor means other documents


class JitStream(torch.utils.data.IterableDataset, EstimatedLedger):
    """Endless training samples straight from text, without preparing it first.

    Each process and each DataLoader worker of it is a reader with its own documents
    (`mypt.streams.document_reader`): each document once per epoch. They are cleaned as `mypt prepare` cleans,
    tokenized, ended by EOS and packed: a reader's window covers block_size + 1 tokens and begins `stride` tokens after
    the one before. Yields what `ShardStream` yields. Memory: `shuffle_buffer` documents per reader, or 64 Mi characters
    of them.

    Args:
        sources: paths, globs or hub datasets, as `mypt prepare --source` takes them, or their units.
        tokenizer: a loaded one, or a directory, `gpt2` or a hub id.
        text_column: of the sources, unless they are units.
        expected: the size of an epoch by an estimate or a count (`mypt.streams.size`), for the length of a run and for
            the ledger until it has counted. A `state` brings the one that its run began with.
        state: what `state` gave, to resume there. With DataLoader workers iterate a `JitLoader` to have one.
        **settings: of `JitConfig`.

    Raises:
        DataError: sources without documents, or changed since `state`; while iterating, a reader without documents.
    """

    def __init__(
        self,
        sources: str | Path | list[str | Path] | list[Unit],
        tokenizer,
        *,
        text_column: str = "text",
        expected: Size = UNKNOWN,
        state: dict | None = None,
        **settings,
    ):
        self.config = JitConfig(**settings)
        names = [sources] if isinstance(sources, str | Path) else list(sources)
        units = names if isinstance(names[0], Unit) else find_units(names, text_column=text_column)
        name = ", ".join(dict.fromkeys(unit.source for unit in units))
        block_size = self.config.block_size
        EstimatedLedger.__init__(self, name, block_size, self.config.stride or block_size, expected)
        self.units = units
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        self._position: dict | None = None
        if state is not None:
            self.resume(state)

    @property
    def identity(self) -> dict:
        """All that decides which tokens come when; a state belongs to one value of it."""
        return {
            "data": fingerprint(self.units),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "block_size": self.block_size,
            "seed": self.config.seed,
            "shuffle_buffer": self.config.shuffle_buffer,
            "stride": self.stride,
            "max_examples": self.config.max_examples,
            "val_fraction": self.config.val_fraction,
            "dealing": DEALING,
        }

    @property
    def start_sample(self) -> int:
        """Global number of the sample that comes next."""
        return self._position["next_sample"] if self._position else 0

    def state(self, next_sample: int = 0) -> dict:
        """All that a resume needs, for JSON: after the last batch that was handed out here or by a JitLoader.

        `lanes` has the cursors of this process's readers; of all processes after `gather`. next_sample: the sample that
        comes next in training, if it is known. Raises DataError if it is another one: what was read ahead, and not
        trained on, would be lost.
        """
        position = self.begin(1) if self._position is None else self._position
        if next_sample and next_sample != position["next_sample"]:
            raise DataError(
                f"{position['next_sample']} samples of {self.name} are handed out, and {next_sample} trained on: what "
                "reads ahead loses its place in a JitStream; iterate a JitLoader, or use `mypt train`"
            )
        lanes = {number: list(cursor) for number, cursor in position["lanes"].items()}
        return super().state(position["next_sample"]) | position | {"lanes": lanes}

    def resume(self, state: dict) -> None:
        """Resume at `state`. Raises DataError, naming what differs, if it belongs to other data or settings."""
        now = self.identity
        differing = [key for key in now if state.get(key) != now[key]]
        if differing:
            details = "; ".join(f"{key}: {state.get(key)} there, {now[key]} now" for key in differing)
            raise DataError(
                f"the stream of {self.name} cannot resume ({details}); restore the earlier data or settings "
                "(a hub dataset: name its @revision), or start another run"
            )
        self._position = {key: state[key] for key in (*now, "world_size", "workers", "next_worker", "next_sample")}
        self._position["lanes"] = {number: Cursor(*cursor) for number, cursor in state["lanes"].items()}
        self.size = self.expected = Size(*state["expected"])
        self._count()

    def begin(self, workers: int) -> dict:
        """Where it stands, as in `state`, for so many readers in each process.

        Raises DataError if the state that it resumes from had another number of them, or of processes.
        """
        layout = {"world_size": self.config.world_size, "workers": workers}
        mine = self._own_readers(workers)
        if self._position is None:
            self._position = (
                self.identity | layout | {"next_worker": 0, "next_sample": 0, "lanes": dict.fromkeys(mine, Cursor())}
            )
        there = {key: self._position[key] for key in layout}
        if there != layout:
            raise DataError(
                f"the stream was read by {there['world_size']} processes of {there['workers']} workers, now by "
                f"{layout['world_size']} of {layout['workers']}; each reader has its own place in it, so both numbers "
                "must stay: restore them (dataloader_num_workers 0 counts as 1), or start another run"
            )
        self._position["lanes"] = {number: self._position["lanes"][number] for number in mine}
        return self._position

    def gather(self) -> None:
        """Collect the cursors of all processes' readers, for `state`; every process calls it."""
        from accelerate.utils import gather_object

        lanes = self._position["lanes"]
        # Only its own: what it knows of the others is as old as the last call.
        mine = {number: lanes[number] for number in self._own_readers(self._position["workers"])}
        for others in gather_object([mine]):
            lanes |= others
        self._count()

    def _own_readers(self, workers: int) -> list[str]:
        return [str(self.config.rank * workers + index) for index in range(workers)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, cursor in self.batches():
            self.advance(cursor)
            yield batch

    def batches(self) -> Iterator[tuple[dict[str, torch.Tensor], Cursor]]:
        """This reader's batches, each with the cursor after it."""
        worker = torch.utils.data.get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        position = self.begin(workers)
        number = self._next_reader(index)
        windows = self._windows(number, self.config.world_size * workers, position["lanes"][str(number)])
        eos = self.tokenizer.eos_token_id if self.config.document_mask else None
        while group := list(itertools.islice(windows, self.config.micro_batch_size or 1)):
            batch = to_batch(np.stack([window for window, _ in group]), eos)
            if self.config.micro_batch_size is None:
                batch = {name: tensor[0] for name, tensor in batch.items()}
            yield batch, group[-1][1]

    def advance(self, cursor: Cursor) -> None:
        """Count the next batch, after which its reader is at `cursor`, as handed out; the workers take turns."""
        position = self._position
        self._position = position | {
            "next_worker": (position["next_worker"] + 1) % position["workers"],
            "next_sample": position["next_sample"] + (self.config.micro_batch_size or 1) * self.config.world_size,
            "lanes": position["lanes"] | {str(self._next_reader(0)): cursor},
        }
        self._count()

    def _count(self) -> None:
        position = self._position
        readers = position["world_size"] * position["workers"]
        self.count(position["lanes"].values(), readers, position["next_sample"])

    def _next_reader(self, index: int) -> int:
        """The number of the reader whose batch comes `index` batches after the next of this process."""
        workers = self._position["workers"]
        return self.config.rank * workers + (self._position["next_worker"] + index) % workers

    def _windows(self, number: int, readers: int, cursor: Cursor) -> Iterator[tuple[np.ndarray, Cursor]]:
        keep = partial(kept_text, Cleaner(), val_fraction=self.config.val_fraction)
        documents = DocumentReader(self.units, number, readers, keep, self.config).documents(cursor)
        first = list(itertools.islice(documents, GROUP))
        encoder = document_encoder(self.tokenizer, [text for _, text in first])

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            before, flat = encoder.special.dropped, encoder(texts)
            if encoder.special.dropped > before == 0:
                warnings.warn(
                    f"special tokens that the text of {self.name} spells were dropped: the tokenizer has no other ids "
                    "for their text; use a tokenizer whose EOS is not text to keep it",
                    stacklevel=2,
                )
            return flat

        documents = itertools.chain(first, documents)
        yield from pack(documents, encode, self.tokenizer.eos_token_id, self.block_size, self.stride, cursor)


class JitLoader(torch.utils.data.DataLoader):
    """A DataLoader of a JitStream that keeps the stream's state at the last batch handed out.

    Workers read ahead, but each batch brings the cursor after it along: what was read and not handed out is read again
    after a resume. num_workers and other options: as of DataLoader. Raises DataError as `JitStream.begin` does.
    """

    def __init__(self, stream: JitStream, num_workers: int = 0, **options):
        super().__init__(_WithCursors(stream), batch_size=None, num_workers=num_workers, **options)
        stream.begin(max(1, num_workers))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, cursor in super().__iter__():
            self.dataset.stream.advance(cursor)
            yield batch


class _WithCursors(torch.utils.data.IterableDataset):
    """A stream's batches with their cursors."""

    def __init__(self, stream: JitStream):
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], Cursor]]:
        return self.stream.batches()
