"""Run the probes of `mypt plan --replay`: complete short runs of a recipe at several replay ratios."""

from __future__ import annotations

import contextlib
import gc
import math
import shlex
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.errors import Interrupted, MyPTError, RecipeError
from mypt.evaluation.forgetting import Policy, assess, describe_sets, guarded_sets, require_sets
from mypt.forecasting.replay_law import Advice, Interpolated, Probe, advise
from mypt.planning.plan import PlannedRun
from mypt.recipe import Recipe, load_recipe
from mypt.shards.open_dataset import open_dataset
from mypt.terminal import progress_bar, say
from mypt.training.data.fetched import fetched
from mypt.training.data.run_data import default_sets, is_dataset
from mypt.training.request import check
from mypt.training.target import is_recipe
from mypt.yaml12 import flow_yaml

if TYPE_CHECKING:
    from mypt.evaluation.evaluator import Readings
    from mypt.streams.eval_windows import EvalWindows

RATIOS = (0.0, 0.05, 0.25)
FEWEST, MOST, SHARE = 40, 400, 0.1  # steps of the longest probe, and their share of the run between these bounds
_LENGTHS = (0.25, 0.5, 1.0)  # of the longest probe, for each ratio
_SMALLEST = 0.001  # a mixture has 1,000 slots
_LR_STEPS = ("num_decay_steps", "num_stable_steps", "num_warmup_steps")  # of lr_scheduler_kwargs


@dataclass(frozen=True)
class Probes:
    """The probes of a run.

    Attributes:
        recipe: Of the run that is planned, with its batch.
        steps: Optimizer steps of that run.
        longest: Steps of the longest probe of each ratio.
        ratios: Shares of the samples that are replayed, ascending.
        now: The share that the recipe replays itself.
        domain, replay: {source: share}, each of 1: what is learned, and what is replayed.
        policy: The target, the guarded sets and the tolerance.
    """

    recipe: Recipe
    steps: int
    longest: int
    ratios: tuple[float, ...]
    now: float
    domain: dict[str, float]
    replay: dict[str, float]
    policy: Policy

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(sorted({math.ceil(self.longest * share) for share in _LENGTHS}))

    def sources(self, ratio: float) -> dict[str, float]:
        """`data.train` for this ratio."""
        mixed = {source: share * (1 - ratio) for source, share in self.domain.items()}
        mixed |= {source: share * ratio for source, share in self.replay.items()}
        return {source: round(weight, 6) for source, weight in mixed.items() if weight}

    def option(self, ratio: float) -> str:
        """The option of `mypt train` for this ratio, quoted for a shell."""
        return f"--data.train={shlex.quote(flow_yaml(self.sources(ratio)))}"

    def run(self) -> Advice:
        """Run all probes in a temporary folder, and fit them. Raises MyPTError, and Interrupted after a signal."""
        found, start, interpolated = [], None, None
        lengths = self.lengths
        total = len(self.ratios) * sum(lengths)
        with (
            tempfile.TemporaryDirectory(prefix="mypt-probes-") as folder,
            progress_bar(total=total, unit="step", desc="probes") as bar,
        ):
            for ratio in self.ratios:
                for length in lengths:
                    place = Path(folder, f"{len(found)}")
                    kept = place / "model" if ratio == 0 and length == lengths[-1] else None
                    start, entry, sets = _run(self, ratio, length, place, start, kept, bar)
                    found.append(Probe(ratio, length, entry["sets"]))
                    number = f"probe {len(found)} of {len(self.ratios) * len(lengths)}"
                    say(f"{number}: {ratio:.1%} replayed, {length} steps: {describe_sets(entry['sets'])}", error=True)
                    if kept:
                        interpolated = self._interpolate(place, length, sets)
        policy = self.policy
        about = {"steps": self.steps, "ratio": self.now, "interpolated": interpolated}
        advice = advise(found, policy.target, policy.guard, policy.tolerance, **about)
        return replace(advice, option=None if advice.ratio is None else self.option(advice.ratio))

    def _interpolate(self, folder: Path, steps: int, sets: dict[str, EvalWindows]) -> Interpolated | str:
        """The probe without replay interpolated towards the start; the reason where that is not possible."""
        from mypt.evaluation.evaluator import Evaluator
        from mypt.evaluation.interpolate import Interpolation
        from mypt.storage.upload_files import model_files

        (folder / "interpolated").mkdir()
        try:
            adapted = folder / "model"
            line = Interpolation(self.recipe.model.init_from, adapted, folder / "interpolated", model_files(adapted))
            size = self.recipe.training.get("per_device_eval_batch_size") or 8
            alpha, curve = line.keep(Evaluator(sets, size), self.policy)
        except MyPTError as error:
            return str(error)
        at = {point["alpha"]: point["sets"] for point in curve}
        return Interpolated(steps, alpha, at[alpha][self.policy.target]["loss"], [*curve])


def plan_probes(
    target: str,
    overrides: list[str],
    run: PlannedRun,
    *,
    windows: int | str | None,
    ratios: tuple[float, ...] = RATIOS,
    probe_steps: int | None = None,
) -> Probes:
    """The probes of a recipe, with the batch and the evaluation windows of the planned run.

    Args:
        target, overrides: The recipe, as `load_recipe` takes it.
        run: It as it is planned.
        windows: Of each set in an evaluation; None where they are not planned.
        ratios: Replayed shares of the samples to try; one of them more than 0.
        probe_steps: Of the longest probe of each ratio; None: a tenth of the run, from 40 to 400.

    Raises:
        RecipeError: The recipe adapts no model, guards no set, or has nothing to replay; ratios or steps out of range.
        MyPTError: As `mypt.training.request.check`.
    """
    if not target or not is_recipe(target):
        raise RecipeError(f"--replay runs probes of a recipe, and {target or 'no target'} is none; name a YAML file")
    recipe, _ = fetched(load_recipe(target, overrides))
    if not recipe.model.init_from:
        raise RecipeError("--replay is for the adaptation of a model: name it in model.init_from")
    steps = run.steps
    if not steps:
        raise RecipeError("--replay needs the length of the run: give training.max_steps")
    ratios = tuple(sorted(set(ratios)))
    if len(ratios) < 2 or not all(ratio == 0 or _SMALLEST <= ratio <= 0.9 for ratio in ratios):
        raise RecipeError(f"--replay-ratios {shown_ratios(ratios)}: expected two or more, of 0 or 0.1% to 90%")
    longest = probe_steps or max(FEWEST, min(MOST, math.ceil(steps * SHARE)))
    longest = min(longest, steps)
    if longest < 4:
        raise RecipeError(f"the longest probe has {longest} steps, expected 4 or more: give --probe-steps")
    now, domain, replay, policy = _split(recipe)
    training = recipe.training | {
        "per_device_train_batch_size": run.batch_size,
        "gradient_accumulation_steps": run.accumulation * run.processes,
    }
    data = replace(recipe.data, block_size=run.block_size, tokens_per_step=None)
    section = replace(recipe.forgetting, eval_windows=windows)
    recipe = replace(recipe, training=training, data=data, forgetting=section)
    probes = Probes(recipe, steps, longest, ratios, now, domain, replay, policy)
    with tempfile.TemporaryDirectory() as folder:
        check(_recipe(probes, max(ratios), longest, Path(folder, "probe")), False)
    return probes


def shown_ratios(ratios: tuple[float, ...]) -> str:
    return ", ".join(f"{100 * ratio:g}%" for ratio in ratios)


def _split(recipe: Recipe) -> tuple[float, dict[str, float], dict[str, float], Policy]:
    """The share that is replayed now, what is learned and what is replayed (shares of 1), and the guarded sets."""
    section, train = recipe.forgetting, recipe.data.train
    if not train:
        raise RecipeError("data.train is missing: name the directory to adapt to")
    if texts := [source for source in train if not is_dataset(source)]:
        raise RecipeError(f"--replay mixes prepared directories, and {texts[0]} is text: mypt prepare makes one of it")
    sets = recipe.data.eval or default_sets({source: open_dataset(source, recipe.data.dtype) for source in train})
    if not sets:
        raise RecipeError("data.eval is missing: name the set to learn and the sets to keep")
    target = section.target or next(iter(sets))
    guard = guarded_sets(sets, target, section.guard)
    require_sets(sets, target, guard)
    if not guard:
        raise RecipeError("forgetting.guard names no set: --replay needs one to keep")
    given = section.guard if isinstance(section.guard, dict) else {}
    replayed = {name: given.get(name) or sets[name] for name in guard}
    for name, source in replayed.items():
        split = open_dataset(source, recipe.data.dtype).splits.get("train") if is_dataset(source) else None
        if not (split and split.tokens):
            raise RecipeError(
                f"the guarded set {name} has no training text to replay in {source}; name a directory of it: "
                f"--forgetting.guard='{{{name}: DIRECTORY}}'"
            )
    sources = set(map(_place, replayed.values()))
    domain = {source: weight for source, weight in train.items() if _place(source) not in sources}
    if not domain:
        raise RecipeError("data.train holds only what the guard would replay: name the directory to adapt to")
    there = {source: weight for source, weight in train.items() if source not in domain}
    replay = there if len(there) == len(sources) else dict.fromkeys(replayed.values(), 1.0)
    now = math.fsum(there.values()) / math.fsum(train.values())
    return now, _shares(domain), _shares(replay), Policy(target, guard, section.tolerance)


def _place(source: str) -> Path:
    return Path(source).resolve()


def _shares(weights: dict[str, float]) -> dict[str, float]:
    whole = math.fsum(weights.values())
    return {source: weight / whole for source, weight in weights.items()}


def _recipe(probes: Probes, ratio: float, steps: int, folder: Path) -> Recipe:
    """The recipe of one probe: the run's, shorter, with everything that counts steps shortened as much."""
    recipe, part = probes.recipe, steps / probes.steps
    training = {
        name: value for name, value in recipe.training.items() if name not in ("num_train_epochs", "eval_delay")
    }
    warmup = training.get("warmup_steps")
    if warmup is not None and warmup >= 1:
        training["warmup_steps"] = math.ceil(warmup * part)
    elif warmup is None and probes.steps > 20_000:  # where the default stops growing with the run
        training["warmup_steps"] = math.ceil(2_000 * part)
    if settings := training.get("lr_scheduler_kwargs"):
        scaled = {name: math.ceil(value * part) for name, value in settings.items() if name in _LR_STEPS}
        training["lr_scheduler_kwargs"] = settings | scaled
    training |= {
        "output_dir": str(folder),
        "max_steps": steps,
        "eval_strategy": "no",
        "logging_steps": steps,
        "report_to": "none",
    }
    curriculum = recipe.data.curriculum
    if curriculum:
        curriculum = curriculum | {"steps": math.ceil(curriculum["steps"] * part)}
    return replace(
        recipe,
        data=replace(recipe.data, train=probes.sources(ratio), curriculum=curriculum),
        coverage=replace(recipe.coverage, target=None, confirm=False, strict=False),
        forgetting=replace(recipe.forgetting, action="warn"),
        safety=replace(recipe.safety, early_stopping_patience=None),
        upload=None,
        training=training,
    )


def _run(
    probes: Probes, ratio: float, steps: int, folder: Path, start: Readings | None, kept: Path | None, bar
) -> tuple[Readings, dict, dict[str, EvalWindows]]:
    """Train one probe. Returns the readings at step 0, the entry of `assess` at its end and the evaluation sets.

    start: The readings at step 0, if an earlier probe has measured them. kept: Where the model is saved.
    """
    import torch

    from mypt.hardware.out_of_memory import explain_out_of_memory_at_start, is_out_of_memory
    from mypt.training.build import build_trainer
    from mypt.training.callbacks.ends import MeasureEnds

    ends = MeasureEnds(start, bar)
    folder.mkdir()
    try:
        with open(folder / "log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            with explain_out_of_memory_at_start():
                trainer = build_trainer(_recipe(probes, ratio, steps, folder / "run"), assume_yes=True)
            ends.attach(trainer)
            trainer.train()
            if kept and ends.end:
                trainer.save_model(str(kept))
        trainer.give_back()
    except MyPTError as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise MyPTError(
                f"the probe of {ratio:.1%} replay does not fit in memory; lower training.per_device_train_batch_size "
                "and raise training.gradient_accumulation_steps as much (`mypt estimate` has the figures)"
            ) from error
        raise
    if trainer.signals.stopping:
        number = trainer.signals.number
        raise Interrupted(f"stopped by {signal.Signals(number).name} in a probe; nothing is kept", number)
    sets = trainer.forgetting.eval_sets
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    baseline = {name: reading.losses for name, reading in ends.start.items()}
    return ends.start, assess(steps, ends.end, baseline, probes.policy), sets
