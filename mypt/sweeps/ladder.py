"""A ladder: small runs of a recipe from scratch, each a process, whose losses a scaling law is fitted to."""

import json
import math
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict

import xxhash

from mypt.checkpoints.config import read_config_file
from mypt.errors import CheckFailed, CheckpointError, MyPTError, RecipeError, recipe_wording
from mypt.files import replace_text
from mypt.folders import only_writer, require_own
from mypt.hardware.machine import this_machine
from mypt.json_files import read_json
from mypt.planning.checks import FEW_PASSES
from mypt.planning.ladder import DESIGN, FACTOR, Law, Rung, smaller_model
from mypt.planning.parameters import count_parameters, dimensions_of
from mypt.planning.plan import Plan
from mypt.planning.scaling import effective_tokens
from mypt.planning.verdict import DataSource, duration, short
from mypt.preparation.subset import subset_dataset
from mypt.recipe import Recipe, load_recipe
from mypt.shards.opening import open_dataset
from mypt.streams.size import fingerprint
from mypt.sweeps.lengths import Lengths
from mypt.sweeps.subset import SweepData, place_eval_text, prepare_data
from mypt.sweeps.trial import run_trial, train_command
from mypt.text.hub import PREFIX
from mypt.text.sources import find_units
from mypt.training.data.sources import is_dataset
from mypt.training.data.text import tokenizer_options
from mypt.training.request import check
from mypt.training.result import read_result
from mypt.training.run_folder import recorded_identity
from mypt.training.target import Target, default_learning_rate, read_target
from mypt.yaml12 import dump_yaml

RECORD_NAME, RECIPE_NAME, RUNGS_NAME, PICTURE_NAME, CACHE_NAME = (
    "ladder.json", "rung.yaml", "rungs", "ladder.png", "prepared",
)  # fmt: skip
WINDOWS = 1_000  # of the evaluation set, at the end of each rung, where the recipe does not say how many
ALL = 2**62  # samples of a subset that is everything
PARTS_NAME, FEWEST_DOCUMENTS = "parts", 20  # of each source in a part of the data


@dataclass(frozen=True)
class Planned:
    """A run that is not trained yet. overrides: {section.key: value} over rung.yaml; folder: of the run; seconds: that
    it is expected to take, None where that is not known."""

    parameters: int
    tokens: int
    overrides: Mapping[str, object]
    folder: Path
    seconds: float | None


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


@dataclass(frozen=True)
class Ladder:
    """A ladder that is ready to run. record: without rungs; learning_rate: of the planned run."""

    out: Path
    data: SweepData
    record: LadderRecord
    rungs: list[Planned]
    learning_rate: float
    full: float  # passes of the planned run over its main source

    @property
    def recipe(self) -> Path:
        return self.out / RECIPE_NAME


@recipe_wording()
def read_ladder(
    path: str, overrides: list[str], out: Path | None, *, factor: float = FACTOR, tell: Callable[[str], object]
) -> Ladder:
    """Check a recipe, prepare its text, and work out the rungs.

    Args:
        path: A recipe. overrides: `--section.key=value`.
        out: The ladder's folder; None: the recipe's output_dir with `-ladder` at its end.
        factor: Compute of the planned run by that of the largest rung.
        tell: Prints a line.

    Raises:
        MyPTError: For a recipe or data that cannot be used as asked.
    """
    recipe = load_recipe(path, overrides)
    _require_from_scratch(recipe)
    if not 1 < factor < math.inf:
        raise MyPTError(f"--factor is {factor:g}, expected a number above 1: the planned run's compute by the rungs'")
    out = out or default_folder(recipe)
    check(replace(recipe, training=recipe.training | {"output_dir": str(out / RUNGS_NAME / "new")}), resume=False)
    require_own(out, _is_ladder, "mypt ladder")
    data = prepare_data(recipe, out.parent / CACHE_NAME, samples=ALL, seed=0, tell=lambda line: None)
    name = recipe.forgetting.target or next(iter(data.eval))
    out.mkdir(parents=True, exist_ok=True)
    content = dump_yaml(_rung_content(recipe, data, name))
    if not (out / RECIPE_NAME).exists() or (out / RECIPE_NAME).read_text(encoding="utf-8") != content:
        replace_text(out / RECIPE_NAME, content)
    machine = this_machine()
    lengths, target = Lengths(out / RECIPE_NAME, data, machine), read_target(str(out / RECIPE_NAME), [], machine)
    run, parameters = lengths.full, count_parameters(target.dimensions)["total"]
    shares = _shares(target.sources)
    train = [open_dataset(directory, recipe.data.dtype).splits["train"] for directory in data.full]
    record = LadderRecord(
        recipe=path,
        data=data_identity(recipe, name),
        target=name,
        bytes_per_token=sum(split.bytes for split in train) / sum(split.tokens for split in train),
        block_size=run.block_size,
        sources=[[share, source.tokens] for share, source in zip(shares, target.sources, strict=True)],
        parameters=parameters,
        tokens=run.steps * run.tokens_per_step,
        rungs=[],
    )
    optimizer = target.choices["optimizer"].value
    counts = count_parameters(target.dimensions)
    given = replace(target.recipe, optimizer=replace(target.recipe.optimizer, name=optimizer))
    rate = recipe.training.get("learning_rate") or default_learning_rate(given, counts["non_embedding"])
    ladder = Ladder(out, data, record, [], rate, run.passes)
    rungs = [_planned(ladder, target, lengths, optimizer, factor, *point) for point in DESIGN]
    different = {rung.folder: rung for rung in rungs}
    if len(different) < len(rungs):
        raise MyPTError(
            f"the planned run ({short(parameters)} parameters, {short(record.tokens)} tokens) is too small for "
            f"{len(rungs)} different rungs below 1/{factor:g} of its compute; lower --factor"
        )
    return replace(ladder, rungs=sorted(rungs, key=lambda rung: rung.parameters * rung.tokens))


def default_folder(recipe: Recipe) -> Path:
    if not (given := recipe.training.get("output_dir")):
        raise RecipeError("training.output_dir is missing: say where the run goes, for example runs/first")
    return Path(f"{given.rstrip('/')}-ladder")


def _is_ladder(folder: Path) -> bool:
    return (folder / RECIPE_NAME).is_file() or (folder / RECORD_NAME).is_file()


def _require_from_scratch(recipe: Recipe) -> None:
    if recipe.model.init_from or recipe.lora:
        raise RecipeError(
            "a ladder is of training from scratch, and this recipe starts from a model: mypt plan --replay predicts an "
            "adaptation"
        )
    if streamed := next((source for source in recipe.data.train if source.startswith(PREFIX)), None):
        raise RecipeError(f"a ladder reads its text several times: prepare it first: mypt prepare --source {streamed}")


def data_identity(recipe: Recipe, name: str | None = None) -> dict[str, str]:
    """{train or eval, and its place among them: hash} of what a recipe trains on and evaluates, with its tokenizer.

    Of a text that is not prepared the hash is of its files and of the tokenizer's settings.
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


def _rung_content(recipe: Recipe, data: SweepData, target: str) -> dict:
    """rung.yaml: the recipe on prepared data, with one evaluation set, and nothing that ends a run early."""
    content = recipe.to_dict()
    for name in ("sweep", "upload"):
        content.pop(name, None)
    for name in ("output_dir", "eval_delay"):
        content["training"].pop(name, None)
    content["data"] |= {"train": data.full, "eval": {target: data.eval[target]}, "max_train_examples": None}
    windows = content["forgetting"].get("eval_windows") or WINDOWS
    content["forgetting"] |= {"target": target, "guard": [], "action": "warn", "eval_windows": windows}
    content["safety"] |= {"early_stopping_patience": None}
    return content


def _shares(sources: Sequence[DataSource]) -> list[float]:
    whole = math.fsum(source.weight for source in sources)
    return [source.weight / whole for source in sources]


def _planned(
    ladder: Ladder, target: Target, lengths: Lengths, optimizer: str, factor: float, sizes: float, lengthened: float
) -> Planned:
    """The rung with these shares of the parameters and tokens of the largest one.

    The batch falls with the square root of the tokens, as does the number of steps (Zhang et al. 2024, 2410.21676:
    the critical batch grows with the tokens, not with the parameters). The learning rate rises as the width falls,
    which keeps it as far from the best one as that of the planned run is (Yang et al. 2022, 2203.03466).
    """
    record, full = ladder.record, lengths.full
    scale = factor**-0.5
    model = smaller_model(target.dimensions, record.parameters * scale * sizes)
    parameters = count_parameters(target.dimensions | model)["total"]
    wanted = record.parameters * record.tokens / factor * sizes * lengthened / parameters  # of this compute
    part = wanted / record.tokens
    sequences = max(1, round(full.tokens_per_step / full.block_size * math.sqrt(part)))
    steps = max(1, round(wanted / (sequences * full.block_size)))
    tokens = steps * sequences * full.block_size
    most = target.settings.get("micro_batch_size") or sequences
    micro = next(size for size in range(min(most, sequences), 0, -1) if sequences % size == 0)
    rate = ladder.learning_rate * target.dimensions["hidden_size"] / model["hidden_size"]
    overrides = {f"model.{name}": value for name, value in model.items()} | {
        "data.block_size": full.block_size,
        "data.tokens_per_step": None,
        "optimizer.name": optimizer,
        "training.max_steps": steps,
        "training.learning_rate": float(f"{rate:.4g}"),
        "training.per_device_train_batch_size": micro,
        "training.gradient_accumulation_steps": sequences // micro,
        "training.eval_steps": steps,
        "training.save_steps": math.ceil(steps / 4),
        "training.save_total_limit": 2,
    }
    overrides |= _scaled(target.recipe, steps / full.steps)
    if ladder.full > FEW_PASSES:
        overrides |= {"data.train": _part(ladder, tokens / record.tokens)}
    key = xxhash.xxh3_64_hexdigest(json.dumps([overrides, record.data, _settings(ladder)], sort_keys=True).encode())
    folder = ladder.out / RUNGS_NAME / f"{short(parameters)}-{short(tokens)}-{key[:8]}"
    return Planned(parameters, tokens, overrides, folder.absolute(), lengths.seconds(overrides))


def _settings(ladder: Ladder) -> str:
    return ladder.recipe.read_text(encoding="utf-8")


def _scaled(recipe: Recipe, part: float) -> dict[str, object]:
    """What the recipe gives in steps, for a run of this part of its steps."""
    found, training = {}, recipe.training
    if (training.get("warmup_steps") or 0) >= 1:
        found["training.warmup_steps"] = max(1, round(training["warmup_steps"] * part))
    if settings := training.get("lr_scheduler_kwargs"):
        counted = {name: max(1, round(value * part)) for name, value in settings.items() if name.endswith("_steps")}
        found["training.lr_scheduler_kwargs"] = settings | counted
    if curriculum := recipe.data.curriculum:
        found["data.curriculum"] = curriculum | {"steps": max(1, round(curriculum["steps"] * part))}
    return found


def _part(ladder: Ladder, share: float) -> dict[str, float]:
    """{directory: weight} with this share of the documents of every source, so that they are repeated as often."""
    found = {}
    for index, (directory, weight) in enumerate(ladder.data.full.items()):
        documents = open_dataset(directory).splits["train"].documents
        if documents * share < FEWEST_DOCUMENTS:
            return ladder.data.full
        place = ladder.out / PARTS_NAME / f"{index}-{share:.4f}"
        subset_dataset(directory, place, fraction=share, seed=0, progress=False)
        found[str(place)] = weight
    return found


def commands(ladder: Ladder) -> list[str]:
    """Every rung's command and expected time, the cheapest first."""
    lines = []
    for rung in ladder.rungs:
        done = " (finished)" if _finished(rung.folder) else ""
        lines.append(f"{rung_words(rung.parameters, rung.tokens)}, {_expected(rung.seconds)}{done}:")
        lines.append(f"  {shlex.join(train_command(ladder.recipe, rung.overrides, rung.folder))}")
    known = [rung.seconds for rung in ladder.rungs if not _finished(rung.folder)]
    if known and all(known):
        lines.append(f"about {duration(sum(known))} in all")
    return lines


def rung_words(parameters: int, tokens: int) -> str:
    return f"{short(parameters)} parameters, {short(tokens)} tokens"


def _expected(seconds: float | None) -> str:
    return f"about {duration(seconds)}" if seconds else "time not known"


def plan_lines(ladder: Ladder) -> list[str]:
    """The planned run, and how the rungs are made of it."""
    record, share = ladder.record, sum(rung.parameters * rung.tokens for rung in ladder.rungs)
    share /= record.parameters * record.tokens
    lines = [
        f"planned run: {rung_words(record.parameters, record.tokens)}, {ladder.full:.2f} passes",
        f"{len(ladder.rungs)} rungs, {share:.0%} of its compute: the same depth to width, tokens per parameter and "
        "optimizer; batch and steps fall with the square root of the tokens",
        f"learning rate {ladder.learning_rate:g} for the planned width, larger for a smaller one in proportion",
    ]
    if any("data.train" in rung.overrides for rung in ladder.rungs):
        lines.append("each rung trains on a part of the documents, so that it repeats them as often as the planned run")
    return lines


def run_ladder(
    ladder: Ladder,
    *,
    runs: Sequence[Path] = (),
    tell: Callable[[str], object],
    stop: threading.Event | None = None,
) -> LadderRecord:
    """Train the rungs that are not finished, add other finished runs, and write ladder.json.

    Args:
        runs: Folders of finished runs of the same data to use as rungs, too.
        stop: When it is set, the rung that is trained saves and ends.

    Returns:
        The record of the rungs that are finished, fewer where `stop` was set.

    Raises:
        MyPTError: A run cannot be a rung.
        CheckFailed: A rung ended otherwise than at its last step.
    """
    others = [read_rung(folder, ladder.record, require_same=True) for folder in runs]
    with only_writer(ladder.out):
        for number, planned in enumerate(ladder.rungs, 1):
            words = f"rung {number} of {len(ladder.rungs)}, {rung_words(planned.parameters, planned.tokens)}"
            if _finished(planned.folder):
                tell(f"{words}: finished before, {planned.folder}")
                continue
            tell(f"{words}: training, {_expected(planned.seconds)}")
            place_eval_text(ladder.data, planned.folder)
            ended = run_trial(ladder.recipe, planned.overrides, planned.folder, stop=stop)
            if stop and stop.is_set():
                break
            if ended.state != "completed":
                raise CheckFailed(
                    f"{words} ended with {ended.state} ({ended.reason}): {ended.message}; {planned.folder}/train.log "
                    "has the rest, and the same command continues",
                    ended.reason,
                )
            tell(f"{words}: loss {read_rung(planned.folder, ladder.record).loss:.4f} after {duration(ended.seconds)}")
        finished = [read_rung(rung.folder, ladder.record) for rung in ladder.rungs if _finished(rung.folder)]
        known = {Path(rung.folder).resolve() for rung in finished}
        finished += [rung for rung in others if Path(rung.folder).resolve() not in known]
        record = replace(ladder.record, rungs=finished)
        replace_text(ladder.out / RECORD_NAME, json.dumps(asdict(record), indent=1) + "\n")
    return record


def _finished(folder: Path) -> bool:
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
    if not _finished(folder):
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
    """Why a ladder says nothing about a planned run, None where it does: both are of the same data, by its hashes."""
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
