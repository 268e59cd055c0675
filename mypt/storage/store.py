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
    """The result of an upload; names of files."""

    commit: str
    sent: list[str]
    unchanged: list[str]
    removed: list[str]


class Received(NamedTuple):
    """The result of a download: the commit, {name: bytes}, and the names that stayed in the store."""

    commit: str
    files: dict[str, int]
    left_out: list[str]


class Store(ABC):
    """One model in a store. Every method raises MyPTError for a wrong request, CheckFailed for a store that fails.

    Attributes:
        form: The URIs that `parse` takes, for messages.
        name: The name by which the model is loaded.
        revision: A branch, tag or commit; None for the newest.
    """

    form: ClassVar[str]
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
    def connect(self, *, private: bool | None = None) -> bool:
        """Check that uploads will be accepted, and make the model's place if it is absent.

        Args:
            private: Required visibility. None makes a new place private and takes an existing one as it is.

        Returns:
            Whether the place is private.
        """

    @abstractmethod
    def send(self, files: list[Outgoing], *, message: str = "Upload with mypt", progress: bool = True) -> Sent:
        """Send `files`, all or none; `connect` comes first, once.

        Unchanged files are not sent again. Files of an earlier upload that are not among `files` are removed with it:
        weights of another shape would be loaded, too.

        Args:
            progress: Draw progress bars on a terminal.
        """

    @abstractmethod
    def download(self, folder: str | Path) -> Received:
        """Fetch the model into `folder`, which must be absent or empty: safetensors, tokenizer, code, card.

        The files are downloaded next to the folder, checked, and renamed; a killed call resumes where it stopped.

        Raises:
            CheckpointError: The model has no safetensors, its files are damaged or would leave the folder.
        """
