"""Upload each saved model to the hub during training, and the finished run folder at the end."""

import os
import shlex
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.errors import CheckFailed, MyPTError
from mypt.storage.store import Outgoing, Sent
from mypt.storage.uri import parse_uri
from mypt.terminal import say

HELD_NAME = ".upload"  # in the run folder


class _Save(NamedTuple):
    """A saved model that waits for its upload; `held` keeps its files when Trainer removes the checkpoint."""

    name: str
    files: list[Outgoing]
    held: Path


class UploadCallback(TrainerCallback):
    """Upload from one thread during training; of several waiting saves only the newest is sent.

    A failed upload is reported and training continues. The main process alone calls `connect` before training and
    `finish` after it.

    Args:
        uri: hf://user/name[@branch].
        private: Visibility of the repository.
        every_save: Send the model of each checkpoint (never the optimizer's state), not only the finished one.
    """

    def __init__(self, uri: str, *, private: bool = True, every_save: bool = True):
        self.uri = uri
        self.private = private
        self.every_save = every_save
        self._lock = threading.Lock()
        self._newest: _Save | None = None
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Check the token, the name and the hub before any work is done. Raises MyPTError."""
        parse_uri(self.uri).connect(private=self.private)

    def on_save(self, args, state, control, **kwargs):
        if not (self.every_save and state.is_world_process_zero):
            return
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        try:
            save = self._hold(checkpoint)
        except Exception as error:  # no error of an upload may end the training
            return self._say_failed(checkpoint.name, error)
        with self._lock:
            passed_over, self._newest = self._newest, save
            if self._thread is None:
                # A daemon, so that a process whose training failed does not wait for an upload.
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()
        if passed_over:
            shutil.rmtree(passed_over.held, ignore_errors=True)

    def finish(self, run: Path) -> None:
        """Send the finished run folder, after the current upload. Raises CheckFailed if that fails."""
        with self._lock:
            self._newest, thread = None, self._thread
        say(f"uploading {run} to {self.uri}")
        if thread:
            thread.join()
        shutil.rmtree(run / HELD_NAME, ignore_errors=True)
        try:
            commit = self._send(parse_uri(self.uri).outgoing(run), "Finished run").commit
        except (MyPTError, OSError) as error:
            visibility = "--private" if self.private else "--public"
            command = f"mypt upload {shlex.quote(str(run))} {self.uri} {visibility}"
            words = f"the model is in {run} but not on the hub ({error}); run `{command}`"
            raise CheckFailed(words, "upload") from error
        say(f"uploaded {run} to {self.uri} (commit {commit[:8]})")

    def _hold(self, checkpoint: Path) -> _Save:
        """Hard-link what is sent of a checkpoint, so that it stays until it is sent."""
        held = checkpoint.parent / HELD_NAME / checkpoint.name
        shutil.rmtree(held, ignore_errors=True)
        held.mkdir(parents=True)
        files = []
        for file in parse_uri(self.uri).outgoing(checkpoint):
            if isinstance(file.content, Path):
                file = file._replace(content=_linked(file.content, held / file.name))
            files.append(file)
        return _Save(checkpoint.name, files, held)

    def _work(self) -> None:
        while True:
            with self._lock:
                save, self._newest = self._newest, None
                if save is None:
                    self._thread = None
                    return
            try:
                commit = self._send(save.files, f"Step {save.name.rpartition('-')[2]}").commit
                say(f"uploaded {save.name} to {self.uri} (commit {commit[:8]})")
            except Exception as error:
                self._say_failed(save.name, error)
            shutil.rmtree(save.held, ignore_errors=True)

    def _send(self, files: list[Outgoing], message: str) -> Sent:
        return parse_uri(self.uri).send(files, message=message, progress=False)

    def _say_failed(self, name: str, error: Exception) -> None:
        reason = error if isinstance(error, MyPTError | OSError) else repr(error)
        say(f"{name} was not uploaded ({reason}); training continues")


def _linked(path: Path, target: Path) -> Path:
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)
    return target
