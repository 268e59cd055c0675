"""List the files of checkpoints and datasets, which object stores take as they are, and the page about a run."""

import re
from html import escape, unescape
from pathlib import Path
from typing import NotRequired, TypedDict

from mypt.checkpoints.complete import SAVING_NAME, checkpoints, last_complete_checkpoint, what_is_missing
from mypt.checkpoints.environment import ENVIRONMENT_NAME
from mypt.checkpoints.model_config import is_model
from mypt.checkpoints.state import STATE_NAME, read_state
from mypt.errors import CheckpointError, DataError, mask_secrets
from mypt.files import xxh3_128
from mypt.json_files import find_json
from mypt.recipe import RESOLVED_NAME
from mypt.remote.clients import secrets
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.shards.scan import shard_problem
from mypt.storage.store import Outgoing
from mypt.storage.upload_files import NAMES, TEXT, require_inside, require_no_token

REPORT_NAME = "report.html"  # of a run
GENERATOR = '<meta name="generator" content="mypt report">'  # in its first lines
RUN = "run"  # in a checkpoint in a store: the files of its run that a resume compares
_RUN_STATE = (ENVIRONMENT_NAME, RESOLVED_NAME, "forgetting_baseline.safetensors")
# The parts of a page: a whole style or script, a tag, and the text between two tags.
_PIECES = re.compile(r"<style\b.*?</style>|<script\b.*?</script>|<[^>]*>|<[^>]*$|[^<]+", re.DOTALL)
_PICKLE = "training_args.bin"  # of stock Trainers; nothing reads it
_TOKENIZER = re.compile(r".*token.*\.json|vocab\.(json|txt)|merges\.txt|chat_template\.jinja")


class _Environment(TypedDict):
    run: NotRequired[str]


def is_dataset(folder: Path) -> bool:
    return (folder / METADATA_NAME).is_file()


def is_checkpoint(folder: Path) -> bool:
    return (folder / STATE_NAME).is_file()


def recorded_run(folder: Path) -> str | None:
    """The hash of the run that a folder is of, by its environment.json; None without one."""
    found = find_json(folder / ENVIRONMENT_NAME, _Environment, CheckpointError)
    return found.get("run") if found else None


def parts_of(run: Path, with_checkpoints: bool = True) -> dict[str, Path]:
    """The folders of a run that are sent, by their names below its place: the run's own, named "", comes last.

    They are the newest complete checkpoint, the best one if that is there, and the published models.
    """
    last, _ = last_complete_checkpoint(run)
    if last is None and not checkpoints(run):
        return {"": run}
    found = {}
    if last and with_checkpoints:
        best = best_of(last)
        if best and best != last.name and (run / best).is_dir() and what_is_missing(run / best) is None:
            found[best] = run / best
        found[last.name] = last
    published = {"best": run / "best", "": run}
    found |= {name: folder for name, folder in published.items() if is_model(folder)}
    return found or {"": run}


def best_of(checkpoint: Path) -> str | None:
    """The name of the best checkpoint up to this one, by its state."""
    best = read_state(checkpoint).trainer.get("best_model_checkpoint")
    return Path(best).name if best else None


def best_of_run(run: Path) -> str | None:
    """The name of the best checkpoint of a run, by the newest complete one."""
    last, _ = last_complete_checkpoint(run)
    return best_of(last) if last else None


def checkpoint_files(checkpoint: Path) -> list[Outgoing]:
    """Every file of a complete checkpoint, and below `run/` those of its run that a resume compares.

    Raises CheckpointError if it is not complete, a file is a link that leads out of it, or a text holds a secret.
    """
    if fault := what_is_missing(checkpoint):
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint: {fault}; name another one")
    paths = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    paths = {name: path for name, path in paths.items() if name not in (SAVING_NAME, _PICKLE)}
    require_inside(checkpoint, paths.values())
    for name in _RUN_STATE:
        if (checkpoint.parent / name).is_file():
            paths[f"{RUN}/{name}"] = checkpoint.parent / name
    return _outgoing(paths)


def dataset_files(directory: Path) -> list[Outgoing]:
    """The metadata of a dataset directory, its tokenizer, and the shards that it lists.

    Raises DataError for a dataset of another program, and for shards that differ from the metadata.
    """
    manifest = read_manifest(directory)
    paths = {METADATA_NAME: directory / METADATA_NAME}
    paths |= {path.name: path for path in directory.iterdir() if path.name in NAMES and _TOKENIZER.fullmatch(path.name)}
    require_inside(directory, paths.values())
    for shard in manifest.shards:
        path = directory / shard.file
        problem = shard_problem(directory, shard, manifest)
        if problem or xxh3_128(path) != shard.xxh3_128:
            raise DataError(f"{path} {problem or 'was changed: its checksum differs'}; run `mypt verify {directory}`")
        paths[shard.file] = path
    return _outgoing(paths)


def report_page(run: Path) -> Outgoing | None:
    """The page about a run, with its secrets masked anew: those of an older version, and those of the environment.

    None where there is none, or report.html is somebody's own. Raises CheckpointError for a link that leads out.
    """
    path = run / REPORT_NAME
    if not path.is_file():
        return None
    require_inside(run, [path])
    text = path.read_text(encoding="utf-8", errors="replace")
    if GENERATOR not in text[:500]:
        return None
    text = "".join(piece if piece.startswith("<") else _masked(piece) for piece in _PIECES.findall(text))
    for secret in secrets():
        text = text.replace(escape(secret), "***").replace(secret, "***")
    content = text.encode()
    require_no_token(path, content)
    return Outgoing(REPORT_NAME, content, len(content))


def _masked(text: str) -> str:
    """A text of HTML without what looks secret; one that has no secret as it is."""
    given = unescape(text)
    masked = mask_secrets(given)
    return text if masked == given else escape(masked)


def _outgoing(paths: dict[str, Path]) -> list[Outgoing]:
    for path in paths.values():
        if path.suffix in TEXT:
            require_no_token(path, path.read_bytes())
    return [Outgoing(name, path, path.stat().st_size) for name, path in sorted(paths.items())]
