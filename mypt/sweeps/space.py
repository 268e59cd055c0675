"""Search space of a sweep: the `sweep.space` of a recipe as Optuna distributions, or the predefined configurations.

The names are those of the recipe, and so are the rules: each bound and each choice is read as an override of it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from mypt.errors import RecipeError, shown
from mypt.recipe import Recipe, load_recipe
from mypt.sweeps.trial import as_override

FORMS = "a list of choices, {range: [low, high]} or {log: [low, high]}, with step: N in a range of whole numbers"
# Of a random or optimized search whose recipe names no space.
DEFAULT_SPACE = {
    "training.learning_rate": {"log": [1e-4, 1e-2]},
    "training.weight_decay": {"range": [0.0, 0.2]},
    "optimizer.cooldown": {"range": [0.1, 0.5]},
}
# Not of a run, or what a sweep decides itself.
_REFUSED = {
    "training.output_dir": "each trial has a folder of its own",
    "data.train": "the sweep puts its subset there",
    "training.eval_steps": "a trial is evaluated at each tenth of its length",
    "training.save_steps": "a trial is saved where it is evaluated",
}


@dataclass(frozen=True)
class Space:
    """Distributions of a search by recipe key; `coded`: keys whose choices are mappings or lists, written as JSON."""

    distributions: dict[str, BaseDistribution]
    coded: frozenset[str] = frozenset()

    def suggest(self, trial: BaseTrial) -> dict[str, object]:
        """{section.key: value} that Optuna chooses for this trial; the distributions are recorded with it."""
        return self.decoded({key: _suggested(trial, key, kind) for key, kind in self.distributions.items()})

    def decoded(self, params: Mapping[str, object]) -> dict[str, object]:
        """Parameters of an Optuna trial as values of the recipe's keys."""
        return {key: json.loads(value) if key in self.coded else value for key, value in params.items()}


def _suggested(trial: BaseTrial, key: str, kind: BaseDistribution) -> object:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(key, kind.choices)
    suggest = trial.suggest_int if isinstance(kind, IntDistribution) else trial.suggest_float
    return suggest(key, kind.low, kind.high, step=kind.step, log=kind.log)


def parser(path: str | Path, overrides: Sequence[str]) -> Callable[[dict[str, object]], Recipe]:
    """A function that reads the recipe with further overrides {section.key: value}."""
    return lambda values: load_recipe(path, [*overrides, *(as_override(*pair) for pair in values.items())])


def read_space(section: Mapping[str, object], parse: Callable[[dict[str, object]], Recipe]) -> Space:
    """`sweep.space` of a recipe.

    Args:
        section: {section.key: a form of `FORMS`}.
        parse: The recipe with overrides {section.key: value}; raises RecipeError for what it does not allow.

    Raises:
        RecipeError: An unknown key, with the nearest name; a form, a bound or a choice that the key does not take.
    """
    distributions, coded = {}, set()
    for key, form in section.items():
        place = f"sweep.space {shown(key)}"
        _require_key(place, key)
        distribution, probes = _distribution(place, form)
        for value in probes:
            try:
                parse({key: value})
            except RecipeError as error:
                raise RecipeError(f"{place}: {error}") from None
        if isinstance(distribution, CategoricalDistribution) and any(
            isinstance(value, dict | list) for value in probes
        ):
            distribution = CategoricalDistribution([json.dumps(value) for value in probes])
            coded.add(key)
        distributions[key] = distribution
    return Space(distributions, frozenset(coded))


def _require_key(place: str, key: object) -> None:
    section, _, name = str(key).partition(".")
    if not isinstance(key, str) or not name:
        raise RecipeError(f"{place} is no key of a recipe, expected section.key, such as training.learning_rate")
    if section in ("sweep", "upload"):
        raise RecipeError(f"{place}: trials have no section {section}; leave it out")
    if key in _REFUSED:
        raise RecipeError(f"{place} cannot be searched: {_REFUSED[key]}")


def _distribution(place: str, form: object) -> tuple[BaseDistribution, list]:
    """The distribution of a form, and the values by which its key is checked."""
    if isinstance(form, list):
        if not form or any(value in form[:index] for index, value in enumerate(form)):
            raise RecipeError(f"{place} is {shown(form)}, expected different choices, one at least")
        plain = all(isinstance(value, str | int | float | bool | None) for value in form)
        return CategoricalDistribution(form if plain else ["placeholder"]), form
    kinds = {"range", "log"} & form.keys() if isinstance(form, dict) else set()
    if len(kinds) != 1 or form.keys() - kinds - {"step"}:
        raise RecipeError(f"{place} is {shown(form)}, expected {FORMS}")
    [kind] = kinds
    bounds, step = form[kind], form.get("step")
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds)) and bounds[0] < bounds[1]):
        raise RecipeError(f"{place}: {kind} is {shown(bounds)}, expected two numbers, the lower one first")
    if kind == "log" and bounds[0] <= 0:
        raise RecipeError(f"{place}: log begins at {bounds[0]:g}, expected a number above 0")
    whole = all(isinstance(bound, int) for bound in bounds)
    if step is not None and not (kind == "range" and whole and type(step) is int and step > 0):
        raise RecipeError(f"{place}: step is {shown(step)}, expected a whole number beside a range of whole numbers")
    low, high = bounds
    if whole:
        high = low + (high - low) // (step or 1) * (step or 1)
        return IntDistribution(low, high, log=kind == "log", step=step or 1), [low, high]
    return FloatDistribution(float(low), float(high), log=kind == "log"), [float(low), float(high)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Predefined:
    """One of five configurations: lengths and warm-ups are the owner's, in steps; the rest gives each name its sense.

    full_steps, full_warmup: on all data. steps, warmup: on the subset. preset: None for the recipe's own.
    rate: times the recipe's learning rate, or 1e-3 where it gives none. curriculum: of the steps, the share in which
    sequences grow from a quarter of the block size.
    """

    full_steps: int
    steps: int
    full_warmup: int
    warmup: int
    preset: str | None = None
    rate: float = 1.0
    curriculum: float | None = None

    def overrides(self, recipe: Recipe, block_size: int) -> dict[str, object]:
        """{section.key: value} over the recipe; the size of a model that the recipe gives itself is kept."""
        changes: dict[str, object] = {"training.max_steps": self.steps, "training.warmup_steps": self.warmup}
        if self.preset and not recipe.model.init_from and not recipe.model.config:
            changes["model.preset"] = self.preset
        if self.rate != 1:
            changes["training.learning_rate"] = self.rate * recipe.training.get("learning_rate", 1e-3)
        if self.curriculum:
            length = block_size // 4 if block_size % 4 == 0 else block_size // 2
            changes["data.curriculum"] = {"start_length": length, "steps": round(self.curriculum * self.steps)}
        return changes


PREDEFINED = {
    "small_fast": Predefined(50_000, 25_000, 5_000, 2_500, preset="modern-nano"),
    "medium_rigorous": Predefined(100_000, 40_000, 10_000, 4_000, preset="modern-tiny"),
    "large_quality": Predefined(200_000, 50_000, 15_000, 5_000, preset="modern-small"),
    "high_lr_experiment": Predefined(75_000, 30_000, 5_000, 2_000, rate=3.0),
    "curriculum_focus": Predefined(150_000, 45_000, 10_000, 3_000, curriculum=1 / 3),
}


# What HF's Trainer and ours both read again for each trial of `Trainer.hyperparameter_search`.
TRAINER_KEYS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "warmup_steps",
)  # fmt: skip


def hp_space(path: str | Path, overrides: Sequence[str] = ()) -> Callable[[BaseTrial], dict[str, object]]:
    """The `sweep.space` of a recipe, for `Trainer.hyperparameter_search(hp_space=..., backend="optuna")`.

    That search trains in this process, one model after the other on one dataset, and sets attributes of
    TrainingArguments. It can search those in `TRAINER_KEYS`; the data, the model, batches and the length of a run are
    made before it begins.

    Args:
        path: A recipe. overrides: `--section.key=value` over it.

    Returns:
        A function of an Optuna trial, which returns {name of TrainingArguments: value}.

    Raises:
        RecipeError: No `sweep.space`, one that `mypt sweep` would refuse, or another key in it.
    """
    recipe = load_recipe(path, [*overrides])
    if not (recipe.sweep and recipe.sweep.space):
        raise RecipeError(f"{path} has no sweep.space: name what to search, such as training.learning_rate")

    space = read_space(recipe.sweep.space, parser(path, overrides))
    for key in space.distributions:
        section, _, name = key.partition(".")
        if section != "training" or name not in TRAINER_KEYS:
            raise RecipeError(
                f"sweep.space {key}: Trainer.hyperparameter_search does not reach it; it can search training. followed "
                f"by {', '.join(TRAINER_KEYS)}. `mypt sweep` searches every key"
            )
    return lambda trial: {key.removeprefix("training."): value for key, value in space.suggest(trial).items()}
