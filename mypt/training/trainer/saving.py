"""Save a checkpoint so that neither a kill nor a power cut leaves one that looks whole and is not."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate.utils import gather_object
from transformers import TrainingArguments

from mypt.checkpoints.checksums import write_checksums
from mypt.checkpoints.complete import SAVING_NAME, rotate, step_of
from mypt.errors import CheckpointError
from mypt.files import flush_folder, flush_names, is_disk_full, system_errors


class CompleteSave:
    """Around Trainer's `train`: every checkpoint is whole or not at all, on all processes alike.

    The mark of an unfinished save is on the disk before the first file is, and goes when the last one is, which holds
    the checksums of the others; only then are older checkpoints removed. A full disk is one clear error in all
    processes, and the older checkpoints stay: CheckpointError.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.folder: Path | None = None  # of the save under way
        self.others_wait = False  # in `finish`, for a process in which the rest of the save fails
        self.limit: int | None = None

    @contextmanager
    def model_of(self, folder: Path) -> Iterator[None]:
        """Around the save of the model, with which a checkpoint begins."""
        self.folder = folder
        # Trainer would remove older checkpoints before this one is whole.
        self.limit, self.args.save_total_limit = self.args.save_total_limit, None
        with _alike(self.args.world_size):
            if self.args.should_save:
                _mark(folder)
        with _alike(self.args.world_size), system_errors(folder):
            yield
        self.others_wait = True

    def finish(self, best_checkpoint: str | None) -> None:
        """Every file is written: record their checksums, flush them, take the mark away, remove older checkpoints."""
        if self.folder is None:
            return
        folder, self.others_wait = self.folder, False
        with _alike(self.args.world_size):
            if self.args.should_save:
                write_checksums(folder)
            if self.args.local_process_index == 0:
                flush_folder(folder)
        self._end()
        if self.args.should_save:
            (folder / SAVING_NAME).unlink()
            flush_names(folder)
            rotate(folder.parent, self.limit, best_checkpoint)

    def _end(self) -> None:
        self.folder, self.args.save_total_limit = None, self.limit

    def __enter__(self) -> "CompleteSave":
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        """Raise CheckpointError if a full disk ended a save, OSError in all processes if one was raised in one."""
        if self.folder is None:
            return
        folder = self.folder
        self._end()
        if error is None:
            return
        try:
            with system_errors(folder):
                raise error
        except OSError as fault:
            if self.others_wait:
                self.others_wait = False
                with suppress(OSError), _alike(self.args.world_size):
                    raise fault
            if not is_disk_full(fault):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"no room on the disk to save step {step_of(folder)} in {folder.parent}; earlier checkpoints are "
                "untouched: free some space and run the same command with --resume"
            ) from fault


@contextmanager
def _alike(processes: int) -> Iterator[None]:
    """All processes call it, and leave it together. Raises OSError in all of them if one was raised in one."""
    fault = None
    try:
        yield
    except OSError as error:
        fault = error
    for found in gather_object([fault]) if processes > 1 else [fault]:
        if found:
            raise found


def _mark(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAVING_NAME).write_text("This file goes when every other one is on the disk.\n", encoding="utf-8")
    flush_folder(folder)
    flush_names(folder.parent)
