"""Read and write environment.json: the identity of a run, and the versions, machine, code and data of its start."""

import json
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mypt.errors import CheckpointError, mask_secrets
from mypt.files import replace_text
from mypt.hardware.machine import Machine, cpus, this_machine
from mypt.json_files import Count, find_json
from mypt.versions import version_of

ENVIRONMENT_NAME = "environment.json"
PACKAGES = ("mypt", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "safetensors", "peft")
_MISSING = "not installed"
_PATIENCE = 10  # seconds for an answer of git


class Identity(TypedDict, total=False):
    """The identity of a run, as far as more is done with it than to compare it."""

    data: list[str]
    model: dict[str, Any]
    init_from: dict[str, Any] | str | None
    lora: dict[str, Any] | None


class Commit(TypedDict):
    """A git commit. dirty: whether files that git follows were changed since."""

    commit: str
    dirty: bool


class RecordedSplit(TypedDict):
    tokens: Count
    fingerprint: str


class RecordedText(TypedDict):
    """A text that a dataset was prepared from. xxh3_128: as in the dataset's metadata; None: not known."""

    name: str
    xxh3_128: str | None


class RecordedDataset(TypedDict):
    """A dataset directory of a run, or one that another was made with.

    uses: what it is for, such as `train` or `eval general`. commands: the words of each command that makes it, in
    order; none where its metadata does not say how it was made. reading: the settings that decide what is read.
    """

    name: str
    uses: list[str]
    splits: dict[str, RecordedSplit]
    tokenizer: str
    texts: list[RecordedText]
    reading: dict[str, Any]
    commands: list[list[str]]


class Session(TypedDict, total=False):
    """Where one start of a run took place. step: optimizer steps that had been done before it."""

    step: Count
    python: str
    packages: dict[str, str]
    machine: dict[str, Any]
    git: dict[str, Commit | None]


class Environment(TypedDict):
    """environment.json; early versions have less of it. `resumed`: later sessions on another machine or version."""

    identity: Identity
    run: NotRequired[str]
    python: NotRequired[str]
    packages: NotRequired[dict[str, str]]
    machine: NotRequired[dict[str, Any]]
    git: NotRequired[dict[str, Commit | None]]
    datasets: NotRequired[list[RecordedDataset]]
    resumed: NotRequired[list[Session]]


def read_environment(run: Path) -> Environment | None:
    """environment.json of a run folder; None if there is none. Raises CheckpointError if it is damaged."""
    advice = f"it names the run that {run} holds: restore it, or choose another training.output_dir"
    return find_json(run / ENVIRONMENT_NAME, Environment, CheckpointError, advice)


def write_environment(run: Path, head: dict, session: Session, datasets: list[RecordedDataset], step: int) -> None:
    """Write environment.json, or add the session to it if it differs from the last one. Raises OSError.

    head: the run's hash and identity, which are written once. step: optimizer steps done before this session.
    """
    path, found = run / ENVIRONMENT_NAME, read_environment(run)
    if found is None:
        run.mkdir(parents=True, exist_ok=True)
        content: dict = {**head, **session, "datasets": datasets}
    else:
        last = [*([found] if "git" in found else []), *found.get("resumed", [])][-1:]
        if not last or all(last[0].get(key) == value for key, value in session.items()):
            return
        content = found | {"resumed": [*found.get("resumed", []), {"step": step, **session}]}
    replace_text(path, json.dumps(content, indent=1, default=str))


def this_session(machine: Machine | None = None, processes: int = 1) -> Session:
    """Versions, machine and code of this process. No environment variable, host name or user name is in it.

    machine: the device that the run trains on; None: the one that this machine would use.
    """
    machine = machine or this_machine()
    versions = {name: version_of(name) for name in PACKAGES}
    package = Path(__file__).parents[1]
    return {
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions.items() if version != _MISSING or name == "mypt"},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": cpus(),
            "device": machine.device,
            "model": machine.model,
            "memory": machine.memory,
            "processes": processes,
        },
        "git": {"mypt": _commit_of(package, package / "__init__.py"), "folder": _commit_of(Path.cwd())},
    }


@cache  # of this process: the code that it runs is what it has imported
def _commit_of(folder: Path, tracked: Path | None = None) -> Commit | None:
    """The commit that a folder is checked out at; None outside a repository, without git, or before the first commit.

    tracked: a file that the repository must follow: a package may be installed below a repository it does not belong
    to. Untracked files do not count, whose search may take minutes.
    """
    if tracked and _git(folder, "ls-files", "--error-unmatch", str(tracked)) is None:
        return None
    only = ["--", "."] if tracked else []  # whether the package was changed, not what lies beside it
    answer = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no", *only)
    lines = (answer or "").splitlines()
    head = next((line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")), "")
    if not re.fullmatch("[0-9a-f]{40,64}", head):
        return None
    return {"commit": head, "dirty": any(not line.startswith("#") for line in lines)}


def _git(folder: Path, *words: str) -> str | None:
    """The output of git for a folder; None if it fails. It takes no lock, so that no other process waits."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = others | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), *words]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, stdin=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout if answer.returncode == 0 else None


def masked(value: Any) -> Any:
    """A copy in which what looks secret in any text is `***`."""
    if isinstance(value, dict):
        return {masked(key): masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return mask_secrets(value) if isinstance(value, str) else value
