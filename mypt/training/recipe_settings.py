"""Decide from a recipe, alike for a plan and for a run and without torch: optimizer, rate, memory, evaluations."""

import math

from mypt.hardware.choices import GIVEN, autocast_dtype, choose_attention, choose_dtype
from mypt.hardware.machine import Machine
from mypt.planning.coverage import whole
from mypt.planning.evaluation_budget import training_passes
from mypt.planning.optimizer import Choice, choose_optimizer
from mypt.planning.step import MICRO_BATCH, STATES
from mypt.recipe import AUTO, Recipe
from mypt.training.launch import WHY_NOT_ZERO, zero_stage

LORA_RATE = 2  # times the whole model's; from 7B parameters on it makes QLoRA's 2e-4 (Dettmers et al. 2023)
MUON_RATE = 2  # times AdamW's, from scratch: docs/optimizers.md has the runs

ADAPTERS = Choice("adamw", "auto: for adapters")
NOT_MYPT = Choice("adamw", "auto: the model is not MyPT's own class")


def choose_run_optimizer(
    recipe: Recipe, dimensions: dict | None, block_size: int | None, processes: int, fsdp: int = 1
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


def kept_as(attention: str | None) -> str:
    """The name under which the memory model knows it: all fused kernels keep as much as SDPA."""
    return "eager" if attention == "eager" else "sdpa"


def memory_settings(recipe: Recipe, machine: Machine, block_size: int | None) -> dict:
    """Fields of `Step` that a recipe gives, and those that training will choose on this machine."""
    training, weights = recipe.training, recipe.model.dtype or "float32"
    autocast = autocast_dtype(training) or choose_dtype(machine, weights).value
    settings = {"weight_dtype": weights, "optimizer": _known_optimizer(recipe)}
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
    return settings


def evaluation_settings(recipe: Recipe, layers: int) -> dict:
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


def memory_notes(recipe: Recipe) -> list[str]:
    """The assumptions of `memory_settings`."""
    notes = []
    if _known_optimizer(recipe) != recipe.optimizer.name:
        notes.append(f"the memory of optimizer {recipe.optimizer.name} is not known: AdamW's is assumed")
    if recipe.lora and recipe.lora.load_in_4bit:
        notes.append("lora.load_in_4bit: the frozen weights are counted in model.dtype, which is more")
    return notes


def _known_optimizer(recipe: Recipe) -> str:
    """The chosen one as the memory model knows it."""
    return recipe.optimizer.name if recipe.optimizer.name in STATES else "adamw"
