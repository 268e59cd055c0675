"""Models to the Hugging Face hub and back: `hf://user/name[@revision]`, one commit per upload, whole or not at all.

The token is the hub library's own (`hf auth login`, or HF_TOKEN); it is never printed and never written.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mypt import hub_errors
from mypt.errors import CheckpointError, MyPTError
from mypt.folders import beside, contents, empty, require_free, take_place
from mypt.storage.card import card_of
from mypt.storage.upload_files import (
    CARD_NAME,
    CONFIGS,
    WEIGHTS,
    check_weights,
    content_to_send,
    is_model_file,
    is_replaced,
    model_files,
    require_no_token,
)
from mypt.terminal import is_terminal

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

WAITS = (1, 4, 16)  # seconds before the second, third and fourth try of what the library does not try again


class Place(NamedTuple):
    """A model of the hub, and the branch, tag or commit of it (None: main)."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


class Outgoing(NamedTuple):
    """One file of an upload: as it lies on the disk, or other bytes that are sent in its place."""

    name: str
    content: Path | bytes
    size: int  # bytes


class Sent(NamedTuple):
    """What an upload did; names of files."""

    commit: str
    sent: list[str]
    unchanged: list[str]
    removed: list[str]


class Received(NamedTuple):
    """What a download brought: the commit, {name: bytes}, and the names that stayed on the hub."""

    commit: str
    files: dict[str, int]
    left_out: list[str]


def parse_uri(uri: str) -> Place:
    """Raises MyPTError for anything but hf://user/name[@revision]."""
    scheme, found, rest = uri.partition("://")
    shown = hub_errors.without_secrets(uri)
    if not found or scheme != "hf":
        raise MyPTError(
            f"{shown!r} is no place for models that mypt knows; give hf://user/name or hf://user/name@branch"
        )
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\w[\w./-]*))?", rest)
    if not match or ".." in rest or "--" in match[1] or rest.startswith((".", "-")):
        raise MyPTError(f"{shown!r} is not of the form hf://user/name or hf://user/name@branch")
    return Place(match[1], match[2])


# ---- to the hub ----


def outgoing(folder: str | Path, uri: str, *, license: str | None = None) -> list[Outgoing]:
    """Every file that an upload of `folder` consists of, by name; nothing is sent.

    The card is the folder's own README.md or made now. Raises CheckpointError as `model_files` and `content_to_send`.
    """
    from huggingface_hub import get_token

    folder, place = Path(folder), parse_uri(uri)
    files = []
    for path in model_files(folder):
        if path.name != CARD_NAME:
            changed = content_to_send(path, get_token())
            files.append(Outgoing(path.name, changed or path, path.stat().st_size if changed is None else len(changed)))
    card = card_of(folder, place.name, revision=place.revision, license=license).encode(errors="backslashreplace")
    require_no_token(folder / CARD_NAME, card, get_token())
    return sorted([*files, Outgoing(CARD_NAME, card, len(card))])


def connect(uri: str, *, private: bool | None = None) -> bool:
    """Log in, make the repository and the branch if they are absent. Returns whether the repository is private.

    private: None makes a new repository private and takes one that is there as it is. Raises MyPTError without a token
    that may write, and where the repository's visibility is another; CheckFailed if the hub can't be reached.
    """
    from huggingface_hub import get_token

    place, api = parse_uri(uri), _api()
    if not get_token():
        raise MyPTError("an upload needs a Hugging Face token that may write: run `hf auth login`, or set HF_TOKEN")
    with hub_errors.explained(str(place)):
        identity = _answered(api.whoami) or {}  # without a network this tells at once
        if identity.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise MyPTError("the Hugging Face token may only read; make one that may write and run `hf auth login`")
        _again(lambda: api.create_repo(place.name, private=private is not False, exist_ok=True))
        # A repository that was there may be somebody else's, or the token may be for another.
        _again(lambda: _answered(lambda: api.auth_check(place.name, write=True)))
        found = _again(lambda: api.model_info(place.name)).private
        is_private = private is not False if found is None else found
        if private is not None and is_private != private:
            there, asked = ("private", "public") if is_private else ("public", "private")
            raise MyPTError(f"hf://{place.name} is {there} already, not {asked}; its settings on the hub change that")
        if place.revision:
            _again(lambda: api.create_branch(place.name, branch=place.revision, exist_ok=True))
    return is_private


def send(files: list[Outgoing], uri: str, *, message: str | None = None, progress: bool = True) -> Sent:
    """One commit with `files`, of which those that did not change are not sent again.

    Files of an earlier upload that are not among `files` are removed in the same commit: weights of another shape
    would be loaded with it. progress: draw the library's bars on a terminal. Needs `connect` once before. Raises
    MyPTError where the hub refuses, CheckFailed if it fails in spite of several tries.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    place, api = parse_uri(uri), _api(progress)
    card = next(file.content for file in files if file.name == CARD_NAME).decode()
    with hub_errors.explained(str(place)):
        before = _again(lambda: _tree(api, place.name, place.revision))
        names = {file.name for file in files}
        removed = sorted(name for name in before if name not in names and is_replaced(name))

        def commit():
            # The library hashes and marks these objects: every try gets new ones.
            operations = [CommitOperationAdd(file.name, file.content) for file in files]
            for operation in operations:
                # One after the other in this thread: those of the library's pool would hold up the end of a process.
                if WEIGHTS.fullmatch(operation.path_in_repo):
                    api.preupload_lfs_files(place.name, [operation], revision=place.revision)
            operations += [CommitOperationDelete(name) for name in removed]
            return api.create_commit(
                place.name, operations, commit_message=message or "Upload with mypt", revision=place.revision
            )

        _again(lambda: _check_card(card))  # before hours of sending
        oid = _again(commit).oid
        after = _again(lambda: _tree(api, place.name, place.revision))
    there = sorted(names & before.keys() & after.keys())
    unchanged = [name for name in there if before[name].blob_id == after[name].blob_id]
    return Sent(oid, sorted(names - {*unchanged}), unchanged, removed)


def _check_card(card: str) -> None:
    """Raises MyPTError with the hub's words for metadata that it does not take."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate()
    except ValueError as error:
        raise MyPTError(f"the metadata on top of {CARD_NAME} is not valid: {hub_errors.reason(error)}") from error


# ---- from the hub ----


def download(uri: str, folder: str | Path) -> Received:
    """Bring a model to `folder`, which must not exist yet or be empty: weights in safetensors, tokenizer, code, card.

    It is downloaded beside the folder and renamed when all of it is there and checked; a call that was killed
    resumes where it stopped. Raises CheckpointError for a model without safetensors, files that would leave the folder
    or are damaged; MyPTError and CheckFailed as `send`.
    """
    place, folder, api = parse_uri(uri), Path(folder), _api()
    require_free(folder)
    with beside(folder.resolve(), "download", _was_downloading) as aside:
        with hub_errors.explained(str(place)):
            commit = api.model_info(place.name, revision=place.revision).sha  # without a network this tells at once
            remote = _again(lambda: _tree(api, place.name, commit))
            wanted = _wanted(place, remote)
            for name in contents(aside):  # what a killed call for another model left
                if (aside / name).is_file() and name not in wanted:
                    (aside / name).unlink()
            for name in wanted:
                _again(lambda name=name: api.hf_hub_download(place.name, name, revision=commit, local_dir=aside))
        shutil.rmtree(aside / ".cache", ignore_errors=True)  # the library's notes
        sizes = {name: (aside / name).stat().st_size for name in wanted}
        try:
            check_weights(aside)
            take_place(aside, folder.resolve())
        except MyPTError as error:
            empty(aside)
            raise type(error)(str(error).replace(str(aside), str(place))) from error
    return Received(commit, sizes, sorted(remote.keys() - {*wanted, ".gitattributes"}))


def _was_downloading(folder: Path) -> bool:
    return (folder / ".cache" / "huggingface").is_dir()  # the library's notes on what it has brought


def _wanted(place: Place, remote: dict[str, RepoFile]) -> list[str]:
    """The names to download. Raises CheckpointError if one would leave the folder, or there is no model to load."""
    for name in remote:
        if re.match(r"[/\\]|\w:", name) or ".." in re.split(r"[/\\]", name):
            raise CheckpointError(f"{place} lists the file {name!r}, which would leave the folder; nothing was written")
    wanted = sorted(name for name in remote if is_model_file(name) or re.fullmatch(r"\w+\.py", name))
    if not any(name in remote for name in CONFIGS):
        raise CheckpointError(f"{place} is no model that transformers or peft loads: it has no {' or '.join(CONFIGS)}")
    if not any(WEIGHTS.fullmatch(name) for name in wanted):
        others = sorted(name for name in remote if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf")))
        there = f"only {others[0]}" if others else "none"
        raise CheckpointError(f"{place} has no weights in safetensors ({there}), and pickles are not loaded")
    return wanted


# ---- both ways ----


def _api(progress: bool = True) -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not (progress and is_terminal(sys.stderr)):
        disable_progress_bars()
    return HfApi()


def _tree(api: HfApi, name: str, revision: str | None) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(name, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}  # folders have none


def _answered(question: Callable):
    """What the hub says, or None where it is one that does not know the question."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return question()
    except HfHubHTTPError as error:
        if error.response.status_code not in (404, 405, 501):
            raise
    return None


def _again(action: Callable):
    """`action` once more after each of `WAITS` while the hub stumbles or a connection is lost."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not hub_errors.may_pass(error):
                raise
            time.sleep(wait)
    return action()
