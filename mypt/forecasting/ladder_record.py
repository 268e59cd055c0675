"""ladder.json: the finished rungs of a ladder, what data they are of, and whether a plan is of the same."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import xxhash

from mypt.checkpoints.model_config import read_config_file
from mypt.errors import CheckpointError
from mypt.forecasting.ladder_law import Law, Rung
from mypt.json_files import read_json
from mypt.planning.parameters import count_parameters, dimensions_of
from mypt.planning.plan import Plan
from mypt.planning.scaling import effective_tokens
from mypt.recipe import Recipe
from mypt.shards.open_dataset import open_dataset
from mypt.streams.size import fingerprint
from mypt.text.sources import find_units
from mypt.training.data.run_data import is_dataset
from mypt.training.data.text import tokenizer_options
from mypt.training.request import output_dir
from mypt.training.result import read_result
from mypt.training.run_folder import recorded_identity

RECORD_NAME = "ladder.json"


@dataclass(frozen=True)
class RungRecord:
    """A rung in ladder.json: what was trained, and what it measured at its end.

    unique: tokens of the data that it was trained on. seconds: wall time of training, as far as it is recorded.
    """

    folder: str
    parameters: int
    tokens: int
    unique: int
    effective_tokens: float
    loss: float
    error: float
    seconds: float

    @property
    def rung(self) -> Rung:
        return Rung(self.parameters, self.tokens, self.effective_tokens, self.loss, self.error)


@dataclass(frozen=True)
class LadderRecord:
    """ladder.json.

    Attributes:
        recipe: As it was named.
        data: Hashes of what was trained and evaluated on; a law is of no other data.
        target: The evaluation set.
        bytes_per_token: Of the training text.
        block_size: Tokens of a window.
        sources: [[share of the samples, tokens], ...] of the training data.
        parameters, tokens: Of the planned run.
        rungs: Those that are finished.
    """

    recipe: str
    data: dict[str, str]
    target: str
    bytes_per_token: float
    block_size: int
    sources: list[list[float]]
    parameters: int
    tokens: int
    rungs: list[RungRecord]

    def effective(self, tokens: float) -> float:
        """Viewed tokens of all sources in fresh ones."""
        return math.fsum(effective_tokens(tokens * share, size) for share, size in self.sources)

    def law(self) -> Law:
        return Law([one.rung for one in self.rungs], self.bytes_per_token)


def default_folder(recipe: Recipe) -> Path:
    """Next to the run's folder. Raises RecipeError if the recipe names none."""
    return Path(f"{output_dir(recipe)}-ladder")


def data_identity(recipe: Recipe, name: str | None = None) -> dict[str, str]:
    """{train or eval, and its place among them: hash} of what a recipe trains on and evaluates, with its tokenizer.

    For a text that is not prepared, the hash is of its files and of the tokenizer's settings.
    """
    name = name or recipe.forgetting.target or next(iter(recipe.data.eval), None)
    whole = math.fsum(recipe.data.train.values())
    found = {
        f"train {index}, {weight / whole:.4f} of the samples": _content(source, "train", recipe)
        for index, (source, weight) in enumerate(recipe.data.train.items())
    }
    return found | ({f"eval {name}": _content(recipe.data.eval[name], "val", recipe)} if recipe.data.eval else {})


def _content(source: str, split: str, recipe: Recipe) -> str:
    if is_dataset(source):
        manifest = open_dataset(source, recipe.data.dtype)
        held = manifest.fingerprint(split) if split in manifest.splits else ""
        return f"{held} {manifest.tokenizer_hash}"
    section = recipe.data
    settings = (tokenizer_options(recipe), section.val_fraction, section.val_split, section.max_train_examples)
    units = find_units([source], text_column=section.text_column)
    return xxhash.xxh3_128_hexdigest(f"{fingerprint(units)} {settings}".encode())


def is_finished(folder: Path) -> bool:
    result = read_result(folder)
    return result is not None and result.state == "completed" and result.step == result.max_steps


class _Seen(TypedDict):
    tokens: int


class _Source(TypedDict):
    tokens: int
    fingerprint: str


class _Coverage(TypedDict):
    seen: list[_Seen]
    sources: list[_Source]


class _Reading(TypedDict):
    loss: float
    standard_error: float | None


class _Entry(TypedDict):
    step: int
    sets: dict[str, _Reading]


class _History(TypedDict):
    history: list[_Entry]


def read_rung(folder: Path, record: LadderRecord, *, require_same: bool = False) -> RungRecord:
    """A finished run as a rung. require_same: refuse one of other data than the ladder's. Raises CheckpointError."""
    result = read_result(folder)
    if not is_finished(folder):
        state = f"it {result.state} at step {result.step} of {result.max_steps}" if result else "no run has ended there"
        raise CheckpointError(
            f"{folder} is no finished run: {state}; finish it with mypt train --resume, or leave it out"
        )
    identity = recorded_identity(folder)
    seen = read_json(folder / "coverage.json", _Coverage, CheckpointError)
    history = read_json(folder / "forgetting.json", _History, CheckpointError)["history"]
    if require_same:
        _require_same(folder, identity, seen, record)
    last = history[-1]
    if last["step"] != result.step or record.target not in last["sets"]:
        raise CheckpointError(f"{folder} did not measure the evaluation set {record.target} at its last step")
    viewed = [source["tokens"] for source in seen["seen"]]
    unique = [source["tokens"] for source in seen["sources"]]
    reading = last["sets"][record.target]
    return RungRecord(
        folder=str(folder),
        parameters=count_parameters(dimensions_of(read_config_file(folder, "expected a run folder")))["total"],
        tokens=sum(viewed),
        unique=sum(unique),
        effective_tokens=math.fsum(map(effective_tokens, viewed, unique)),
        loss=reading["loss"],
        error=reading["standard_error"] or 0.0,
        seconds=result.seconds,
    )


def _require_same(folder: Path, identity: dict, seen: _Coverage, record: LadderRecord) -> None:
    """Raise CheckpointError unless a run trained from scratch on the ladder's data, with its windows."""
    known = {part for words in record.data.values() for part in words.split()}
    if identity.get("init_from") or identity.get("lora"):
        raise CheckpointError(f"{folder} started from another model: a rung is trained from scratch; leave it out")
    if other := [s["fingerprint"] for s in seen["sources"] if s["fingerprint"] not in known]:
        raise CheckpointError(f"{folder} was trained on other data than the ladder's ({other[0]}); leave it out")
    if identity.get("block_size") != record.block_size:
        raise CheckpointError(
            f"{folder} has windows of {identity.get('block_size')} tokens, the ladder of {record.block_size}; leave it "
            "out"
        )


def read_record(folder: Path) -> LadderRecord | None:
    """The ladder in a folder; None if there is none. Raises CheckpointError for a damaged file."""
    path = folder / RECORD_NAME
    return read_json(path, LadderRecord, CheckpointError, "run mypt ladder again") if path.is_file() else None


def find_difference(record: LadderRecord, recipe: Recipe | None, plan: Plan) -> str | None:
    """Why a ladder does not apply to a planned run, None where it does: both are of the same data, by its hashes."""
    if recipe is None:
        return "only a recipe names the data that is compared"
    if recipe.model.init_from or recipe.lora:
        return "it is of training from scratch"
    if not plan.parameters or not plan.training.steps:
        return "its size or length is not known"
    if plan.training.block_size != record.block_size:
        return f"it has windows of {record.block_size:,} tokens, the run of {plan.training.block_size:,}"
    found = data_identity(recipe, record.target if record.target in recipe.data.eval else None)
    there = {key: value for key, value in record.data.items() if recipe.data.eval or not key.startswith("eval")}
    key = next((key for key in {**there, **found} if there.get(key) != found.get(key)), None)
    return f"it is of other data or another tokenizer ({key})" if key else None
