"""Upload each saved checkpoint to a store during training, and the finished run at the end."""

import os
import shlex
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.errors import CheckFailed, MyPTError
from mypt.storage.run_files import best_of_run
from mypt.storage.store import Outgoing, Sent, Store
from mypt.storage.uri import parse_uri
from mypt.terminal import say

HELD_NAME = ".upload"  # in the run folder
KEEP = 2  # checkpoints in a store of runs
GRACE = 20.0  # seconds that a run which a signal ends waits for its last upload


class _Save(NamedTuple):
    """A saved checkpoint that waits for its upload; `held` keeps its files when Trainer removes the checkpoint."""

    name: str
    best: str | None  # the name of the best checkpoint when it was saved
    files: list[Outgoing]
    held: Path


class UploadCallback(TrainerCallback):
    """Upload from one thread during training; of several waiting saves only the newest is sent, and the best one.

    A failed upload is reported and training continues. The main process alone calls `connect`, `restore`, `claim`
    and `give_up_after` before training and `finish` or `wait` after it.

    Args:
        uri: hf://user/name[@branch], which gets the model of each checkpoint; or s3://bucket/path, gs://bucket/path,
            az://container/path, file:///path, which get whole checkpoints that a run can be resumed from.
        private: Visibility of a hub repository; None: private.
        every_save: Send each checkpoint, not only the finished run.
        keep: Checkpoints that stay in a store of runs, besides the best one; None: 2.
    """

    def __init__(self, uri: str, *, private: bool | None = None, every_save: bool = True, keep: int | None = None):
        self.uri = uri
        self.store: Store = parse_uri(uri)
        self.private = private if private is not None or self.store.keeps_runs else True
        self.every_save = every_save
        self.keep = keep or KEEP
        self._lock = threading.Lock()
        self._newest: _Save | None = None
        self._thread: threading.Thread | None = None
        self._sent: set[str] = set()  # checkpoints

    # ---- before training ----

    def connect(self) -> None:
        """Check access and name before any work is done. Raises MyPTError."""
        self.store.connect(private=self.private)

    def restore(self, run: Path) -> list[Path]:
        """Fetch what a resume needs and the run folder has not; returns what was added. Raises MyPTError."""
        brought = self.store.restore(run)
        if brought:
            say(f"fetched {brought[0].name} from {self.uri}")
        return brought

    def claim(self, run_hash: str, *, resume: bool) -> None:
        """Refuse a place that holds another run, or this one without `resume`. Raises CheckpointError."""
        self.store.claim(run_hash, resume=resume)

    def give_up_after(self, checkpoint: str) -> None:
        """Remove the later checkpoints there, which a resume from this one gives up. Raises MyPTError."""
        if names := self.store.give_up_after(int(checkpoint.rpartition("-")[2])):
            say(f"{', '.join(names)}: removed from {self.uri}, since the run resumes from {checkpoint}")

    # ---- during training ----

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:  # what a killed process held
            shutil.rmtree(Path(args.output_dir) / HELD_NAME, ignore_errors=True)

    def on_save(self, args, state, control, **kwargs):
        if not (self.every_save and state.is_world_process_zero):
            return
        run, name = Path(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        best = Path(state.best_model_checkpoint).name if getattr(state, "best_model_checkpoint", None) else None
        try:
            save = self._hold(run / name, best)
        except Exception as error:  # no error of an upload may end the training
            return self._say_failed(name, error)
        with self._lock:
            passed_over, self._newest = self._newest, save
            if self._thread is None:
                # A daemon, so that a process whose training failed does not wait for an upload.
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()
        if passed_over:
            shutil.rmtree(passed_over.held, ignore_errors=True)

    def _hold(self, checkpoint: Path, best: str | None) -> _Save:
        """Hard-link what is sent of a checkpoint, so that it stays until it is sent."""
        held = checkpoint.parent / HELD_NAME / checkpoint.name
        shutil.rmtree(held, ignore_errors=True)
        files = []
        for file in self.store.outgoing(checkpoint):
            if isinstance(file.content, Path):
                file = file._replace(content=_linked(file.content, held / file.name))
            files.append(file)
        return _Save(checkpoint.name, best, files, held)

    def _work(self) -> None:
        while True:
            with self._lock:
                save, self._newest = self._newest, None
                if save is None:
                    self._thread = None
                    return
            try:
                self._send_save(save)
            except Exception as error:
                self._say_failed(save.name, error)
            shutil.rmtree(save.held, ignore_errors=True)

    def _send_save(self, save: _Save) -> None:
        done = self._send(self.store.below(save.name), save.files, f"Step {save.name.rpartition('-')[2]}")
        self._sent.add(save.name)
        say(f"uploaded {save.name} to {self.uri} ({self.store.receipt} {done.commit[:8]})")
        best = save.best and save.held.parents[1] / save.best
        if self.store.keeps_runs and best and best.is_dir() and save.best not in self._sent:
            try:
                self._send(self.store.below(save.best), self.store.outgoing(best), "Best step")  # it was passed over
                self._sent.add(save.best)
            except Exception as error:  # of the best one alone
                self._say_failed(save.best, error)
        self.store.prune(self.keep, save.best, save.name)

    def _send(self, store: Store, files: list[Outgoing], message: str) -> Sent:
        return store.send(files, message=message, progress=False)

    def _say_failed(self, name: str, error: Exception) -> None:
        reason = error if isinstance(error, MyPTError | OSError) else repr(error)
        say(f"{name} was not uploaded ({reason}); training continues")

    # ---- after it ----

    def wait(self, checkpoint: Path) -> None:
        """After a signal: give the upload of the last checkpoint `GRACE` seconds, and report whether it is there."""
        if not self.every_save:
            return
        name = checkpoint.name
        with self._lock:
            thread = self._thread
        if thread:
            say(f"waiting up to {GRACE:.0f} s for the upload of {name} (Ctrl-C does not wait)")
            thread.join(GRACE)
        if name not in self._sent:
            command = f"mypt upload {shlex.quote(str(checkpoint))} {self.store.below(name)}"
            say(f"{name} is not in {self.uri}; `{command}` sends it")

    def finish(self, run: Path) -> None:
        """Send the finished run folder, after the current upload. Raises CheckFailed if that fails."""
        with self._lock:
            self._newest, thread = None, self._thread
        say(f"uploading {run} to {self.uri}")
        if thread:
            thread.join()
        shutil.rmtree(run / HELD_NAME, ignore_errors=True)
        try:
            parts = self.store.parts(run, checkpoints=self.every_save)
            for name, folder in parts.items():
                store = self.store.below(name)
                done = self._send(store, store.outgoing(folder), "Finished run")
            self.store.prune(self.keep, best_of_run(run), *parts)
        except (MyPTError, OSError) as error:
            visibility = "" if self.private is None else " --private" if self.private else " --public"
            command = f"mypt upload {shlex.quote(str(run))} {self.uri}{visibility}"
            where = "not whole in the store" if self.store.keeps_runs else "not on the hub"
            words = f"the model is in {run} but {where} ({error}); run `{command}`"
            raise CheckFailed(words, "upload") from error
        say(f"uploaded {run} to {self.uri} ({self.store.receipt} {done.commit[:8]})")


def _linked(path: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)
    return target
