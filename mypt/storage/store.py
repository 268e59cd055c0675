"""The interface of a store of models. `mypt/storage/uri.py` lists the stores; what is sent is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from mypt.storage.card import card_of
from mypt.storage.upload_files import CARD_NAME, content_to_send, model_files, require_no_token


class Outgoing(NamedTuple):
    """One file of an upload: as it lies on the disk, or other bytes that are sent in its place."""

    name: str
    content: Path | bytes
    size: int  # bytes


class Sent(NamedTuple):
    """The result of an upload: what it is called by, names of files, and the bytes of the sent ones in the store."""

    commit: str
    sent: list[str]
    unchanged: list[str]
    removed: list[str]
    stored: int = 0  # where that is another number than that of their bytes here


class Received(NamedTuple):
    """The result of a download: the commit or manifest, {name: bytes}, and the names that stayed in the store."""

    commit: str
    files: dict[str, int]
    left_out: list[str]


class Store(ABC):
    """One place of a store. Every method raises MyPTError for a wrong request, CheckFailed for a store that fails.

    A store of models takes one model at each place. A store of folders (`keeps_runs`) also takes datasets and the
    whole checkpoints of a run, each a folder below the run's place.

    Attributes:
        form: The URIs that `parse` takes, for messages.
        receipt: What an upload is called by: "commit" or "manifest".
        keeps_runs: Whether a run can be resumed from there.
        name: The name by which the model is loaded.
        revision: A branch, tag or commit; None for the newest.
    """

    form: ClassVar[str]
    receipt: ClassVar[str] = "commit"
    keeps_runs: ClassVar[bool] = False
    name: str
    revision: str | None

    @classmethod
    @abstractmethod
    def parse(cls, uri: str) -> Store:
        """Return the store that a URI names."""

    def outgoing(self, folder: str | Path, *, license: str | None = None) -> list[Outgoing]:
        """List every file that an upload of `folder` consists of, by name; nothing is sent.

        The card is the folder's own README.md, or made now.

        Raises:
            CheckpointError: The folder holds no whole model, or a text holds an access token.
        """
        from huggingface_hub import get_token

        folder, files = Path(folder), []
        for path in model_files(folder):
            if path.name != CARD_NAME:
                changed = content_to_send(path, get_token())
                size = path.stat().st_size if changed is None else len(changed)
                files.append(Outgoing(path.name, changed or path, size))
        card = card_of(folder, self.name, revision=self.revision, license=license).encode(errors="backslashreplace")
        require_no_token(folder / CARD_NAME, card, get_token())
        return sorted([*files, Outgoing(CARD_NAME, card, len(card))])

    @abstractmethod
    def connect(self, *, private: bool | None = None) -> bool | None:
        """Check that uploads will be accepted, and make the model's place if it is absent.

        Args:
            private: Required visibility. None makes a new place private and takes an existing one as it is.

        Returns:
            Whether the place is private; None where the store decides that by rules of its own.
        """

    def require_packing(self) -> None:
        """Raise MyPTError if files cannot be stored packed here."""
        return None

    @abstractmethod
    def send(
        self,
        files: list[Outgoing],
        *,
        message: str = "Upload with mypt",
        progress: bool = True,
        compress: bool = False,
    ) -> Sent:
        """Send `files`, all or none; `connect` comes first, once.

        Unchanged files are not sent again. Files of an earlier upload that are not among `files` are removed with it:
        weights of another shape would be loaded, too.

        Args:
            progress: Draw progress bars on a terminal.
            compress: Store the files packed by zstd; `download` unpacks them.
        """

    @abstractmethod
    def download(self, folder: str | Path) -> Received:
        """Fetch what is there into `folder`, which must be absent or empty.

        The files are downloaded next to the folder, checked, and renamed; a killed call resumes where it stopped.

        Raises:
            CheckpointError: The model has no safetensors, its files are damaged or would leave the folder.
        """

    # ---- a run: for stores of models its finished model alone is sent, always to the same place ----

    def parts(self, run: Path, *, checkpoints: bool = True) -> dict[str, Path]:
        """The folders of a run that are sent, each by the name of its place below this one; "" is this one."""
        return {"": run}

    def below(self, name: str) -> Store:
        """The place of a folder of the run that is kept here."""
        return self

    def prune(self, keep: int, *named: str | None) -> list[str]:
        """Remove all but the newest `keep` checkpoints and those `named`; returns the names of the removed."""
        return []

    def give_up_after(self, step: int) -> list[str]:
        """Remove the checkpoints of later steps, which are to be trained again; returns their names."""
        return []

    def claim(self, run: str, *, resume: bool) -> None:
        """Raise CheckpointError if another run than this (`run_hash`) is kept here, or this one without `resume`."""
        return None

    def restore(self, run: Path) -> list[Path]:
        """Fetch the newest checkpoint into a run folder that has no newer one; returns what was added, that first."""
        return []
