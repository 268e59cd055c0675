"""One YAML file per run: sections as dataclasses, names checked, overrides applied, the resolved copy written back."""

import ast
import difflib
import importlib.util
import math
import os
import re
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path

import yaml

from mypt.errors import RecipeError, shown
from mypt.files import replace_text
from mypt.yaml12 import dump_yaml, load_yaml

RESOLVED_NAME = "recipe.yaml"
_PATHS = ("data.train", "data.eval", "model.init_from", "tokenizer.name", "training.output_dir")  # of overrides
OWN_OPTIMIZERS = ("muon", "adamw")  # any other name is one of HF's `optim`

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


@dataclass
class ModelSection:
    """What is trained: a preset (with any MyPTConfig field changed) or an existing model."""

    preset: str | None = "modern-tiny"  # None beside init_from
    init_from: str | None = None
    dtype: str | None = None
    freeze_layers: int = 0
    freeze_embeddings: bool = False
    config: dict = field(default_factory=dict)  # MyPTConfig fields given beside the keys above


@dataclass
class TokenizerSection:
    """The tokenizer of a text source; dataset directories bring their own."""

    name: str | None = None  # that of model.init_from, else bpe
    vocab_size: int | str = "auto"
    min_vocab_size: int = 5_000
    max_vocab_size: int = 50_000
    train_examples: int = 10_000
    retrain: bool = False


@dataclass
class DataSection:
    """What is trained on and what is evaluated; `train` is {source: weight}, `eval` {name: source}."""

    train: dict = field(default_factory=dict)
    eval: dict = field(default_factory=dict)
    block_size: int | None = None
    tokens_per_step: int | None = None
    val_fraction: float = 0.1
    val_split: str = "tail"
    document_mask: bool = False
    order: str = "full"
    curriculum: dict | None = None
    reading: str = "auto"
    dtype: str | None = None
    text_column: str = "text"
    streaming: bool = True
    shuffle_buffer: int = 10_000
    stride: int | None = None
    max_train_examples: int | None = None
    max_eval_examples: int = 1_000


@dataclass
class CoverageSection:
    """How often the data is seen: a target in passes, and what happens below one pass."""

    target: float | None = None
    confirm: bool = True
    strict: bool = False


@dataclass
class ForgettingSection:
    """Which evaluation set is being learned, which are guarded, and what a loss on a guarded one triggers."""

    target: str | None = None
    guard: list | None = None
    tolerance: float = 0.05
    action: str = "warn"
    eval_windows: int | str | None = None  # chosen when the run starts, and recorded
    time_budget: float = 0.1


@dataclass
class OptimizerSection:
    """The optimizer and the shape of the learning rate over the run."""

    name: str | None = None
    schedule: str = "wsd"
    cooldown: float = 0.2
    floor: float | None = None
    momentum: float = 0.95
    ns_steps: int = 3


@dataclass
class HardwareSection:
    """What the machine decides where a recipe does not; None: chosen when the run starts, and recorded."""

    matmul_precision: str | None = None
    attention: str | None = None


@dataclass
class LoraSection:
    """Low-rank adapters (Hu 2021, 2106.09685) beside frozen weights; present in a recipe: on."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list | str = "all-linear"
    load_in_4bit: bool = False


@dataclass
class SafetySection:
    """What is done when a step has no finite loss, and when the target stops improving."""

    on_nan: str = "stop"
    early_stopping_patience: int | None = None


@dataclass
class UploadSection:
    """Where the finished model, and every save before it, is sent."""

    uri: str
    private: bool = True
    every_save: bool = True


@dataclass
class Recipe:
    """A run's settings. `training` holds the given TrainingArguments by name; `lora` and `upload` are off when None."""

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
    training: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The recipe as plain YAML sections; `load_recipe` of it gives this recipe again."""
        content = {name: section for name, section in asdict(self).items() if section is not None}
        content["model"] |= content["model"].pop("config")
        return content


# Words that a key may hold, and the smallest and largest number.
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
CHOICES = {
    ("model", "dtype"): ("float32", "bfloat16", "float16"),
    ("tokenizer", "vocab_size"): ("auto",),
    ("data", "val_split"): ("hash", "tail"),
    ("data", "order"): ("full", "blocks"),
    ("data", "reading"): ("auto", "ram", "readahead", "pread"),
    ("data", "dtype"): ("uint16", "uint32"),
    ("hardware", "matmul_precision"): ("highest", "high", "medium"),
    ("hardware", "attention"): ("eager", "sdpa", "flash_attention_2", "flex_attention"),
    ("forgetting", "action"): ("warn", "stop"),
    ("forgetting", "eval_windows"): ("all",),
    ("safety", "on_nan"): ("stop", "skip", "rollback"),
    ("training", "log_level"): _LOG_LEVELS,
    ("training", "log_level_replica"): _LOG_LEVELS,
    ("training", "dataloader_multiprocessing_context"): ("fork", "spawn", "forkserver"),
    ("optimizer", "schedule"): ("wsd", "linear", "cosine", "constant", "rewarm"),
}
_BELOW_1 = math.nextafter(1, 0)
RANGES = {
    ("model", "freeze_layers"): (0, math.inf),
    ("model", "initializer_range"): (0, math.inf),
    ("model", "norm_eps"): (0, math.inf),
    ("tokenizer", "vocab_size"): (1, 2**32),  # ids on disk have 32 bits
    ("tokenizer", "min_vocab_size"): (1, 2**32),
    ("tokenizer", "max_vocab_size"): (1, 2**32),
    ("tokenizer", "train_examples"): (1, math.inf),
    ("data", "block_size"): (1, math.inf),
    ("data", "val_fraction"): (0, 0.999),
    ("data", "tokens_per_step"): (1, math.inf),
    ("data", "shuffle_buffer"): (1, math.inf),
    ("data", "stride"): (1, math.inf),
    ("data", "max_train_examples"): (1, math.inf),
    ("data", "max_eval_examples"): (1, math.inf),
    ("forgetting", "tolerance"): (0, math.inf),
    ("forgetting", "eval_windows"): (1, math.inf),
    ("forgetting", "time_budget"): (0, 1),
    ("optimizer", "cooldown"): (0, 1),
    ("optimizer", "floor"): (0, 1),
    ("optimizer", "momentum"): (0, 1),
    ("optimizer", "ns_steps"): (1, 100),  # from the sixth on nothing changes
    ("safety", "early_stopping_patience"): (1, math.inf),
    ("lora", "r"): (1, math.inf),
    ("lora", "alpha"): (1e-6, math.inf),
    ("lora", "dropout"): (0, 0.99),
    ("training", "per_device_train_batch_size"): (1, math.inf),
    ("training", "per_device_eval_batch_size"): (1, math.inf),
    ("training", "gradient_accumulation_steps"): (1, math.inf),
    ("training", "save_total_limit"): (2, math.inf),  # with 1, Trainer keeps the best checkpoint and drops the last
    ("training", "learning_rate"): (0, math.inf),
    ("training", "weight_decay"): (0, math.inf),
    ("training", "adam_beta1"): (0, _BELOW_1),
    ("training", "adam_beta2"): (0, _BELOW_1),
    ("training", "adam_epsilon"): (0, math.inf),
    ("training", "max_grad_norm"): (0, math.inf),  # HF's 0: no clipping
    ("training", "neftune_noise_alpha"): (0, math.inf),
    ("training", "torch_empty_cache_steps"): (1, math.inf),
    ("training", "dataloader_num_workers"): (0, 2**15),  # as many processes as Linux numbers; fewer where it trains
    ("training", "dataloader_prefetch_factor"): (1, math.inf),
    ("training", "logging_steps"): (0, math.inf),  # below 1: a share of all steps; what 0 means HF says
    ("training", "eval_steps"): (0, math.inf),
    ("training", "save_steps"): (0, math.inf),
    ("training", "eval_delay"): (0, math.inf),
    ("training", "ddp_timeout"): (0, math.inf),
    ("training", "ddp_bucket_cap_mb"): (1, math.inf),
    ("training", "seed"): (0, 2**32 - 1),
    ("training", "data_seed"): (0, 2**32 - 1),
}
# Where infinity means `never`; what is recorded of it is a number that acts as infinity, since JSON has none.
UNBOUNDED, ENDLESS = ("training.max_grad_norm", "training.eval_delay", "forgetting.tolerance"), 1e300

NAMES = ("forgetting.guard", "lora.target_modules", "training.report_to", "training.optim_target_modules")

_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list, "None": types.NoneType}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping",
          list: "a list", types.NoneType: "null"}  # fmt: skip


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
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
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


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe, so that a run can be repeated from its folder alone."""
    replace_text(path, dump_yaml(recipe.to_dict()))


def parse_recipe(content: dict) -> Recipe:
    """Plain sections -> Recipe. Raises RecipeError as `load_recipe` does."""
    sections = {name: (typing.get_args(hint) or (hint,))[0] for name, hint in typing.get_type_hints(Recipe).items()}
    for name in content:
        if name not in sections:
            raise RecipeError(_unknown("recipe section", name, sections))
    recipe = Recipe()
    for name, section_type in sections.items():
        if getattr(recipe, name) is None and name not in content:
            continue
        values = {} if content.get(name) is None else content[name]
        if not isinstance(values, dict):
            raise RecipeError(f"recipe section {name!r} is {shown(values)}, expected keys and values below it")
        if name == "training":
            recipe.training = _check_training(values)
        else:
            setattr(recipe, name, _parse_section(name, section_type, values))
    _check_sources(recipe.data)
    _check_plain("", content)
    _check_curriculum(recipe.data.curriculum)
    _check_rope("model.rope_parameters", recipe.model.config.get("rope_parameters") or {})
    for key, name in (("optimizer.name", recipe.optimizer.name), ("training.optim", recipe.training.get("optim"))):
        if name and name not in OWN_OPTIMIZERS and name not in (known := hf_optimizers()):
            raise RecipeError(_unknown(key, name, [*OWN_OPTIMIZERS, *known]))
    if recipe.lora is not None:
        _check_lora(recipe)
    return recipe


def _parse_section(name: str, section_type: type, values: dict):
    known = {key: typing.get_args(hint) or (hint,) for key, hint in typing.get_type_hints(section_type).items()}
    config_fields = {}
    if name == "model":
        del known["config"]
        config_fields = class_fields("mypt.models.configuration_mypt", "MyPTConfig")
        known = config_fields | known
    if name == "data" and isinstance(values.get("train"), str):
        values = values | {"train": {values["train"]: 1.0}}
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(_unknown(f"key in recipe section {name!r}:", key, known))
        value = _recordable(f"{name}.{key}", value)
        checked[key] = _checked(f"{name}.{key}", value, known[key])
        _check_value(name, key, checked[key])
    required = [f.name for f in fields(section_type) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in required if key not in checked]:
        raise RecipeError(f"recipe section {name!r} lacks {missing[0]}")
    config = {key: checked.pop(key) for key in [*checked] if key in config_fields}
    if checked.get("init_from"):
        checked["preset"] = None  # the existing model decides
    return section_type(**checked, config=config) if name == "model" else section_type(**checked)


def _checked(key: str, value, options: tuple[type, ...]):
    """`value` if it is of one of the types (a whole number also serves as a float)."""
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value) if abs(value) < 2**63 else value  # which `_check_plain` refuses
    if not any(isinstance(value, option) and not (option is int and isinstance(value, bool)) for option in options):
        raise RecipeError(f"{key} is {shown(value)}, expected {' or '.join(_WORDS[option] for option in options)}")
    if isinstance(value, list) and key in NAMES and not all(isinstance(item, str) and item for item in value):
        raise RecipeError(f"{key} is {shown(value)}, expected a list of names")
    return value


def _check_plain(place: str, value) -> None:
    """Refuse what no setting can be, wherever it stands: numbers beyond 64 bits, NaN or infinite, text that no file
    holds. Raises RecipeError that names the key.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(place, key)
            _check_plain(f"{place}.{key}" if place else str(key), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(place, inner)
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and re.search("[\ud800-\udfff]", value)):
            what = "a NUL character" if "\0" in value else "half a character (a lone surrogate, or bytes not in UTF-8)"
            raise RecipeError(f"{shown(place) if place else 'the recipe'} holds {what} in {shown(value)}; remove it")
    elif isinstance(value, float) and not math.isfinite(value) and not (place in UNBOUNDED and value > 0):
        raise RecipeError(f"{place} is {value}, expected a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{place} is {shown(value)}, expected a number of at most 64 bits")


def _check_value(section: str, key: str, value) -> None:
    choices, (low, high) = CHOICES.get((section, key)), RANGES.get((section, key), (-math.inf, math.inf))
    if choices and isinstance(value, str) and value not in choices:
        raise RecipeError(f"{section}.{key} is {shown(value)}, expected one of: {', '.join(choices)}")
    if isinstance(value, int | float) and not low <= value <= high:
        limits = f"{low:g} or more" if high == math.inf else f"a number from {low:g} to {high:g}"
        if high == _BELOW_1:
            limits = f"{low:g} or more, and below 1"
        raise RecipeError(f"{section}.{key} is {shown(value)}, expected {limits}")


def _check_sources(data: DataSection) -> None:
    """Sources are paths or names, weights positive numbers."""
    for source, weight in data.train.items():
        if not isinstance(source, str):
            raise RecipeError(f"data.train names the source {shown(source)}, expected {{path: weight}}")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
            raise RecipeError(f"data.train weight of {shown(source)} is {shown(weight)}, expected a positive number")
    for name, source in data.eval.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise RecipeError(f"data.eval holds {shown(name)}: {shown(source)}, expected {{name: path}}")


def _check_curriculum(curriculum: dict | None) -> None:
    """Both of its keys, each a whole number; whether they suit the block size is known when it is."""
    if curriculum is None:
        return
    keys = ("start_length", "steps")
    for key, value in curriculum.items():
        if key not in keys:
            raise RecipeError(_unknown("key in data.curriculum:", key, keys))
        if _checked(f"data.curriculum.{key}", value, (int,)) < 1:
            raise RecipeError(f"data.curriculum.{key} is {value}, expected 1 or more")
    if missing := [key for key in keys if key not in curriculum]:
        raise RecipeError(f"data.curriculum lacks {missing[0]}, expected {{start_length: tokens, steps: number}}")


# What transformers' kinds of rotary positions take beside their names, each a positive number; of some null, or 0, too.
_ROPE_NUMBERS = (
    "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor", "beta_fast", "beta_slow",
    "attention_factor", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor",
)  # fmt: skip
_ROPE_LISTS = ("short_factor", "long_factor")
_ROPE_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_ROPE_ZEROS = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # 0: as null


def _check_rope(place: str, parameters: dict) -> None:
    """Kinds that there are, of positive numbers: transformers warns of others at most, and computes with them."""
    for key, value in parameters.items():
        if (key in _ROPE_OPTIONAL and value is None) or (key in _ROPE_ZEROS and value == 0 and value is not False):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if key in ("rope_type", "type"):
            if value not in (kinds := ["default", *_rope_kinds()]):
                raise RecipeError(f"{place}.{key} is {shown(value)}, expected one of: {', '.join(kinds)}")
        elif key in _ROPE_LISTS:
            for item in value if isinstance(value, list) and value else [None]:
                if not isinstance(item, int | float) or isinstance(item, bool) or not item > 0:
                    raise RecipeError(f"{place}.{key} is {shown(value)}, expected a list of positive numbers")
        elif key == "truncate":
            _checked(f"{place}.{key}", value, (bool,))
        elif key not in _ROPE_NUMBERS:
            raise RecipeError(
                _unknown(f"key in {place}:", key, [*_ROPE_NUMBERS, *_ROPE_LISTS, "rope_type", "truncate"])
            )
        elif not number:
            raise RecipeError(f"{place}.{key} is {shown(value)}, expected a positive number")


def _check_lora(recipe: Recipe) -> None:
    """What the adapters stand beside, what moves them, and names or one regular expression of where they are."""
    targets = recipe.lora.target_modules
    if recipe.model.freeze_layers or recipe.model.freeze_embeddings:
        raise RecipeError(
            "model.freeze_layers and model.freeze_embeddings are refused beside lora, which freezes all of the model: "
            "leave them out"
        )
    if not recipe.model.init_from:
        raise RecipeError("lora trains adapters beside a model that is frozen: name an existing one in model.init_from")
    if recipe.optimizer.name == "muon":
        raise RecipeError(
            "optimizer.name muon is refused beside lora: it evens out the update of a matrix, and an adapter is the "
            "product of two; use adamw, the default there"
        )
    if not targets or not all(isinstance(name, str) and name for name in targets):
        words = "expected names of modules or one regular expression"
        raise RecipeError(f"lora.target_modules is {shown(targets)}, {words}")
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise RecipeError(f"lora.target_modules {shown(targets)} is no regular expression ({error})") from None


def _check_training(values: dict) -> dict:
    known = class_fields("transformers.training_args", "TrainingArguments")
    # transformers 5.17 has these under an older name, by which `build_arguments` hands them on.
    known = {
        key.replace("gradient_checkpointing", "activation_checkpointing"): kind for key, kind in known.items()
    } | known
    for key, value in values.items():
        if key not in known:
            raise RecipeError(_unknown("key in recipe section 'training':", key, known))
        if key in REFUSED_TRAINING_KEYS:
            raise RecipeError(f"training.{key} is refused: {REFUSED_TRAINING_KEYS[key]}")
        if key.endswith("_strategy") and value == "epoch":
            raise RecipeError(f"training.{key}: epoch is refused: a token stream has no epoch end; use steps")
        if key == "save_strategy" and value != "steps":
            raise RecipeError(f"training.save_strategy is {value!r}, expected steps: a run must resume")
        _check_value("training", key, _checked(f"training.{key}", value, known[key]))
    return {key: _recordable(f"training.{key}", value) for key, value in values.items()}


def _recordable(place: str, value):
    return ENDLESS if place in UNBOUNDED and isinstance(value, float) and value == math.inf else value


def _unknown(what: str, name: str, known) -> str:
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)[:20])}"
    return f"unknown {what} {shown(name)}; {hint}"


def _apply_override(content: dict, override: str) -> None:
    name, equals, value = override.removeprefix("--").partition("=")
    section, dot, key = name.partition(".")
    if not override.startswith("--") or not equals or not dot or not key:
        raise RecipeError(f"override {shown(override)} is not understood, expected --section.key=value")
    if not isinstance(content.setdefault(section, {}) or {}, dict):
        raise RecipeError(f"override {shown(override)}: recipe section {section!r} holds no keys")
    try:
        content[section] = (content[section] or {}) | {key: _override_value(name, value)}
    except yaml.YAMLError as error:
        raise RecipeError(f"override {shown(override)} is not valid YAML: {' '.join(str(error).split())}") from None


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
def class_fields(module: str, class_name: str) -> dict[str, tuple[type, ...]]:
    """Annotated fields of a class and their types, read from its source: importing transformers would take seconds.

    `dict[str, Any] | None` gives (dict, NoneType); enums and classes, which YAML cannot hold, are left out.
    """
    body = _class_body(module, class_name)
    annotations = {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}
    return {name: _plain_types(text) for name, text in annotations.items() if not text.startswith("ClassVar")}


def hf_optimizers() -> list[str]:
    """The names that HF's `TrainingArguments.optim` takes."""
    body = _class_body("transformers.training_args", "OptimizerNames")
    return [node.value.value for node in body if isinstance(node, ast.Assign)]


@cache
def _rope_kinds() -> list[str]:
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


def _plain_types(annotation: str) -> tuple[type, ...]:
    names = re.sub(r"\bLiteral\[.*?\]", "str", annotation)
    names = re.sub(r"\[.*?\]", "", names).split(" | ")
    return tuple(_TYPES[name] for name in names if name in _TYPES)
