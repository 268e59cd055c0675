"""TARGET of `mypt plan` and `mypt estimate`: a recipe, a preset or a folder with a config.json, read without torch."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mypt.checkpoints.meta import HubError, measured_dimensions, read_config
from mypt.checkpoints.model_config import cached_model
from mypt.errors import MyPTError, recipe_wording
from mypt.files import free_for, what_to_do_with_gguf
from mypt.hardware.choices import (
    expected_batch,
    expected_choices,
)
from mypt.hardware.machine import Machine, this_machine
from mypt.planning.coverage import whole
from mypt.planning.disk import KEPT, Saving
from mypt.planning.fit import OPTIONS, RECIPE_FLAGS
from mypt.planning.optimizer import Choice, choose_optimizer
from mypt.planning.parameters import count_parameters, is_measured, with_positions
from mypt.planning.plan import PlannedRun
from mypt.planning.step import MICRO_BATCH, VOCABULARY_MULTIPLE
from mypt.planning.verdict import DataSource
from mypt.recipe import Recipe, load_recipe, model_fault, too_few_rows
from mypt.training.recipe_settings import (
    ADAPTERS,
    NOT_MYPT,
    choose_run_optimizer,
    evaluation_settings,
    kept_as,
    memory_notes,
    memory_settings,
)

DEFAULT_BLOCK = 1024  # tokens per sequence where nothing names a context


# Fields of `Target` that are those of `PlannedRun`.
_OF_RUN = ("sources", "text", "evaluation", "evaluation_batch", "eval_sets", "saving", "init_from", "smaller",
           "choices", "flags")  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The settings of a run that a target gives; those that it leaves open are None or absent.

    recipe: The recipe, with the given sizes. dimensions: MyPTConfig fields. settings: fields of
    `mypt.planning.step.Step`. sources: the training data. text: bytes of it that are not prepared yet. steps:
    max_steps, num_train_epochs and coverage_target of a recipe. evaluation: arguments of `plan_evaluation`, and
    evaluation_batch: windows in a forward pass; None without evaluation sets. eval_sets: tokens of each, None where
    they are not known. shared_text: looks for sets whose text is in the training data, and gives their shares in words.
    saving: of a recipe's run folder. init_from: the model that the run starts from. smaller: dimensions of the presets
    of the same family with fewer parameters, with what else the target changes. choices: what training will choose on
    this machine, each with the reason. flags: how advice writes changes, as `mypt.planning.fit.knobs` takes them.
    notes: what had to be assumed or left out.
    """

    recipe: Recipe | None = None
    dimensions: dict | None = None
    settings: dict = field(default_factory=dict)
    sources: list[DataSource] | None = None
    text: int = 0
    steps: dict = field(default_factory=dict)
    evaluation: dict | None = None
    eval_sets: dict[str, int | None] = field(default_factory=dict)
    shared_text: Callable[[], dict[str, str]] = dict
    saving: Saving | None = None
    init_from: str | None = None
    smaller: dict[str, dict] = field(default_factory=dict)
    evaluation_batch: int | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=lambda: OPTIONS)
    notes: list[str] = field(default_factory=list)


def planned_run(target: Target, machine: Machine, *, given: dict | None = None, processes: int = 1) -> PlannedRun:
    """The run of a target on a machine, but its number of steps and its speed; given: fields of `Step` instead of its.

    Sizes that nothing gives are assumed, with a note.
    """
    settings = target.settings | (given or {}) | {"device": machine.device}
    notes, defaults = [*target.notes], {"micro_batch_size": MICRO_BATCH, "block_size": DEFAULT_BLOCK}
    options = {"micro_batch_size": "--batch-size", "block_size": "--block-size"}
    notes += [f"no {options[name]} given: {size} assumed" for name, size in defaults.items() if name not in settings]
    sizes = defaults | {"accumulation": 1}
    sizes = {name: settings.pop(name, size) for name, size in sizes.items()}
    dimensions, block_size = target.dimensions, sizes["block_size"]
    if dimensions:
        longer = with_positions(dimensions, block_size)
        if longer is not dimensions:
            limit = dimensions["max_position_embeddings"]
            notes.append(f"the model has {limit:,} positions, fewer than the block size: planned with {block_size:,}")
        dimensions = longer
    return PlannedRun(
        batch_size=sizes["micro_batch_size"],
        block_size=block_size,
        accumulation=sizes["accumulation"],
        processes=processes,
        settings=settings,
        dimensions=dimensions,
        available=machine.memory,
        notes=notes,
        **{name: getattr(target, name) for name in _OF_RUN},
    )


def is_recipe(target: str) -> bool:
    """Whether it names a recipe or a run folder, not a preset or another model."""
    return target.endswith((".yaml", ".yml")) or Path(target, "recipe.yaml").is_file()


def read_target(
    target: str,
    overrides: list[str],
    machine: Machine,
    *,
    fields: dict | None = None,
    given: dict | None = None,
    processes: int = 1,
    elsewhere: bool = False,
) -> Target:
    """overrides: `--section.key=value` for a recipe. fields (of a config), given (of `Step`): instead of the target's.
    elsewhere: `machine` is not the one whose choices a run folder's recipe holds.

    Raises MyPTError for a target that is nothing of these, with the nearest name.
    """
    if overrides and not is_recipe(target):
        raise MyPTError(f"unrecognized arguments: {' '.join(overrides)}; only a recipe has keys, see --help")
    given = {name: value for name, value in (given or {}).items() if value is not None}
    dtype = given.get("compute_dtype")
    if dtype:
        machine = replace(machine, dtype=dtype, why="as the option says")
    if is_recipe(target):
        from mypt.training.data.fetched import fetched

        keys = [name for name in ("block_size", "micro_batch_size", "accumulation") if name in given]
        overrides = [*overrides, *(RECIPE_FLAGS[name].format(given[name]) for name in keys)]
        recipe, _ = fetched(load_recipe(target, overrides))
        if elsewhere and Path(target).is_dir():
            recipe = _unchosen(recipe, given={override.partition("=")[0] for override in overrides})
        return _from_recipe(recipe, machine, fields or {}, processes, given)
    dimensions = _dimensions(target, fields or {})
    settings = {"compute_dtype": machine.dtype}
    settings["block_size"] = given.get("block_size") or dimensions["max_position_embeddings"] or DEFAULT_BLOCK
    choices = expected_choices(machine, settings)
    settings["attention"] = kept_as(choices["attention"].value)
    tokens = settings["block_size"] * given.get("micro_batch_size", MICRO_BATCH) * given.get("accumulation", 1)
    chosen = NOT_MYPT
    if not is_measured(dimensions):
        chosen = choose_optimizer(dimensions, settings["block_size"], tokens, fsdp=given.get("fsdp", 1))
    choices["optimizer"] = _by_option(given) or chosen
    settings["optimizer"] = chosen.value
    smaller = smaller_presets(target, lambda name: preset(name, fields or {}))
    return Target(dimensions=dimensions, settings=settings, smaller=smaller, choices=choices, notes=_notes(dimensions))


def _unchosen(recipe: Recipe, given: set[str]) -> Recipe:
    """The recipe of a run folder without what was chosen for the machine that the run was on; given: overrides."""
    chosen = {key for key in ("bf16", "fp16") if f"--training.{key}" not in given}
    hardware = recipe.hardware if "--hardware.attention" in given else replace(recipe.hardware, attention=None)
    training = {key: value for key, value in recipe.training.items() if key not in chosen}
    return replace(recipe, training=training, hardware=hardware)


def _by_option(given: dict) -> Choice | None:
    """The optimizer that the options of a command give."""
    if given.get("lora_r"):
        return Choice(given.get("optimizer", ADAPTERS.value), ADAPTERS.reason)
    return Choice(given["optimizer"], "as the option says") if "optimizer" in given else None


def _dimensions(target: str, fields: dict) -> dict:
    from mypt.legacy.checkpoint import refuse_original
    from mypt.models.presets import PRESETS

    if target in PRESETS:
        return preset(target, fields)
    if Path(target).exists() or "/" in target or cached_model(target):
        refuse_original(target)
        if message := what_to_do_with_gguf(target):
            raise MyPTError(message)
        return _changed(_read_config(target), fields)
    try:
        return preset(target, fields)
    except MyPTError as error:
        raise MyPTError(f"{target} is no recipe (.yaml) or checkpoint folder that exists, and {error}") from None


def _notes(dimensions: dict | None) -> list[str]:
    if not (dimensions and is_measured(dimensions)):
        return []
    return [
        f"{dimensions['architecture']}: parameters are exact, counted on torch's meta device; memory is a rough "
        "estimate from the shapes of the modules"
    ]


def _changed(dimensions: dict, fields: dict) -> dict:
    """The dimensions with other sizes, which only formulas can work out. Raises MyPTError where there are none."""
    if fields and is_measured(dimensions):
        option = f"--{next(iter(fields)).replace('_', '-')}"
        raise MyPTError(
            f"{option} cannot change {dimensions['architecture']}: its sizes come from config.json; leave it out, "
            "or change a copy of that file"
        )
    return dimensions | fields


def preset(name: str, fields: dict) -> dict:
    """Dimensions of a preset with other fields. Raises MyPTError for an unknown name or fields that do not fit."""
    from mypt.models.presets import preset_dimensions

    try:
        return preset_dimensions(name, **fields)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise MyPTError(error) from None


def smaller_presets(name: str, dimensions_of: Callable[[str], dict]) -> dict[str, dict]:
    """Presets of the family of preset `name` with fewer parameters, the largest first; none for any other name.

    dimensions_of: the dimensions that the target has with another preset.
    """
    from mypt.models.presets import PRESETS

    if name not in PRESETS:
        return {}
    family = PRESETS[name]["position_embedding_type"]
    most, sizes = count_parameters(dimensions_of(name))["total"], {}
    for other, fields in PRESETS.items():
        if fields["position_embedding_type"] == family:
            with suppress(MyPTError):  # fields that the target changes do not fit every preset
                dimensions = dimensions_of(other)
                sizes[other] = (count_parameters(dimensions)["total"], dimensions)
    below = sorted((size, other) for other, (size, _) in sizes.items() if size < most)
    return {other: sizes[other][1] for _, other in reversed(below)}


def _read_config(model: str, vocabulary: int | None = None) -> dict:
    """Dimensions of an existing model, a folder or a hub id, with room for `vocabulary` ids.

    By formulas where there are some, which takes milliseconds; else its class is built without data, which takes
    seconds.
    """
    from mypt.planning.parameters import FORMULAS, dimensions_of

    folder, config = read_config(model)
    if config.get("model_type") in FORMULAS:
        dimensions = dimensions_of(config)
        return dimensions | {"vocab_size": max(dimensions["vocab_size"], vocabulary or 0)}
    return measured_dimensions(folder, vocabulary)


@recipe_wording()
def _from_recipe(recipe: Recipe, machine: Machine, fields: dict, processes: int, given: dict) -> Target:
    from mypt.training.data.expected_data import expected_data, shared_text

    if "compute_dtype" in given:  # the machine has it by now, whatever the recipe says
        training = {key: value for key, value in recipe.training.items() if key not in ("bf16", "fp16")}
        recipe = replace(recipe, training=training)
    data = expected_data(recipe)
    dimensions, unreachable = None, []
    try:
        dimensions = _recipe_dimensions(recipe, data.vocabulary, fields)
    except HubError as error:
        unreachable = [f"model.init_from: {error}; `mypt plan` with --params N plans without the model"]
    block_size = recipe.data.block_size or (dimensions and dimensions["max_position_embeddings"])
    mypt_dimensions = dimensions if _trains_mypt(recipe) else None
    optimizer = choose_run_optimizer(recipe, mypt_dimensions, block_size, processes, given.get("fsdp", 1))
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name=optimizer.value))
    settings = memory_settings(recipe, machine, block_size)
    if block_size:
        settings["block_size"] = block_size
    choices = expected_choices(machine, settings, recipe) | {"optimizer": _by_option(given) or optimizer}
    settings, batch = expected_batch(machine, settings, recipe, dimensions, processes)
    steps = {name: recipe.training.get(name) for name in ("max_steps", "num_train_epochs")}
    evaluation = evaluation_settings(recipe, (dimensions or {}).get("num_hidden_layers", 1))
    section = recipe.model
    return Target(
        recipe=recipe,
        dimensions=dimensions,
        settings=settings,
        sources=data.sources,
        text=data.text,
        steps=steps | {"coverage_target": recipe.coverage.target},
        evaluation=evaluation | {"sets": [*data.sets.values()]} if data.sets else None,
        eval_sets=data.sets,
        shared_text=lambda: shared_text(recipe),
        saving=_saving(recipe, data.prepared, machine),
        init_from=section.init_from,
        smaller={}
        if section.init_from or not dimensions
        else smaller_presets(section.preset, lambda name: _preset_of(recipe, data.vocabulary, fields, name)),
        evaluation_batch=_evaluation_batch(recipe) if data.sets else None,
        choices=choices | ({"batch": batch} if batch else {}),
        flags={name: flag for name, flag in RECIPE_FLAGS.items() if name != "lora_r" or recipe.model.init_from},
        notes=[*data.notes, *unreachable, *_notes(dimensions), *memory_notes(recipe)],
    )


def _trains_mypt(recipe: Recipe) -> bool:
    """Whether the model will be MyPT's own class and all of it is trained."""
    from mypt.conversion.families import obstacles

    base = recipe.model.init_from
    if recipe.lora:
        return False
    try:
        config = read_config(base)[1] if base else {"model_type": "mypt"}
    except HubError:
        return False
    return config.get("model_type") == "mypt" or not obstacles(config)


def _recipe_dimensions(recipe: Recipe, vocabulary: int | None, fields: dict) -> dict:
    """Raises HubError for a model on the hub that cannot be read."""
    section = recipe.model
    if section.init_from:
        return _changed(_existing_dimensions(recipe, vocabulary), fields)
    if vocabulary and section.config.get("vocab_size", vocabulary) < vocabulary:
        raise too_few_rows(section.config["vocab_size"], vocabulary)
    return _preset_of(recipe, vocabulary, fields, section.preset)


def _preset_of(recipe: Recipe, vocabulary: int | None, fields: dict, name: str) -> dict:
    """Dimensions of the recipe's model with this preset."""
    try:
        dimensions = preset(name, {})
        changes = {"vocab_size": -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE} if vocabulary else {}
        if recipe.data.block_size and recipe.data.block_size > dimensions["max_position_embeddings"]:
            changes["max_position_embeddings"] = recipe.data.block_size
        return preset(name, changes | recipe.model.config | fields)
    except MyPTError as error:
        raise model_fault(error) from None


def _existing_dimensions(recipe: Recipe, vocabulary: int | None) -> dict:
    """Those of model.init_from, extended as `mypt train` does it."""
    section = recipe.model
    dimensions = _read_config(section.init_from)
    if vocabulary and vocabulary > dimensions["vocab_size"]:
        dimensions = _read_config(section.init_from, -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)
    if not is_measured(dimensions) and _trains_mypt(recipe):
        dimensions = dimensions | {"model_type": "mypt"}
    positions = (section.config.get("max_position_embeddings"), recipe.data.block_size)
    return with_positions(dimensions, max((length for length in positions if length), default=0))


def _saving(recipe: Recipe, prepared_tokens: int, machine: Machine) -> Saving:
    """For a folder on this machine what is free there; a machine that an option describes has another disk."""
    training, folder, here = recipe.training, recipe.training.get("output_dir"), this_machine()
    return Saving(
        save_steps=training.get("save_steps"),
        limit=training.get("save_total_limit", KEPT),
        prepared_tokens=prepared_tokens,
        free=free_for(folder) if folder and (here.device, here.memory) == (machine.device, machine.memory) else None,
    )


def _evaluation_batch(recipe: Recipe) -> int:
    """Windows in a forward pass of an evaluation."""
    size, most = recipe.training.get("per_device_eval_batch_size", MICRO_BATCH), recipe.forgetting.eval_windows
    size = whole("training.per_device_eval_batch_size", size)
    return min(size, most) if isinstance(most, int) else size
