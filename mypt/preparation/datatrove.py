"""Blocks for datatrove (`pip install mypt[datatrove]`): a pipeline's documents to a dataset directory.

`MyPTWriter` is the last block of a pipeline of any number of tasks; `MyPTMerger` is the only one of a second pipeline,
which depends on the first (docs/datatrove.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

try:
    from datatrove.data import DocumentsPipeline
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger
except ImportError as error:
    raise ImportError(f"{error}; these blocks need datatrove: pip install 'mypt[datatrove]'") from None

from mypt.errors import DataError
from mypt.preparation.distributed import finish, start, write_rank


class MyPTWriter(PipelineStep):
    """The last block of a pipeline: each task cleans, hashes and encodes its documents into one unit of `out`.

    `out` is a folder that all tasks and `MyPTMerger` see. `tokenizer` is gpt2, a directory (a dataset, a checkpoint) or
    a hub id; it is loaded here, once, so the tasks need no network. `settings` are those of `prepare_dataset`: dedup,
    near_dedup, val_fraction, val_split, tokens_per_shard, normalize, filter, lowercase, document; with normalize=False
    and filter=False documents are taken as the blocks before left them. `source` is what the metadata call the text.
    Documents stand in the order of the tasks, so the same tasks give the same bytes, however many run at once.
    Raises DataError and TokenizerError for what cannot be used.
    """

    type, name = "WRITER", "MyPT shards"

    def __init__(self, out: str | Path, tokenizer: str | Path = "gpt2", *, source: str = "datatrove", **settings: Any):
        super().__init__()
        self.out = _local(out)
        start(self.out, tokenizer, source, **settings)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Writes the unit of this rank; it passes no document on."""
        # datatrove runs as many tasks on a machine as it has room for, so each gets one thread by default.
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        with self.track_time("task"):
            unit = write_rank(self.out, rank, world_size, (document.text for document in data))
        self.stat_update("documents", value=unit.documents_read, unit="task")
        for reason, documents in unit.dropped.items():
            self.stat_update(f"dropped_{reason}", value=documents, unit="task")
        return ()


class MyPTMerger(PipelineStep):
    """The only block of a pipeline of one task that depends on the one with `MyPTWriter`: duplicates, train and val,
    shards. Raises DataError if a task of that one is missing, naming it.
    """

    type, name = "WRITER", "MyPT merger"

    def __init__(self, out: str | Path):
        super().__init__()
        self.out = _local(out)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Writes the dataset directory; it passes no document on."""
        if world_size != 1:
            raise DataError(f"MyPTMerger is run by {world_size} tasks; give it an executor of its own with tasks=1")
        with self.track_time("task"):
            manifest = finish(self.out, logger.info)
        for name, split in manifest.splits.items():
            self.stat_update(f"{name}_documents", value=split.documents, unit="task")
            self.stat_update(f"{name}_tokens", value=split.tokens, unit="task")
        return ()


def _local(out: str | Path) -> Path:
    if "://" in str(out):
        raise DataError(f"out {out} is an address; give a folder of a file system that all tasks share")
    return Path(out).absolute()  # a task may have another current folder
