"""Save a checkpoint so that neither a kill nor a power cut leaves one that looks whole and is not."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.checkpoints.checksums import write_checksums
from mypt.checkpoints.complete import SAVING_NAME, rotate
from mypt.errors import CheckpointError
from mypt.files import flush_folder, flush_names, is_disk_full, system_errors


@contextmanager
def complete_save(trainer) -> Iterator[None]:
    """Around Trainer's `_save_checkpoint`, on all processes.

    The mark of an unfinished save is on the disk before the first file is, and goes when the last one is, which holds
    the checksums of the others; only then are older checkpoints removed. A full disk is one clear error in all
    processes and the older checkpoints stay: CheckpointError.
    """
    args = trainer.args
    run, step = Path(args.output_dir), trainer.state.global_step
    folder = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    limit, args.save_total_limit = args.save_total_limit, None  # Trainer would remove older ones before
    try:
        with _alike(args.world_size):
            if args.should_save:
                _mark(folder)
        with _alike(args.world_size), system_errors(folder):
            yield
        with _alike(args.world_size):
            if args.should_save:
                write_checksums(folder)
            if args.local_process_index == 0:
                flush_folder(folder)
    except OSError as error:
        if not is_disk_full(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(
            f"no room on the disk to save step {step} in {run}; earlier checkpoints are untouched: free some space and "
            "run the same command with --resume"
        ) from error
    finally:
        args.save_total_limit = limit
    if args.should_save:
        (folder / SAVING_NAME).unlink()
        flush_names(folder)
        rotate(run, limit, trainer.state.best_model_checkpoint)


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
