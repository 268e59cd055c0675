"""Save checkpoints so that after a kill or a power cut each one is complete or marked as incomplete."""

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
    """Context around Trainer's `train` that makes every checkpoint complete, on all processes alike.

    A mark is flushed to the disk before the first file of a checkpoint, and removed after the last one, which holds the
    checksums of the others; only then are older checkpoints removed.

    Raises:
        CheckpointError: The disk is full, in all processes; the older checkpoints stay.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.folder: Path | None = None  # of the current save
        self.others_wait = False  # whether other processes wait in `finish` for one whose save fails
        self.limit: int | None = None

    @contextmanager
    def model_of(self, folder: Path) -> Iterator[None]:
        """Context around the save of the model, the first part of a checkpoint."""
        self.folder = folder
        # Trainer would remove older checkpoints before this one is complete.
        self.limit, self.args.save_total_limit = self.args.save_total_limit, None
        with _alike(self.args.world_size):
            if self.args.should_save:
                _mark(folder)
        with _alike(self.args.world_size), system_errors(folder):
            yield
        self.others_wait = True

    def finish(self, best_checkpoint: str | None) -> None:
        """After the last file: write the checksums, flush all, remove the mark, then remove older checkpoints."""
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
        """Raise CheckpointError after a full disk; raise an OSError of one process in all of them."""
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
    """Context of all processes; an OSError in one of them is raised in all."""
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
