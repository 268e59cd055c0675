"""A ladder: small runs of a recipe from scratch, each a process, whose losses a scaling law is fitted to."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from mypt.errors import CheckFailed, MyPTError, RecipeError, recipe_wording
from mypt.folders import only_writer, require_own
from mypt.forecasting.ladder_law import DESIGN, FACTOR, smaller_model
from mypt.forecasting.ladder_record import (
    RECORD_NAME,
    LadderRecord,
    data_identity,
    default_folder,
    is_finished,
    read_rung,
)
from mypt.formatting import duration, short
from mypt.hardware.machine import this_machine
from mypt.planning.checks import FEW_PASSES
from mypt.planning.parameters import count_parameters
from mypt.planning.verdict import DataSource
from mypt.preparation.subset import subset_dataset
from mypt.recipe import Recipe, load_recipe
from mypt.shards.open_dataset import open_dataset
from mypt.sweeps.lengths import Lengths
from mypt.sweeps.sweep_data import SweepData, place_eval_text, prepare_data
from mypt.sweeps.trial import run_trial, stop_on_signal, train_command, write_recipe
from mypt.text.hub_datasets import PREFIX
from mypt.training.data.fetched import fetched
from mypt.training.recipe_settings import default_learning_rate
from mypt.training.request import check
from mypt.training.target import Target, read_target

RECIPE_NAME, RUNGS_NAME, PARTS_NAME, CACHE_NAME = "rung.yaml", "rungs", "parts", "prepared"
WINDOWS = 1_000  # of the evaluation set, at the end of each rung, where the recipe does not say how many
FEWEST_DOCUMENTS = 20  # of each source in a part of the data


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
    data = prepare_data(fetched(recipe)[0], out.parent / CACHE_NAME, samples=None, seed=0, tell=tell)
    name = recipe.forgetting.target or next(iter(data.eval))
    out.mkdir(parents=True, exist_ok=True)
    write_recipe(out / RECIPE_NAME, _rung_content(recipe, data, name))
    machine = this_machine()
    lengths, target = Lengths(out / RECIPE_NAME, data, machine), read_target(str(out / RECIPE_NAME), [], machine)
    run, counts = lengths.full, count_parameters(target.dimensions)
    train = [open_dataset(directory, recipe.data.dtype).splits["train"] for directory in data.full]
    record = LadderRecord(
        recipe=path,
        data=data_identity(recipe, name),
        target=name,
        bytes_per_token=sum(split.bytes for split in train) / sum(split.tokens for split in train),
        block_size=run.block_size,
        sources=[[share, source.tokens] for share, source in zip(_shares(target.sources), target.sources, strict=True)],
        parameters=counts["total"],
        tokens=run.steps * run.tokens_per_step,
        rungs=[],
    )
    optimizer = target.choices["optimizer"].value
    given = replace(target.recipe, optimizer=replace(target.recipe.optimizer, name=optimizer))
    rate = recipe.training.get("learning_rate") or default_learning_rate(given, counts["non_embedding"])
    ladder = Ladder(out, data, record, [], rate, run.passes)
    rungs = [_planned(ladder, target, lengths, optimizer, factor, *point) for point in DESIGN]
    different = {rung.folder: rung for rung in rungs}
    if len(different) < len(rungs):
        raise MyPTError(
            f"the planned run ({short(record.parameters)} parameters, {short(record.tokens)} tokens) is too small for "
            f"{len(rungs)} different rungs below 1/{factor:g} of its compute; lower --factor"
        )
    return replace(ladder, rungs=sorted(rungs, key=lambda rung: rung.parameters * rung.tokens))


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

    As in OLMo's ladder (Bhagia et al. 2024, 2412.04403), by rules of Porian et al. 2024 (2406.19146), the batch falls
    with the power 2/3 of the tokens (there of the parameters, at 20 tokens each), and the learning rate rises with the
    inverse cube root of the parameters. So both are as far from the best ones as those of the planned run are.
    """
    record, full = ladder.record, lengths.full
    scale = factor**-0.5
    model = smaller_model(target.dimensions, record.parameters * scale * sizes)
    parameters = count_parameters(target.dimensions | model)["total"]
    wanted = record.parameters * record.tokens / factor * sizes * lengthened / parameters  # of this compute
    part = wanted / record.tokens
    sequences = max(1, round(full.tokens_per_step / full.block_size * part ** (2 / 3)))
    steps = max(1, round(wanted / (sequences * full.block_size)))
    tokens = steps * sequences * full.block_size
    most = target.settings.get("micro_batch_size") or sequences
    micro = next(size for size in range(min(most, sequences), 0, -1) if sequences % size == 0)
    rate = ladder.learning_rate * (record.parameters / parameters) ** (1 / 3)
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
    """The recipe's values in steps, scaled to a run of this part of its steps."""
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
        subset_dataset(directory, place, fraction=share, seed=0, val="proportional", progress=False)
        found[str(place)] = weight
    return found


def commands(ladder: Ladder) -> list[str]:
    """Every rung's command and expected time, the cheapest first."""
    lines = []
    for rung in ladder.rungs:
        done = " (finished)" if is_finished(rung.folder) else ""
        lines.append(f"{rung_words(rung.parameters, rung.tokens)}, {_expected(rung.seconds)}{done}:")
        lines.append(f"  {shlex.join(train_command(ladder.recipe, rung.overrides, rung.folder))}")
    known = [rung.seconds for rung in ladder.rungs if not is_finished(rung.folder)]
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
        "optimizer; batch by the tokens to the power of 2/3",
        f"learning rate {ladder.learning_rate:g} in the planned run, times the cube root of how much smaller a rung is",
    ]
    if any("data.train" in rung.overrides for rung in ladder.rungs):
        lines.append("each rung trains on a part of the documents, so that it repeats them as often as the planned run")
    return lines


def run_ladder(ladder: Ladder, *, runs: Sequence[Path] = (), tell: Callable[[str], object]) -> LadderRecord:
    """Train the rungs that are not finished, and add other finished runs.

    Args:
        runs: Folders of finished runs of the same data to use as rungs, too.

    Returns:
        The record of all rungs.

    Raises:
        MyPTError: A run cannot be a rung.
        CheckFailed: A rung ended otherwise than at its last step.
        Interrupted: After SIGINT, SIGTERM or SIGHUP, when the rung under way is saved.
    """
    others = [read_rung(folder, ladder.record, require_same=True) for folder in runs]
    with only_writer(ladder.out), stop_on_signal("finished rungs are kept") as stop:
        for number, planned in enumerate(ladder.rungs, 1):
            words = f"rung {number} of {len(ladder.rungs)}, {rung_words(planned.parameters, planned.tokens)}"
            if is_finished(planned.folder):
                tell(f"{words}: finished before, {planned.folder}")
                continue
            tell(f"{words}: training, {_expected(planned.seconds)}")
            place_eval_text(ladder.data, planned.folder)
            ended = run_trial(ladder.recipe, planned.overrides, planned.folder, stop=stop)
            if stop.is_set():
                break
            if ended.state != "completed":
                raise CheckFailed(
                    f"{words} ended with {ended.state} ({ended.reason}): {ended.message}; {planned.folder}/train.log "
                    "has the rest, and the same command continues",
                    ended.reason,
                )
            tell(f"{words}: loss {read_rung(planned.folder, ladder.record).loss:.4f} after {duration(ended.seconds)}")
    finished = [read_rung(rung.folder, ladder.record) for rung in ladder.rungs]
    known = {Path(rung.folder).resolve() for rung in finished}
    finished += [rung for rung in others if Path(rung.folder).resolve() not in known]
    return replace(ladder.record, rungs=finished)
