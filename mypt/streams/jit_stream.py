"""`JitStream`: windows of documents that are cleaned and tokenized as they come; `JitLoader` keeps their position."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mypt.errors import DataError
from mypt.streams.document_reader import GROUP, Lane, Place, kept_text, pack
from mypt.streams.size import UNKNOWN, EstimatedLedger, Size, fingerprint
from mypt.streams.windows import document_positions
from mypt.text.clean import Cleaner
from mypt.text.sources import Unit, find_units
from mypt.tokenization.fast import Encoder, choose_engine
from mypt.tokenization.load import load_tokenizer, tokenizer_hash

DEALING = 2  # of documents to readers, as `Lane` does it: a place from another way means other documents


class JitStream(torch.utils.data.IterableDataset, EstimatedLedger):
    """Endless training samples straight from text, without preparing it first.

    Each process and each DataLoader worker of it is a lane, and gets its own documents
    (`mypt.streams.document_reader`): each document once per epoch. They are cleaned as `mypt prepare` cleans,
    tokenised, ended by EOS and packed.
    A lane's window begins `stride` tokens after the one before and covers block_size + 1 tokens.

    sources: paths, globs or hub datasets, as `mypt prepare --source` takes them, or their units. tokenizer: a loaded
    one, or a directory, `gpt2` or a hub id. stride: block_size (no target twice) unless given. max_examples: only the
    first so many documents of the sources. val_fraction: the share of documents, chosen by hash, that is left out.
    micro_batch_size, rank, world_size, document_mask, and what is yielded: as of `ShardStream`.
    state: what `state` gave; goes on there. With DataLoader workers iterate a `JitLoader` to have one.
    expected: the size of an epoch by an estimate or a count (`mypt.streams.size`), for the length of a run and for the
    ledger until it has counted. A `state` brings the one that its run began with.

    Memory: `shuffle_buffer` documents per lane, or 64 Mi characters of them.
    Raises DataError for sources without documents, or changed since `state`; while iterating, for a lane without any.
    """

    def __init__(
        self,
        sources: str | Path | list[str | Path] | list[Unit],
        tokenizer,
        *,
        block_size: int,
        seed: int = 0,
        micro_batch_size: int | None = 1,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 10_000,
        stride: int | None = None,
        max_examples: int | None = None,
        val_fraction: float = 0.0,
        text_column: str = "text",
        document_mask: bool = False,
        expected: Size = UNKNOWN,
        state: dict | None = None,
    ):
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size}: expected 0 <= rank < world_size")
        if stride is not None and not 1 <= stride <= block_size:
            raise DataError(f"stride {stride}: expected 1 to block_size ({block_size}), or tokens would be left out")
        for name, value in (("shuffle_buffer", shuffle_buffer), ("max_examples", max_examples)):
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}, expected 1 or more")
        names = [sources] if isinstance(sources, str | Path) else list(sources)
        units = names if isinstance(names[0], Unit) else find_units(names, text_column=text_column)
        name = ", ".join(dict.fromkeys(unit.source for unit in units))
        EstimatedLedger.__init__(self, name, block_size, stride or block_size, expected)
        self.units = units
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle_buffer = shuffle_buffer
        self.max_examples = max_examples
        self.val_fraction = val_fraction
        self.document_mask = document_mask
        self._position: dict | None = None
        if state is not None:
            self.go_on(state)

    @property
    def identity(self) -> dict:
        """All that decides which tokens come when; a state belongs to one value of it."""
        return {
            "data": fingerprint(self.units),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "block_size": self.block_size,
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "stride": self.stride,
            "max_examples": self.max_examples,
            "val_fraction": self.val_fraction,
            "dealing": DEALING,
        }

    @property
    def start_sample(self) -> int:
        """Global number of the sample that comes next."""
        return self._position["next_sample"] if self._position else 0

    def state(self, next_sample: int = 0) -> dict:
        """All that a resume needs, for JSON: behind the last batch that was handed out here or by a JitLoader.

        `lanes` has the places of this process's lanes; of all processes after `gather`. next_sample: the sample that
        comes next in training, if it is known. Raises DataError if it is another one: what was read ahead, and not
        trained on, would be lost.
        """
        position = self.begin(1) if self._position is None else self._position
        if next_sample and next_sample != position["next_sample"]:
            raise DataError(
                f"{position['next_sample']} samples of {self.name} are handed out, and {next_sample} trained on: what "
                "reads ahead loses its place in a JitStream; iterate a JitLoader, or use `mypt train`"
            )
        lanes = {number: list(place) for number, place in position["lanes"].items()}
        return super().state(position["next_sample"]) | position | {"lanes": lanes}

    def go_on(self, state: dict) -> None:
        """Begin at `state`. Raises DataError, naming what differs, if it belongs to other data or settings."""
        now = self.identity
        differing = [key for key in now if state.get(key) != now[key]]
        if differing:
            details = "; ".join(f"{key}: {state.get(key)} there, {now[key]} now" for key in differing)
            raise DataError(
                f"the stream of {self.name} cannot resume ({details}); restore the earlier data or settings "
                "(a hub dataset: name its @revision), or start another run"
            )
        self._position = {key: state[key] for key in (*now, "world_size", "workers", "next_worker", "next_sample")}
        self._position["lanes"] = {number: Place(*place) for number, place in state["lanes"].items()}
        self.size = self.expected = Size(*state["expected"])
        self._count()

    def begin(self, workers: int) -> dict:
        """Where it stands, as in `state`, for so many readers in each process.

        Raises DataError if the state that it goes on from had another number of them, or of processes.
        """
        layout = {"world_size": self.world_size, "workers": workers}
        mine = self._own_lanes(workers)
        if self._position is None:
            self._position = (
                self.identity | layout | {"next_worker": 0, "next_sample": 0, "lanes": dict.fromkeys(mine, Place())}
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
        """Collect the places of all processes' lanes, for `state`; every process calls it."""
        from accelerate.utils import gather_object

        lanes = self._position["lanes"]
        # Only its own: what it knows of the others is as old as the last call.
        for others in gather_object([{number: lanes[number] for number in self._own_lanes(self._position["workers"])}]):
            lanes |= others
        self._count()

    def _own_lanes(self, workers: int) -> list[str]:
        return [str(self.rank * workers + index) for index in range(workers)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, place in self.batches():
            self.advance(place)
            yield batch

    def batches(self) -> Iterator[tuple[dict[str, torch.Tensor], Place]]:
        """This reader's batches, each with the place behind it."""
        worker = torch.utils.data.get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        position = self.begin(workers)
        number = self._next_lane(index)
        windows = self._windows(number, self.world_size * workers, position["lanes"][str(number)])
        while group := list(itertools.islice(windows, self.micro_batch_size or 1)):
            batch = self._batch(np.stack([window for window, _ in group]))
            if self.micro_batch_size is None:
                batch = {name: tensor[0] for name, tensor in batch.items()}
            yield batch, group[-1][1]

    def advance(self, place: Place) -> None:
        """Count the next batch, behind which its reader is at `place`, as handed out; the workers take turns."""
        position = self._position
        self._position = position | {
            "next_worker": (position["next_worker"] + 1) % position["workers"],
            "next_sample": position["next_sample"] + (self.micro_batch_size or 1) * self.world_size,
            "lanes": position["lanes"] | {str(self._next_lane(0)): place},
        }
        self._count()

    def _count(self) -> None:
        position = self._position
        readers = position["world_size"] * position["workers"]
        self.count(position["lanes"].values(), readers, position["next_sample"])

    def _next_lane(self, index: int) -> int:
        """The lane of the batch that comes `index` batches after the next of this process."""
        workers = self._position["workers"]
        return self.rank * workers + (self._position["next_worker"] + index) % workers

    def _windows(self, number: int, lanes: int, place: Place) -> Iterator[tuple[np.ndarray, Place]]:
        lane = Lane(
            self.units,
            number,
            lanes,
            keep=partial(kept_text, Cleaner(), val_fraction=self.val_fraction),
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            max_examples=self.max_examples,
        )
        documents = lane.documents(place)
        first = list(itertools.islice(documents, GROUP))
        backend = self.tokenizer.backend_tokenizer
        engine = choose_engine(backend, [text for _, text in first], say=lambda line: None)
        encoder = Encoder(backend, engine, self.tokenizer.eos_token_id)

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            before, flat = encoder.special.dropped, encoder(texts)
            if encoder.special.dropped > before == 0:
                warnings.warn(
                    f"special tokens that the text of {self.name} spells were dropped: the tokenizer has no other ids "
                    "for their text; use a tokenizer whose EOS is not text to keep it",
                    stacklevel=2,
                )
            return flat

        yield from pack(
            itertools.chain(first, documents),
            encode,
            self.tokenizer.eos_token_id,
            self.block_size,
            self.stride,
            start=place,
        )

    def _batch(self, windows: np.ndarray) -> dict[str, torch.Tensor]:
        """uint32 (m, block_size + 1) -> int64 tensors (m, block_size)."""
        inputs, targets = (np.ascontiguousarray(part, np.int64) for part in (windows[:, :-1], windows[:, 1:]))
        batch = {"input_ids": torch.from_numpy(inputs), "shift_labels": torch.from_numpy(targets)}
        batch["labels"] = batch["input_ids"]
        if self.document_mask:
            batch["position_ids"] = torch.from_numpy(document_positions(inputs, self.tokenizer.eos_token_id))
        return batch


class JitLoader(torch.utils.data.DataLoader):
    """A DataLoader of a JitStream that keeps the stream's state at the last batch handed out.

    Workers read ahead, but each batch brings the place behind it along: what was read and not handed out is read again
    after a resume. num_workers and other options: as of DataLoader. Raises DataError as `JitStream.begin` does.
    """

    def __init__(self, stream: JitStream, num_workers: int = 0, **options):
        super().__init__(_WithPlaces(stream), batch_size=None, num_workers=num_workers, **options)
        stream.begin(max(1, num_workers))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, place in super().__iter__():
            self.dataset.stream.advance(place)
            yield batch


class _WithPlaces(torch.utils.data.IterableDataset):
    """A stream's batches with their places."""

    def __init__(self, stream: JitStream):
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], Place]]:
        return self.stream.batches()
