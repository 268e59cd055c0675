"""TARGET of `mypt plan` and `mypt estimate`: a recipe, a preset or a folder with a config.json, read without torch."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mypt.checkpoints.lineage import describe_start, recognized, start_lineage, tokens_seen
from mypt.checkpoints.meta import HubError, measured_dimensions, read_config
from mypt.checkpoints.model_config import cached_model
from mypt.errors import DataError, MyPTError, recipe_wording
from mypt.files import free_for, what_to_do_with_gguf
from mypt.hardware.choices import (
    GIVEN,
    autocast_dtype,
    choose_attention,
    choose_dtype,
    expected_batch,
    expected_choices,
)
from mypt.hardware.machine import Machine, this_machine
from mypt.planning.coverage import whole
from mypt.planning.disk import KEPT, Saving
from mypt.planning.evaluation_budget import training_passes
from mypt.planning.fit import OPTIONS, RECIPE_FLAGS
from mypt.planning.optimizer import Choice, choose_optimizer
from mypt.planning.parameters import count_parameters, with_positions
from mypt.planning.shape_memory import note
from mypt.planning.shapes import is_measured
from mypt.planning.step import MICRO_BATCH, STATES, VOCABULARY_MULTIPLE
from mypt.planning.verdict import DataSource
from mypt.recipe import AUTO, Recipe, load_recipe, model_fault, too_few_rows
from mypt.training.launch import WHY_NOT_ZERO, zero_stage

DEFAULT_BLOCK = 1024  # tokens per sequence where nothing names a context
LORA_RATE = 2  # times the whole model's; from 7B parameters on it makes QLoRA's 2e-4 (Dettmers et al. 2023)
MUON_RATE = 2  # times AdamW's, from scratch: docs/optimizers.md has the runs

ADAPTERS = Choice("adamw", "auto: for adapters")
NOT_MYPT = Choice("adamw", "auto: the model is not MyPT's own class")


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


def epoch_size(sources: list[DataSource], block_size: int) -> tuple[int, int]:
    """Samples and tokens of the whole mixture in which its main source is seen once, as `ShardStream` counts them."""
    from mypt.streams.mixture import PERIOD, Mixture
    from mypt.streams.windows import window_count

    weights = [source.weight for source in sources]
    main = weights.index(max(weights))
    mixture, tokens = Mixture(weights), sources[main].tokens
    windows = window_count(tokens, block_size) if tokens > block_size else 1  # fewer tokens: a check of the plan fails
    samples = -(-windows * PERIOD // mixture.counts[main])
    return samples, round(tokens / mixture.shares[main])


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


def choose_run_optimizer(
    recipe, dimensions: dict | None, block_size: int | None, processes: int, fsdp: int = 1
) -> Choice:
    """The optimizer of a run and the reason, as training and a plan choose it; `auto` takes one that can run.

    Args:
        dimensions: MyPTConfig fields; None for a model that is not MyPT's.
        block_size: Tokens per sequence; None where it is not known, as `dimensions` is not.
        processes: Processes of the run.
        fsdp: How many of them share the weights.
    """
    training = recipe.training
    if given := training.get("optim") or (recipe.optimizer.name if recipe.optimizer.name != AUTO else None):
        return Choice(given, GIVEN)
    if recipe.lora:
        return ADAPTERS
    if dimensions is None:
        return NOT_MYPT
    if stage := zero_stage(training):
        return Choice("adamw", f"auto: {WHY_NOT_ZERO.format(stage)}")
    if recipe.data.tokens_per_step:
        tokens = recipe.data.tokens_per_step // processes
    else:
        tokens = block_size
        for name, default in (("per_device_train_batch_size", MICRO_BATCH), ("gradient_accumulation_steps", 1)):
            value = training.get(name)
            tokens *= whole(f"training.{name}", default if value is None else value)
    about = {"steps": recipe.optimizer.ns_steps, "freeze_layers": recipe.model.freeze_layers, "fsdp": fsdp}
    return choose_optimizer(dimensions, block_size, tokens, **about)


def default_learning_rate(recipe: Recipe, parameters: int) -> float:
    """AdamW's for a model of `parameters` non-embedding parameters (Kaplan et al. 2020, eq. D.1).

    That of adapters, and of Muon from scratch, is a multiple of it.
    """
    rate = round(max(0.003239 - 0.0001395 * math.log(max(parameters, 1)), 1e-4), 6)
    if recipe.lora:
        return rate * LORA_RATE
    return rate * MUON_RATE if recipe.optimizer.name == "muon" and not recipe.model.init_from else rate


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
    return [note(dimensions)] if dimensions and is_measured(dimensions) else []


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
    notes = []
    if "compute_dtype" in given:  # the machine has it by now, whatever the recipe says
        training = {key: value for key, value in recipe.training.items() if key not in ("bf16", "fp16")}
        recipe = replace(recipe, training=training)
    data = _read_data(recipe, notes)
    vocabulary = data.vocabulary
    if not vocabulary and not recipe.model.init_from:
        vocabulary = _expected_vocabulary(recipe, notes)
    dimensions = _recipe_dimensions(recipe, vocabulary, notes, fields)
    block_size = recipe.data.block_size or (dimensions and dimensions["max_position_embeddings"])
    mypt_dimensions = dimensions if _trains_mypt(recipe) else None
    optimizer = choose_run_optimizer(recipe, mypt_dimensions, block_size, processes, given.get("fsdp", 1))
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name=optimizer.value))
    settings = memory_settings(recipe, machine, block_size, notes)
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
        text=_unprepared(data.sources or []),
        steps=steps | {"coverage_target": recipe.coverage.target},
        evaluation=evaluation | {"sets": [*data.sets.values()]} if data.sets else None,
        eval_sets=data.sets,
        shared_text=lambda: _shared_text(recipe),
        saving=_saving(recipe, data.prepared, machine),
        init_from=section.init_from,
        smaller={}
        if section.init_from or not dimensions
        else smaller_presets(section.preset, lambda name: _preset_of(recipe, vocabulary, fields, name)),
        evaluation_batch=_evaluation_batch(recipe) if data.sets else None,
        choices=choices | ({"batch": batch} if batch else {}),
        flags={name: flag for name, flag in RECIPE_FLAGS.items() if name != "lora_r" or recipe.model.init_from},
        notes=notes,
    )


def kept_as(attention: str | None) -> str:
    """The name under which the memory model knows it: all fused kernels keep as much as SDPA."""
    return "eager" if attention == "eager" else "sdpa"


def memory_settings(recipe, machine: Machine, block_size: int | None, notes: list[str]) -> dict:
    """Fields of `Step` that a recipe gives, and those that training will choose on this machine."""
    training, weights = recipe.training, recipe.model.dtype or "float32"
    autocast = autocast_dtype(training) or choose_dtype(machine, weights).value
    settings = {"weight_dtype": weights, "optimizer": _optimizer(recipe.optimizer.name, notes)}
    settings["ns_steps"] = recipe.optimizer.ns_steps
    settings["compute_dtype"] = weights if autocast == "float32" else autocast
    attention = recipe.hardware.attention
    if block_size and not attention:
        attention = choose_attention(machine, block_size, settings["compute_dtype"])[0].value
    settings["attention"] = kept_as(attention)
    settings["checkpointing"] = bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing"))
    names = {"micro_batch_size": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps"}
    settings |= {
        name: whole(f"training.{key}", training[key]) for name, key in names.items() if training.get(key) is not None
    }
    settings |= {name: getattr(recipe.model, name) for name in ("freeze_layers", "freeze_embeddings")}
    if recipe.lora:
        settings |= {"lora_r": recipe.lora.r, "lora_targets": recipe.lora.target_modules}
        settings["lora_dropout"] = recipe.lora.dropout
        if recipe.lora.load_in_4bit:
            notes.append("lora.load_in_4bit: the frozen weights are counted in model.dtype, which is more")
    return settings


def evaluation_settings(recipe, layers: int) -> dict:
    """Arguments of `plan_evaluation` that a recipe gives; layers: of the model that is trained."""
    section, training = recipe.forgetting, recipe.training
    acting = {
        f"forgetting.action {section.action}": section.action != "warn",
        "safety.early_stopping_patience": recipe.safety.early_stopping_patience is not None,
        "training.lr_scheduler_type reduce_lr_on_plateau": training.get("lr_scheduler_type") == "reduce_lr_on_plateau",
    }
    frozen = {name: getattr(recipe.model, name) for name in ("freeze_layers", "freeze_embeddings")}
    return {
        "passes": training_passes(layers, lora=recipe.lora is not None, **frozen),
        "budget": section.time_budget,
        "windows": section.eval_windows,
        "eval_steps": training.get("eval_steps") or None,  # 0: none given, as HF takes it
        "acting": [name for name, is_asked in acting.items() if is_asked],
        "during_training": training.get("eval_strategy", "steps") != "no",
    }


def _optimizer(name: str, notes: list[str]) -> str:
    """The chosen one as the memory model knows it."""
    if name in STATES:
        return name
    notes.append(f"the memory of optimizer {name} is not known: AdamW's is assumed")
    return "adamw"


def _trains_mypt(recipe) -> bool:
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


def _recipe_dimensions(recipe, vocabulary: int | None, notes: list[str], fields: dict) -> dict | None:
    section = recipe.model
    if section.init_from:
        try:
            return _changed(_existing_dimensions(recipe, vocabulary, notes), fields)
        except HubError as error:
            notes.append(f"model.init_from: {error}; `mypt plan` with --params N plans without the model")
            return None
    if vocabulary and section.config.get("vocab_size", vocabulary) < vocabulary:
        raise too_few_rows(section.config["vocab_size"], vocabulary)
    return _preset_of(recipe, vocabulary, fields, section.preset)


def _preset_of(recipe, vocabulary: int | None, fields: dict, name: str) -> dict:
    """Dimensions of the recipe's model with this preset."""
    try:
        dimensions = preset(name, {})
        changes = {"vocab_size": -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE} if vocabulary else {}
        if recipe.data.block_size and recipe.data.block_size > dimensions["max_position_embeddings"]:
            changes["max_position_embeddings"] = recipe.data.block_size
        return preset(name, changes | recipe.model.config | fields)
    except MyPTError as error:
        raise model_fault(error) from None


def _existing_dimensions(recipe, vocabulary: int | None, notes: list[str]) -> dict:
    """Those of model.init_from, extended as `mypt train` does it."""
    section = recipe.model
    dimensions = _read_config(section.init_from)
    if vocabulary and vocabulary > dimensions["vocab_size"]:
        dimensions = _read_config(section.init_from, -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)
    notes += _notes(dimensions)
    if not is_measured(dimensions) and _trains_mypt(recipe):
        dimensions["model_type"] = "mypt"
    positions = (section.config.get("max_position_embeddings"), recipe.data.block_size)
    return with_positions(dimensions, max((length for length in positions if length), default=0))


def _is_dataset(source: str) -> bool:
    """Whether it is a directory of shards that is here."""
    from mypt.text.find_files import dataset_directory, holds_records

    path = Path(source)
    return path.is_dir() and dataset_directory(source) is None and not holds_records(path)


class _Data(NamedTuple):
    """sources: sizes of the training data, None unless all are known. sets: tokens of each evaluation set, None where
    they are not known. vocabulary: of the data, if it is prepared. prepared: tokens that lie, or will, in OUT/data."""

    sources: list[DataSource] | None
    sets: dict[str, int | None]
    vocabulary: int | None
    prepared: int


def _read_data(recipe, notes: list[str]) -> _Data:
    from mypt.shards.format import METADATA_NAME
    from mypt.shards.open_dataset import open_dataset
    from mypt.shards.reader import check_files
    from mypt.training.data.sources import source_name

    sources, own_sets, vocabulary, in_run_folder = [], {}, None, 0
    start = start_lineage(recipe.model.init_from)
    if line := describe_start(start):
        notes.append(line)
    for name, weight in recipe.data.train.items():
        directory = Path(name)
        prepared = Path(recipe.training.get("output_dir", ""), "data")
        if directory.is_file() and (prepared / METADATA_NAME).is_file():
            directory = prepared
        if directory.is_dir() and (directory == prepared or _is_dataset(name)):
            manifest = open_dataset(directory, recipe.data.dtype)
            check_files(directory, manifest, "train")
            vocabulary = manifest.vocab_size
            fingerprint = manifest.fingerprint("train")
            before = tokens_seen(
                recognized(start, {fingerprint: partial(manifest.shards_of, "train")}), name, [fingerprint]
            )
            sources.append(DataSource(name, manifest.splits["train"].tokens, weight, seen_before=before))
            if directory == prepared:
                in_run_folder += manifest.tokens
            if not recipe.data.eval and (val := manifest.splits.get("val")) and val.tokens:
                check_files(directory, manifest, "val")
                own_sets[source_name(name)] = val.tokens
        elif size := _text_tokens(name, recipe, notes):
            before = tokens_seen(start, name, [])
            sources.append(DataSource(name, size.tokens, weight, estimated=not size.exact, seen_before=before))
            held_out = recipe.data.val_fraction
            if held_out:
                own_sets[source_name(name)] = round(size.tokens * held_out / (1 - held_out))
            in_run_folder += size.prepared
    sets = {name: _set_tokens(source, recipe) for name, source in recipe.data.eval.items()} or own_sets
    known = sources if sources and len(sources) == len(recipe.data.train) else None
    return _Data(known, sets, vocabulary, in_run_folder)


def _shared_text(recipe) -> dict[str, str]:
    """Evaluation sets whose text is in the training data, with the share in words, of those that are directories."""
    from mypt.preparation.contamination import find_contamination
    from mypt.shards.open_dataset import open_dataset

    train = [name for name in recipe.data.train if Path(name).is_dir() and _is_dataset(name)]
    sets = {name: (source, "val") for name, source in recipe.data.eval.items() if _is_dataset(source)}
    directories = {*train, *(directory for directory, _ in sets.values())} if train and sets else ()
    manifests = {directory: open_dataset(directory, recipe.data.dtype) for directory in directories}
    return {found.name: str(found) for found in find_contamination(sets, train, manifests)} if manifests else {}


def _saving(recipe, prepared_tokens: int, machine: Machine) -> Saving:
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


def _expected_vocabulary(recipe: Recipe, notes: list[str]) -> int | None:
    """Of a text that is not prepared, as far as the recipe gives it; None for the preset's, with a note."""
    from mypt.shards.format import METADATA_NAME
    from mypt.shards.open_dataset import open_dataset
    from mypt.training.data.text import HEAD_NAME

    size, head = recipe.tokenizer.vocab_size, Path(recipe.training.get("output_dir", ""), HEAD_NAME)
    if (head / METADATA_NAME).is_file():  # of streamed text, in the run folder
        return open_dataset(head).vocab_size
    if recipe.tokenizer.name in (None, "bpe") and isinstance(size, int):
        return size
    if "vocab_size" not in recipe.model.config:
        notes.append("the vocabulary is not known before the text is prepared: the preset's is assumed")
    return None


def _unprepared(sources: list[DataSource]) -> int:
    """Bytes of text that a run prepares, or counts, before it trains."""
    from mypt.streams.size import BYTES_PER_TOKEN

    return BYTES_PER_TOKEN * sum(source.tokens for source in sources if source.estimated)


def _set_tokens(name: str, recipe) -> int | None:
    """Tokens of an evaluation set; None if it is text."""
    from mypt.shards.open_dataset import open_dataset
    from mypt.shards.reader import check_files

    if not _is_dataset(name):
        return None
    manifest = open_dataset(name, recipe.data.dtype)
    check_files(Path(name), manifest, "val")
    return manifest.splits["val"].tokens if "val" in manifest.splits else None


class _TextSize(NamedTuple):
    """Tokens to train on, whether a run has counted them, and those that training prepares before it begins."""

    tokens: int
    exact: bool
    prepared: int


def _text_tokens(name: str, recipe, notes: list[str]) -> _TextSize | None:
    """The size of a text source as a run has counted it, else an estimate, or a note where there is none."""
    from mypt.streams.size import BYTES_PER_TOKEN, SIZE_NAME, STREAMED_KINDS, fingerprint, guess_tokens, read_size
    from mypt.text.sources import find_units

    section = recipe.data
    try:
        units = find_units([name], text_column=section.text_column)
        streamed = section.streaming and units[0].kind in STREAMED_KINDS
        most = section.max_train_examples
        counted = Path(recipe.training.get("output_dir", ""), SIZE_NAME)
        if streamed and (size := read_size(counted, data=fingerprint(units), max_examples=most)):
            return _TextSize(size.tokens, size.exact, 0)
        held_out = _held_out(name, recipe, streamed)
        if units[0].kind == "text":
            read = sum(Path(path).stat().st_size for path in {path for unit in units for path in unit.paths})
            tokens = int(read / BYTES_PER_TOKEN * (1 - held_out))
        else:
            tokens = guess_tokens(units, held_out, most)
    except DataError as error:
        notes.append(f"the size of {name} is not known: {error}")
        return None
    if not tokens:
        notes.append(f"the size of {name} is not known before it is read; `mypt train` counts its tokens")
        return None
    state = "streamed and not counted" if streamed else "not prepared"
    notes.append(f"{name} is {state} yet: its tokens are estimated at {BYTES_PER_TOKEN} bytes each")
    tokens = max(1, tokens)
    return _TextSize(tokens, False, 0 if streamed else round(tokens / (1 - held_out)))


def _held_out(name: str, recipe, streamed: bool) -> float:
    """The share of a text source that training leaves for evaluation."""
    from mypt.text.sources import own_validation

    sets = recipe.data.eval
    if (streamed and name not in sets.values()) if sets else own_validation(name):
        return 0.0
    return recipe.data.val_fraction
