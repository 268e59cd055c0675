"""Keep models, datasets and whole runs in object stores, each folder with a manifest (`transfer.py`)."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mypt.checkpoints.complete import last_complete_checkpoint, step_of
from mypt.checkpoints.environment import ENVIRONMENT_NAME
from mypt.errors import CheckpointError, MyPTError
from mypt.folders import beside, require_free, take_place
from mypt.remote.place import FORMS, Place
from mypt.storage.export_files import export_files, is_export
from mypt.storage.manifest import (
    MANIFEST_NAME,
    Manifest,
    kind_in_words,
    read_manifest,
    replaceable_manifest,
    require_manifest,
    stored_name,
)
from mypt.storage.run_files import (
    RUN,
    best_of,
    checkpoint_files,
    dataset_files,
    is_checkpoint,
    is_dataset,
    parts_of,
    recorded_run,
    report_page,
)
from mypt.storage.store import Outgoing, Received, Sent, Store
from mypt.storage.transfer import digest_of, fetch_folder, send_folder, was_fetching
from mypt.storage.upload_files import require_inside, require_no_token
from mypt.terminal import say

_PROBE = ".mypt-may-write"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)/(.+)")


@dataclass(frozen=True)
class ObjectStore(Store):
    """A folder of an object store, such as s3://bucket/runs/law; a run's checkpoints are folders in it."""

    form: ClassVar = FORMS
    receipt: ClassVar = "manifest"
    keeps_runs: ClassVar = True
    place: Place
    revision: None = None

    @classmethod
    def parse(cls, uri: str) -> ObjectStore:
        return cls(Place.parse(uri))

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        return self.place.name

    def outgoing(self, folder: str | Path, *, license: str | None = None) -> list[Outgoing]:
        """List the files of a model or an export as every store does, those of a checkpoint or a dataset, and of a run
        its report.html, too."""
        folder = Path(folder)
        if is_dataset(folder):
            return dataset_files(folder)
        if is_export(folder):
            return export_files(folder, self.name, license)
        if is_checkpoint(folder):
            return checkpoint_files(folder)
        files, environment = super().outgoing(folder, license=license), folder / ENVIRONMENT_NAME
        if environment.is_file():  # whose run it is
            require_inside(folder, [environment])
            require_no_token(environment, environment.read_bytes())
            files.append(Outgoing(ENVIRONMENT_NAME, environment, environment.stat().st_size))
        page = report_page(folder)
        return [*files, page] if page else files

    def connect(self, *, private: bool | None = None) -> bool | None:
        if private is not None:
            word = "private" if private else "public"
            raise MyPTError(
                f"{self}: the rules of its bucket decide whether it is {word}, and mypt does not change them; leave "
                "that option out"
            )
        self.place.put(_PROBE, b"mypt tests here whether it may write and remove files\n")
        self.place.remove([_PROBE])
        return None

    def send(self, files: list[Outgoing], **options: Any) -> Sent:
        return send_folder(self.place, files, **options)

    def download(self, folder: str | Path) -> Received:
        folder = Path(folder)
        require_free(folder)
        manifest = require_manifest(self.place)
        with beside(folder.resolve(), "download", was_fetching) as aside:
            fetch_folder(self.place, aside, manifest)
            take_place(aside, folder.resolve())
        sizes = {name: entry["bytes"] for name, entry in sorted(manifest["files"].items())}
        known = {MANIFEST_NAME, *(stored_name(name, manifest) for name in sizes)}
        return Received(digest_of(manifest), sizes, sorted(self.place.files().keys() - known))

    # ---- the checkpoints of a run ----

    def parts(self, run: Path, *, checkpoints: bool = True) -> dict[str, Path]:
        return parts_of(run, checkpoints)

    def below(self, name: str) -> ObjectStore:
        return ObjectStore(self.place / name) if name else self

    def _checkpoints(self) -> dict[int, set[str]]:
        """The files of each checkpoint, whole or not, by its step."""
        found: dict[int, set[str]] = {}
        for path in self.place.files():
            if match := _CHECKPOINT.fullmatch(path):
                found.setdefault(int(match[1]), set()).add(match[2])
        return dict(sorted(found.items()))

    def prune(self, keep: int, *named: str | None) -> list[str]:
        there = self._checkpoints()
        kept = {*_whole(there)[-keep:]}
        gone = [step for step in there if kept and step < max(kept) and step not in kept and _name(step) not in named]
        return self._remove({step: there[step] for step in gone})

    def give_up_after(self, step: int) -> list[str]:
        return self._remove({later: names for later, names in self._checkpoints().items() if later > step})

    def _remove(self, checkpoints: dict[int, set[str]]) -> list[str]:
        for step, names in checkpoints.items():  # the manifest first: what is left after a kill counts as nothing
            self.below(_name(step)).place.remove([*({MANIFEST_NAME} & names), *sorted(names - {MANIFEST_NAME})])
        return [_name(step) for step in checkpoints]

    def claim(self, run: str, *, resume: bool) -> None:
        whole = [_name(step) for step in _whole(self._checkpoints())]
        for place in [self.place, *(self.below(name).place for name in whole[-1:])]:
            manifest = replaceable_manifest(place)
            if manifest and manifest.get("run") != run:
                raise CheckpointError(f"{place} holds another run or another model; choose another URI (upload.uri)")
        if whole and not resume:
            raise CheckpointError(
                f"{self} already holds checkpoints of this run; add --resume to continue, or choose another upload.uri"
            )

    def restore(self, run: Path) -> list[Path]:
        """Fetch the newest checkpoint, the best one that its state names, and the run's files, unless it is older.

        A folder that holds another run is left as it is; `claim` refuses it.
        """
        whole = _whole(self._checkpoints())
        here, _ = last_complete_checkpoint(run)
        if not whole or (here and step_of(here) >= whole[-1]):
            return []
        newest = _name(whole[-1])
        own = recorded_run(run)
        there = require_manifest(self.below(newest).place).get("run")
        if own and there != own:
            return []
        brought = self._bring(newest, run)
        best = best_of(run / newest)
        if best and best != newest and not (run / best).is_dir():
            manifest = read_manifest(self.below(best).place)
            if manifest and manifest.get("run") == there:
                brought += self._bring(best, run)
            elif manifest:
                say(f"{self.below(best)} is not of the run of {newest}: the best checkpoint is not fetched")
        return brought

    def _bring(self, name: str, run: Path) -> list[Path]:
        """Fetch one checkpoint into a run folder, which names it when it is whole; returns what is new there."""
        store = self.below(name)
        manifest: Manifest = require_manifest(store.place)
        if manifest["kind"] != "checkpoint":
            kind = kind_in_words(manifest["kind"])
            raise CheckpointError(f"{store} is {kind}, not a checkpoint; choose another upload.uri")
        target = run / name
        if target.is_dir():  # an interrupted save of the same step
            shutil.rmtree(target)
        run.mkdir(parents=True, exist_ok=True)
        with beside(target.resolve(), "download", was_fetching) as aside:
            fetch_folder(store.place, aside, manifest)
            brought = [target]
            for path in sorted((aside / RUN).glob("*")):
                if not (run / path.name).exists():
                    brought.append(path.replace(run / path.name))
            shutil.rmtree(aside / RUN, ignore_errors=True)
            take_place(aside, target.resolve())
        return brought


def _whole(checkpoints: dict[int, set[str]]) -> list[int]:
    """The steps of those that are whole; `checkpoints`: the names of the files of each."""
    return [step for step, names in checkpoints.items() if MANIFEST_NAME in names]


def _name(step: int) -> str:
    return f"checkpoint-{step}"
