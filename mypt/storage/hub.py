"""Models on the Hugging Face hub: one commit per upload, whole or not at all.

The token is the hub library's own (`hf auth login`, or HF_TOKEN); it is never printed and never written.
The library's folder functions are not used: `upload_folder` commits in parts where hf_xet is installed, and its threads
hold up the end of a process, as those of `snapshot_download` hold up Ctrl-C, until the files under way are through.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mypt import hub_errors
from mypt.checkpoints.model_config import CONFIGS
from mypt.errors import CheckpointError, MyPTError, without_secrets
from mypt.folders import beside, empty, remove_others, require_free, take_place
from mypt.storage.export_files import (
    EXPORTED_WEIGHTS,
    are_an_export,
    export_files,
    is_export,
    is_export_file,
    is_replaced_export,
    require_whole_export,
)
from mypt.storage.store import Outgoing, Received, Sent, Store
from mypt.storage.upload_files import CARD_NAME, WEIGHTS, check_weights, is_model_file, is_replaced
from mypt.terminal import is_terminal

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_NOTES = ".cache"  # the library's folder of notes on what it has brought
WAITS = (1, 4, 16)  # seconds before the second, third and fourth try of what the library does not try again


@dataclass(frozen=True)
class HubStore(Store):
    """A model of the hub: `hf://user/name[@revision]`, the branch main by default."""

    form: ClassVar = "hf://user/name or hf://user/name@branch"
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, uri: str) -> HubStore:
        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@(\w[\w./-]*))?", uri)
        if not match or ".." in uri or "--" in match[1] or match[1].startswith((".", "-")):
            raise MyPTError(f"{without_secrets(uri)!r} is not of the form {cls.form}")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")

    def outgoing(self, folder: str | Path, *, license: str | None = None) -> list[Outgoing]:
        """As of every store for a model; an export with the files that it names."""
        if is_export(Path(folder)):
            return export_files(Path(folder), self.name, license)
        return super().outgoing(folder, license=license)

    def connect(self, *, private: bool | None = None) -> bool:
        from huggingface_hub import get_token

        api = _api()
        if not get_token():
            raise MyPTError("an upload needs a Hugging Face token that may write: run `hf auth login`, or set HF_TOKEN")
        with hub_errors.explained(str(self)):
            identity = _answered(api.whoami) or {}  # without a network this fails at once
            if identity.get("auth", {}).get("accessToken", {}).get("role") == "read":
                raise MyPTError("the Hugging Face token may only read; make one that may write and run `hf auth login`")
            _again(lambda: api.create_repo(self.name, private=private is not False, exist_ok=True))
            # A repository that was there may be somebody else's, or the token may be for another.
            _again(lambda: _answered(lambda: api.auth_check(self.name, write=True)))
            found = _again(lambda: api.model_info(self.name)).private
            is_private = private is not False if found is None else found
            if private is not None and is_private != private:
                there, asked = ("private", "public") if is_private else ("public", "private")
                raise MyPTError(
                    f"hf://{self.name} is {there} already, not {asked}; its settings on the hub change that"
                )
            if self.revision:
                _again(lambda: api.create_branch(self.name, branch=self.revision, exist_ok=True))
        return is_private

    def require_packing(self) -> None:
        raise MyPTError(f"{self}: models on the hub are loaded as they are stored; leave out --compress")

    def send(
        self,
        files: list[Outgoing],
        *,
        message: str = "Upload with mypt",
        progress: bool = True,
        compress: bool = False,
    ) -> Sent:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if compress:
            self.require_packing()
        api, names = _api(progress), {file.name for file in files}
        with hub_errors.explained(str(self)):
            before = self._tree(api, self.revision)
            exported, own = are_an_export(names), next((name for name in before if WEIGHTS.fullmatch(name)), None)
            if exported and own:
                raise CheckpointError(
                    f"{self} holds a model ({own}), which an export does not replace; choose another name"
                )
            if are_an_export(before) and not exported:
                raise CheckpointError(f"{self} holds an export, which a model does not replace; choose another name")
            replaced = is_replaced_export if exported else is_replaced
            removed = sorted(name for name in before if name not in names and replaced(name))

            def commit():
                # The library hashes and marks these objects: every try gets new ones.
                operations = [CommitOperationAdd(file.name, file.content) for file in files]
                for operation in operations:
                    # One after the other in this thread: those of the library's pool would hold up the process's end.
                    if _is_large(operation.path_in_repo):
                        api.preupload_lfs_files(self.name, [operation], revision=self.revision)
                operations += [CommitOperationDelete(name) for name in removed]
                return api.create_commit(self.name, operations, commit_message=message, revision=self.revision)

            _again(lambda: _check_card(files))  # before hours of sending
            oid = _again(commit).oid
            after = self._tree(api, self.revision)
        there = sorted(names & before.keys() & after.keys())
        unchanged = [name for name in there if before[name].blob_id == after[name].blob_id]
        return Sent(oid, sorted(names - {*unchanged}), unchanged, removed)

    def download(self, folder: str | Path) -> Received:
        folder, api = Path(folder), _api()
        require_free(folder)
        with beside(folder.resolve(), "download", _was_downloading) as aside:
            with hub_errors.explained(str(self)):
                commit = api.model_info(self.name, revision=self.revision).sha  # without a network this fails at once
                remote = self._tree(api, commit)
                wanted = self._wanted(remote)
                remove_others(aside, wanted, _NOTES)  # of a killed call for another model
                for name in wanted:
                    _again(lambda name=name: api.hf_hub_download(self.name, name, revision=commit, local_dir=aside))
            shutil.rmtree(aside / _NOTES, ignore_errors=True)
            sizes = {name: (aside / name).stat().st_size for name in wanted}
            try:
                (require_whole_export if is_export(aside) else check_weights)(aside)
                take_place(aside, folder.resolve())
            except MyPTError as error:
                empty(aside)
                raise type(error)(str(error).replace(str(aside), str(self))) from error
        return Received(commit, sizes, sorted(remote.keys() - {*wanted, ".gitattributes"}))

    def _tree(self, api: HfApi, revision: str | None) -> dict[str, RepoFile]:
        def files() -> dict[str, RepoFile]:
            entries = api.list_repo_tree(self.name, recursive=True, revision=revision)
            return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}  # folders have none

        return _again(files)

    def _wanted(self, remote: dict[str, RepoFile]) -> list[str]:
        """Names to download. Raises CheckpointError if one would leave the folder, or there is no model to load."""
        for name in remote:
            if re.match(r"[/\\]|\w:", name) or ".." in re.split(r"[/\\]", name):
                raise CheckpointError(
                    f"{self} lists the file {name!r}, which would leave the folder; nothing was written"
                )
        if are_an_export(remote):
            return sorted(name for name in remote if is_export_file(name))
        wanted = sorted(name for name in remote if is_model_file(name) or re.fullmatch(r"\w+\.py", name))
        if not any(name in remote for name in CONFIGS):
            configs = " or ".join(CONFIGS)
            raise CheckpointError(f"{self} is no model that transformers or peft loads: it has no {configs}")
        if not any(WEIGHTS.fullmatch(name) for name in wanted):
            others = sorted(name for name in remote if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf")))
            there = f"only {others[0]}" if others else "none"
            raise CheckpointError(f"{self} has no weights in safetensors ({there}), and pickles are not loaded")
        return wanted


def _is_large(name: str) -> bool:
    return bool(WEIGHTS.fullmatch(name) or EXPORTED_WEIGHTS.fullmatch(name))


def _check_card(files: list[Outgoing]) -> None:
    """Raises MyPTError with the hub's words for metadata that it does not accept."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(next(file.content for file in files if file.name == CARD_NAME).decode()).validate()
    except ValueError as error:
        raise MyPTError(f"the metadata on top of {CARD_NAME} is not valid: {hub_errors.reason(error)}") from error


def _was_downloading(folder: Path) -> bool:
    return (folder / _NOTES / "huggingface").is_dir()


def _api(progress: bool = True) -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not (progress and is_terminal(sys.stderr)):
        disable_progress_bars()
    return HfApi()


def _answered(question: Callable):
    """The hub's answer, or None from a hub that does not know the question."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return question()
    except HfHubHTTPError as error:
        if error.response.status_code not in (404, 405, 501):
            raise
    return None


def _again(action: Callable):
    """Call `action`, and once more after each of `WAITS` while the hub fails for now or a connection is lost."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not hub_errors.may_pass(error):
                raise
            time.sleep(wait)
    return action()
