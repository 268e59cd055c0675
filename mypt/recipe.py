"""Read a recipe, one YAML file per run: check names and types, apply overrides, write the resolved copy back."""

import ast
import difflib
import importlib.util
import math
import os
import re
import typing
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

import yaml

from mypt.errors import RecipeError, shown
from mypt.files import replace_text
from mypt.json_files import Rule, Unfit, Wrong, as_kind
from mypt.planning.step import OWN_OPTIMIZERS, VOCABULARY_MULTIPLE
from mypt.yaml12 import dump_yaml, load_yaml

RESOLVED_NAME = "recipe.yaml"
_PATHS = ("data.train", "data.eval", "model.init_from", "tokenizer.name", "training.output_dir")  # of overrides
AUTO = "auto"  # the optimizer that `mypt.planning.optimizer` chooses
# Keys where infinity means "never". JSON has no infinity, so a number that acts as one is recorded instead.
UNBOUNDED, ENDLESS = ("training.max_grad_norm", "training.eval_delay", "forgetting.tolerance"), 1e300

# TrainingArguments that would break a promise of this package, with the way that keeps it.
REFUSED_TRAINING_KEYS = {
    "label_smoothing_factor": "Trainer applies it without shifting the labels of a model that it does not ship",
    "auto_find_batch_size": "a batch size found at run time changes the sample order; set per_device_train_batch_size",
    "resume_from_checkpoint": "use `mypt train --resume`, which finds the last complete checkpoint",
    "hub_token": "a recipe is no place for a secret; `upload:` takes it from `hf auth login` or the HF_TOKEN variable",
    "remove_unused_columns": "it would drop shift_labels, the targets of every window; it is always false",
    "torch_compile_backend": "torch_compile: true compiles layer by layer with Inductor, and nothing else",
    "torch_compile_mode": "torch_compile: true compiles layer by layer in Inductor's default mode, and in no other",
    "load_best_model_at_end": "OUT holds the final model and OUT/best the best one, both, always",
    "ignore_data_skip": "the stream starts at its exact sample; it is always true",
    "save_only_model": "a run must resume, and that needs the optimizer's state",
    "bf16_full_eval": "evaluations compute as training does, so that their losses compare; set bf16",
    "fp16_full_eval": "evaluations compute as training does, so that their losses compare; set fp16",
    "dataloader_persistent_workers": "a run is one epoch of its stream, so that workers stay by themselves",
    "restore_callback_states_from_checkpoint": "the callbacks restore themselves; it is not needed",
    "enable_jit_checkpoint": "a signal is always answered with a checkpoint; HF's comes between a step's gradient and "
    "its update, where the random state is already the next step's",
    "push_to_hub": "Trainer would upload its pickled arguments too; use the section `upload: {uri: hf://user/name}`",
    "eval_on_start": "the step-0 baseline is always measured",
    "metric_for_best_model": "the best checkpoint has the lowest target loss with every guard within its tolerance",
    "greater_is_better": "the best checkpoint has the lowest eval_constrained_loss",
}


# Rules for the annotations below. A rule sees values of every annotated type, and accepts those of other types.


def between(low: float, high: float, words: str = "") -> Rule:
    words = words or f"a number from {low:g} to {high:g}"
    return Rule(lambda value: not _is_number(value) or low <= value <= high, words)


def at_least(low: float) -> Rule:
    return between(low, math.inf, f"{low:g} or more")


def above(low: float, example: float) -> Rule:
    return Rule(lambda value: not _is_number(value) or value > low, f"a number above {low:g}, such as {example:g}")


def one_of(*words: str) -> Rule:
    return Rule(lambda value: not isinstance(value, str) or value in words, f"one of: {', '.join(words)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


NAMES = Rule(
    lambda value: (
        not isinstance(value, list | dict)
        or all(isinstance(v, str) and v for v in (value if isinstance(value, list) else [*value, *value.values()]))
    ),
    "a list of names",
)
Number = Annotated[float, float]  # a whole number becomes a float
Mapping = dict[object, object]


@dataclass
class ModelSection:
    """The model to train: a preset (with any MyPTConfig field changed) or an existing model."""

    preset: str | None = "modern-tiny"  # None with init_from
    init_from: str | None = None
    dtype: Annotated[str | None, one_of("float32", "bfloat16", "float16")] = None
    freeze_layers: Annotated[int, at_least(0)] = 0
    freeze_embeddings: bool = False
    config: dict = field(default_factory=dict)  # MyPTConfig fields given next to the keys above


@dataclass
class TokenizerSection:
    """The tokenizer of a text source; dataset directories bring their own."""

    name: str | None = None  # that of model.init_from, else bpe
    vocab_size: Annotated[int | str, between(1, 2**32), one_of("auto")] = "auto"  # ids on disk have 32 bits
    min_vocab_size: Annotated[int, between(1, 2**32)] = 5_000
    max_vocab_size: Annotated[int, between(1, 2**32)] = 50_000
    train_examples: Annotated[int, at_least(1)] = 10_000
    retrain: bool = False


@dataclass
class DataSection:
    """Training and evaluation data; `train` is {source: weight}, `eval` {name: source}."""

    train: dict[str, float] = field(default_factory=dict)
    eval: dict[str, str] = field(default_factory=dict)
    block_size: Annotated[int | None, at_least(1)] = None
    tokens_per_step: Annotated[int | None, at_least(1)] = None
    val_fraction: Annotated[Number, between(0, 0.999)] = 0.1
    val_split: Annotated[str, one_of("hash", "tail")] = "tail"
    document_mask: bool = False
    order: Annotated[str, one_of("full", "blocks")] = "full"
    curriculum: Mapping | None = None
    reading: Annotated[str, one_of("auto", "ram", "readahead", "pread")] = "auto"
    dtype: Annotated[str | None, one_of("uint16", "uint32")] = None
    text_column: str = "text"
    streaming: bool = True
    shuffle_buffer: Annotated[int, at_least(1)] = 10_000
    stride: Annotated[int | None, at_least(1)] = None
    max_train_examples: Annotated[int | None, at_least(1)] = None
    max_eval_examples: Annotated[int, at_least(1)] = 1_000
    # Copies of data in object stores: their folder (None: ~/.cache/mypt), and how many GB of them.
    cache_dir: str | None = None
    cache_limit: Annotated[Number, above(0, 50)] = 50.0


@dataclass
class CoverageSection:
    """How often the data is seen: a target in passes, and whether a run below one pass asks or fails."""

    target: Number | None = None
    confirm: bool = True
    strict: bool = False


@dataclass
class ForgettingSection:
    """The evaluation set that is learned, those that are guarded, and the action when a guarded loss rises."""

    target: str | None = None
    guard: Annotated[list | Mapping | None, NAMES] = None  # or {name: replay source}
    tolerance: Annotated[Number, above(0, 0.05)] = 0.05
    action: Annotated[str, one_of("warn", "stop", "reduce_lr", "raise_replay", "rollback")] = "warn"
    act_at: Annotated[Number, at_least(1e-6)] = 1.0
    interpolate: Annotated[str, one_of(AUTO, "off")] = AUTO
    # Chosen when the run starts, and recorded.
    eval_windows: Annotated[int | str | None, at_least(1), one_of("all")] = None
    time_budget: Annotated[Number, between(0, 1)] = 0.1


@dataclass
class OptimizerSection:
    """The optimizer and the shape of the learning rate over the run."""

    name: str | None = AUTO
    schedule: Annotated[str, one_of("wsd", "linear", "cosine", "constant", "rewarm")] = "wsd"
    cooldown: Annotated[Number, between(0, 1)] = 0.2
    floor: Annotated[Number | None, between(0, 1)] = None
    momentum: Annotated[Number, between(0, 1)] = 0.95
    ns_steps: Annotated[int, between(1, 100)] = 3  # from the sixth on nothing changes

    def __post_init__(self):
        self.name = self.name or AUTO  # null, the default before there was `auto`


@dataclass
class HardwareSection:
    """Choices that follow from the machine; None: chosen when the run starts, and recorded."""

    matmul_precision: Annotated[str | None, one_of("highest", "high", "medium")] = None
    attention: Annotated[str | None, one_of("eager", "sdpa", "flash_attention_2", "flex_attention")] = None


@dataclass
class LoraSection:
    """Low-rank adapters (Hu 2021, 2106.09685) on frozen weights; present in a recipe: on."""

    r: Annotated[int, at_least(1)] = 8
    alpha: Annotated[Number, at_least(1e-6)] = 16.0
    dropout: Annotated[Number, between(0, 0.99)] = 0.0
    target_modules: Annotated[list | str, NAMES] = "all-linear"
    load_in_4bit: bool = False


@dataclass
class SafetySection:
    """Actions on a NaN or infinite loss, and when the target stops improving."""

    on_nan: Annotated[str, one_of("stop", "skip", "rollback")] = "stop"
    early_stopping_patience: Annotated[int | None, at_least(1)] = None


@dataclass
class UploadSection:
    """Where the finished run, and every checkpoint before it, is uploaded."""

    uri: str
    keep: Annotated[int | None, at_least(1)] = None  # 2; commits of a hub repository stay
    private: bool | None = None  # True on the hub; a bucket has rules of its own
    every_save: bool = True

    def __post_init__(self):
        on_hub = self.uri.startswith("hf://")
        if on_hub and self.keep is not None:
            raise RecipeError(
                f"upload.keep is {self.keep}, and {self.uri} is a hub repository, whose commits keep every upload: "
                "leave it out"
            )
        if not on_hub and self.private is not None:
            raise RecipeError(
                f"upload.private is {str(self.private).lower()}, and the rules of a bucket decide who may read it; "
                "leave it out"
            )


@dataclass
class SweepSection:
    """The search of `mypt sweep`, which checks `space` by the keys of this recipe; `mypt train` does not read it."""

    space: Mapping = field(default_factory=dict)  # {section.key: values to search}
    type: Annotated[str | None, one_of("predefined", "random", "optimized")] = None  # optimized where space is given
    trials: Annotated[int, at_least(1)] = 20
    objective: Annotated[str, one_of("constrained", "target")] = "constrained"
    pruner: Annotated[str, one_of("asha", "hyperband", "none")] = "asha"
    storage: str | None = None  # a database URL; None: a journal file in the sweep's folder
    samples: Annotated[int, at_least(1)] = 10_000
    seed: Annotated[int, between(0, 2**32 - 1)] = 42


@dataclass
class Recipe:
    """A run's settings. `training` holds the given TrainingArguments by name.

    `lora`, `upload` and `sweep` are off when None.
    """

    model: ModelSection = field(default_factory=ModelSection)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection = field(default_factory=DataSection)
    coverage: CoverageSection = field(default_factory=CoverageSection)
    forgetting: ForgettingSection = field(default_factory=ForgettingSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    hardware: HardwareSection = field(default_factory=HardwareSection)
    lora: LoraSection | None = None
    safety: SafetySection = field(default_factory=SafetySection)
    upload: UploadSection | None = None
    sweep: SweepSection | None = None
    training: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The recipe as plain YAML sections; `load_recipe` of it gives this recipe again."""
        content = {name: section for name, section in asdict(self).items() if section is not None}
        content["model"] |= content["model"].pop("config")
        return content


# Rules for keys whose names and types are those of TrainingArguments and MyPTConfig.
_RULES = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
         "torch_empty_cache_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"), at_least(1)
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "logging_steps",
         "eval_steps", "save_steps", "eval_delay", "ddp_timeout", "initializer_range", "norm_eps"), at_least(0)
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), between(0, math.nextafter(1, 0), "0 or more, and below 1")),
    **dict.fromkeys(("seed", "data_seed"), between(0, 2**32 - 1)),
    **dict.fromkeys(
        ("log_level", "log_level_replica"),
        one_of("detail", "debug", "info", "warning", "error", "critical", "passive"),
    ),
    **dict.fromkeys(("report_to", "optim_target_modules"), NAMES),
    "save_total_limit": at_least(2),  # with 1, Trainer keeps the best checkpoint and drops the last
    "dataloader_num_workers": between(0, 2**15),  # the processes that Linux allows; fewer where it trains
    "dataloader_multiprocessing_context": one_of("fork", "spawn", "forkserver"),
}  # fmt: skip
_CURRICULUM = {"start_length": Annotated[int, at_least(1)], "steps": Annotated[int, at_least(1)]}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, or the resolved recipe of a run folder, and apply `--section.key=value` overrides.

    The output_dir of a run folder's recipe is that folder, wherever it was moved.
    Raises RecipeError for a missing file, broken YAML, an unknown key (with the nearest name) or a value of the
    wrong type.
    """
    folder, path = Path(path), Path(path)
    path = path / RESOLVED_NAME if folder.is_dir() else path
    if not path.is_file():
        raise RecipeError(f"recipe {path} does not exist; pass a YAML file such as recipes/pretrain.yaml")
    try:
        content = load_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:  # a read that fails does not name its file
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds {type(content).__name__}, expected sections such as `model:` and `data:`")
    if folder.is_dir():  # it may have been moved since
        content["training"] = (content.get("training") or {}) | {"output_dir": str(folder)}
    recorded = dict(content)
    for override in overrides or []:
        _apply_override(content, override)
    try:
        return parse_recipe(content)
    except RecipeError as error:
        if folder.is_dir() and _refusal(recorded) == str(error):  # not of an override
            raise RecipeError(f"{path}: {error}") from None
        raise


def _refusal(content: dict) -> str | None:
    try:
        parse_recipe(content)
    except RecipeError as error:
        return str(error)
    return None


def model_fault(error: Exception) -> RecipeError:
    """The error of fields of `model` that do not fit together; `name=value` in its message becomes an override."""
    message = re.sub(r"\b([a-z_]+=\d+)", r"--model.\1", " ".join(str(error).split()))
    return RecipeError(f"model: {message}")


def too_few_rows(vocab_size: int, vocabulary: int) -> RecipeError:
    """The error of a `model.vocab_size` that cannot hold every id of the tokenizer."""
    padded = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return RecipeError(
        f"model.vocab_size {vocab_size:,} is below the tokenizer's {vocabulary:,}; remove it, or give "
        f"--model.vocab_size={padded}"
    )


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe, so that a run can be repeated from its folder alone."""
    replace_text(path, dump_yaml(recipe.to_dict()))


def parse_recipe(content: dict) -> Recipe:
    """Plain sections -> Recipe. Raises RecipeError as `load_recipe` does."""
    kinds = {name: (typing.get_args(hint) or (hint,))[0] for name, hint in typing.get_type_hints(Recipe).items()}
    for name in content:
        if name not in kinds:
            raise RecipeError(_unknown("recipe section", name, kinds))
    sections = {}
    for name, values in content.items():
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise RecipeError(f"recipe section {name!r} is {shown(values)}, expected keys and values below it")
        sections[name] = _parse_training(values) if name == "training" else _parse_section(name, kinds[name], values)
    recipe = Recipe(**sections)
    if recipe.data.curriculum is not None:
        _checked_keys("data.curriculum", recipe.data.curriculum, _CURRICULUM, required=_CURRICULUM)
    if rope := recipe.model.config.get("rope_parameters"):
        _checked_keys("model.rope_parameters", rope, _rope_kinds())
    for key, name in (("optimizer.name", recipe.optimizer.name), ("training.optim", recipe.training.get("optim"))):
        own = (AUTO, *OWN_OPTIMIZERS) if key == "optimizer.name" else OWN_OPTIMIZERS
        if name and name not in own and name not in (known := hf_optimizers()):
            raise RecipeError(_unknown(key, name, [*own, *known]))
    if recipe.lora is not None:
        _check_lora(recipe)
    return recipe


def _parse_section(name: str, section: type, values: dict) -> Any:
    kinds, config_kinds = typing.get_type_hints(section, include_extras=True), {}
    if name == "model":
        del kinds["config"]
        config_kinds = class_fields("mypt.models.configuration_mypt", "MyPTConfig")
    if name == "data":
        values = _with_weights(values)
    required = [f.name for f in fields(section) if f.default is MISSING and f.default_factory is MISSING]
    checked = _checked_keys(name, values, config_kinds | kinds, required)
    if name != "model":
        return section(**checked)
    if checked.get("init_from"):
        checked["preset"] = None  # the existing model decides
    config = {key: value for key, value in checked.items() if key in config_kinds}
    return section(**{key: value for key, value in checked.items() if key not in config_kinds}, config=config)


def _parse_training(values: dict) -> dict:
    known = class_fields("transformers.training_args", "TrainingArguments")
    # transformers 5.17 has these under an older name, by which `build_arguments` hands them on.
    known = {
        key.replace("gradient_checkpointing", "activation_checkpointing"): kind for key, kind in known.items()
    } | known
    for key, value in values.items():
        if key in REFUSED_TRAINING_KEYS:
            raise RecipeError(f"training.{key} is refused: {REFUSED_TRAINING_KEYS[key]}")
        if str(key).endswith("_strategy") and value == "epoch":
            raise RecipeError(f"training.{key}: epoch is refused: a token stream has no epoch end; use steps")
        if key == "save_strategy" and value != "steps":
            raise RecipeError(f"training.save_strategy is {value!r}, expected steps: a run must resume")
    checked = _checked_keys("training", values, known)
    # The other values stay as they were given: `save_steps: 100` is recorded as a whole number.
    return values | {key: value for key, value in checked.items() if value == ENDLESS}


def _checked_keys(place: str, values: dict, kinds: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a section, or of a mapping in one, as the types of their keys."""
    where = place if "." in place else f"recipe section {place!r}"
    checked = {}
    for key, value in values.items():
        if key not in kinds:
            raise RecipeError(_unknown(f"key in {where}:", key, kinds))
        checked[key] = _checked(f"{place}.{key}", value, kinds[key])
    for key in required:
        if key not in checked:
            raise RecipeError(f"{where} lacks {key}; it must hold {', '.join(required)}")
    return checked


def _checked(place: str, value: Any, kind: Any) -> Any:
    """The value as the type `kind`. Raises RecipeError that names `place`."""
    if place in UNBOUNDED and value == math.inf:
        value = ENDLESS
    try:
        result = as_kind(value, kind)
    except Unfit as problem:
        is_too_large = isinstance(value, int) and "whole number" in problem.expected
        if _is_number(value) and (is_too_large or "finite number" in problem.expected):
            _check_plain(place, value)
        # A number that is not finite has been refused by now; JSON's objects are YAML's mappings.
        expected = problem.expected.replace("a finite number", "a number").replace("an object", "a mapping")
        raise RecipeError(f"{place} is {shown(problem.value)}, expected {expected}") from None
    except Wrong as problem:
        raise RecipeError(f"{place} is {problem}") from None
    _check_plain(place, value)
    return result


def _check_plain(place: str, value) -> None:
    """Refuse, at any depth, NaN, infinity, integers beyond 64 bits, and text that no file can hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(place, key)
            _check_plain(f"{place}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(place, inner)
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and re.search("[\ud800-\udfff]", value)):
            what = "a NUL character" if "\0" in value else "half a character (a lone surrogate, or bytes not in UTF-8)"
            raise RecipeError(f"{shown(place)} holds {what} in {shown(value)}; remove it")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{place} is {value}, expected a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{place} is {shown(value)}, expected a number of at most 64 bits")


def _with_weights(data: dict) -> dict:
    """The data section with its sources as {source: weight}. Refuses other sources, weights and evaluation sets."""
    train, sets = data.get("train"), data.get("eval")
    if isinstance(train, str):
        return _with_weights(data | {"train": {train: 1.0}})
    for source, weight in train.items() if isinstance(train, dict) else ():
        if not isinstance(source, str):
            raise RecipeError(f"data.train names the source {shown(source)}, expected {{path: weight}}")
        if not _is_number(weight) or not 0 < weight < math.inf:
            raise RecipeError(f"data.train weight of {shown(source)} is {shown(weight)}, expected a positive number")
    for name, source in sets.items() if isinstance(sets, dict) else ():
        if not isinstance(name, str) or not isinstance(source, str):
            raise RecipeError(f"data.eval holds {shown(name)}: {shown(source)}, expected {{name: path}}")
    return data


def _rope_kinds() -> dict[str, Any]:
    """The parameters of rotary positions and their types. transformers itself warns of wrong ones, and uses them."""
    types = ["default", *_rope_types()]
    numbers = ("rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor", "low_freq_factor",
               "high_freq_factor")  # fmt: skip
    positive = Rule(_is_positive, "a positive number")
    optional = Rule(lambda value: value is None or _is_positive(value), "a positive number or null")
    or_zero = Rule(lambda value: value is None or (_is_number(value) and value >= 0), "a number of 0 or more or null")
    several = Rule(
        lambda value: isinstance(value, list) and value and all(map(_is_positive, value)), "a list of positive numbers"
    )
    known_type = Rule(lambda value: value in types, f"one of: {', '.join(types)}")
    return {
        **dict.fromkeys(numbers, Annotated[object, positive]),
        "attention_factor": Annotated[object, optional],
        **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), Annotated[object, or_zero]),
        **dict.fromkeys(("short_factor", "long_factor"), Annotated[object, several]),
        **dict.fromkeys(("rope_type", "type"), Annotated[object, known_type]),
        "truncate": bool,
    }


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _check_lora(recipe: Recipe) -> None:
    """Refuse what LoRA cannot be combined with, and targets that are neither names nor a regular expression."""
    targets = recipe.lora.target_modules
    if recipe.model.freeze_layers or recipe.model.freeze_embeddings:
        raise RecipeError(
            "model.freeze_layers and model.freeze_embeddings are refused beside lora, which freezes all of the model: "
            "leave them out"
        )
    if not recipe.model.init_from:
        raise RecipeError("lora trains adapters of a frozen model: name an existing one in model.init_from")
    if recipe.optimizer.name == "muon":
        raise RecipeError(
            "optimizer.name muon is refused beside lora: it normalizes the update of a matrix, and an adapter is the "
            "product of two; use adamw, the default there"
        )
    if not targets:
        raise RecipeError(f"lora.target_modules is {targets}, expected names of modules or one regular expression")
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise RecipeError(f"lora.target_modules {shown(targets)} is no regular expression ({error})") from None


def _unknown(what: str, name: str, known) -> str:
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)[:20])}"
    return f"unknown {what} {shown(name)}; {hint}"


def _apply_override(content: dict, override: str) -> None:
    name, equals, value = override.removeprefix("--").partition("=")
    section, dot, key = name.partition(".")
    if override.startswith("--") and not dot and value == "null":
        if section not in (known := [field.name for field in fields(Recipe)]):
            raise RecipeError(_unknown("recipe section", section, known))
        content.pop(section, None)
        return
    if not override.startswith("--") or not equals or not dot or not key:
        raise RecipeError(f"override {shown(override)} is not understood, expected --section.key=value")
    if not isinstance(content.setdefault(section, {}) or {}, dict):
        raise RecipeError(f"override {shown(override)}: recipe section {section!r} holds no keys")
    try:
        content[section] = (content[section] or {}) | {key: _override_value(name, value)}
    except yaml.YAMLError as error:
        raise RecipeError(f"override {shown(override)} is not valid YAML: {error}") from None


def _override_value(name: str, value: str):
    """The value as YAML. A path is taken as it is: its characters may mean something in YAML, or make it invalid."""
    if name not in _PATHS:
        return load_yaml(value)
    if os.path.exists(value):
        return value
    quoted = value.startswith(("{", "'", '"'))
    try:
        parsed = load_yaml(value)
    except yaml.YAMLError:
        if quoted or not re.search(r"[*?]|\[.+\]", value):
            raise
        return value  # a glob such as *.txt
    return value if isinstance(parsed, str) and not quoted else parsed


@cache
def class_fields(module: str, class_name: str) -> dict[str, Any]:
    """Annotated fields of a class and their types, read from its source: importing transformers would take seconds.

    Types that YAML cannot hold, such as enums, are left out.
    """
    body = _class_body(module, class_name)
    annotations = {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}
    kinds = {name: _kind(text) for name, text in annotations.items() if not text.startswith("ClassVar")}
    return {name: Annotated[kind, _RULES[name]] if name in _RULES else kind for name, kind in kinds.items()}


def hf_optimizers() -> list[str]:
    """The names that HF's `TrainingArguments.optim` takes."""
    body = _class_body("transformers.training_args", "OptimizerNames")
    return [node.value.value for node in body if isinstance(node, ast.Assign)]


@cache
def _rope_types() -> list[str]:
    """The names of transformers' ROPE_INIT_FUNCTIONS."""
    assigned = (node for node in _source("transformers.modeling_rope_utils").body if isinstance(node, ast.AnnAssign))
    return [key.value for node in assigned if node.target.id == "ROPE_INIT_FUNCTIONS" for key in node.value.keys]


def _class_body(module: str, class_name: str) -> list[ast.stmt]:
    body = _source(module).body
    return next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == class_name)


def _source(module: str) -> ast.Module:
    package, _, submodule = module.rpartition(".")
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return ast.parse((root / f"{submodule}.py").read_text(encoding="utf-8"))


def _kind(annotation: str) -> Any:
    names = re.sub(r"\[.*?\]", "", re.sub(r"\bLiteral\[.*?\]", "str", annotation)).split(" | ")
    number = float if "int" in names else Number  # a whole number stays one where both may stand
    kinds = {"int": int, "float": number, "str": str, "bool": bool, "dict": Mapping, "list": list, "None": None}
    return Union[tuple(kinds[name] for name in names if name in kinds)]  # noqa: UP007 - of as many as there are
