"""TrainingArguments from a recipe: HF's names verbatim, our defaults where HF's do not suit GPT training."""

import math

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mypt.errors import RecipeError
from mypt.recipe import OWN_OPTIMIZERS, OptimizerSection, Recipe
from mypt.training.schedules import schedule_arguments, warmup_length

LORA_RATE = 2  # times the whole model's; from 7B parameters on it makes QLoRA's 2e-4 (Dettmers et al. 2023)
MUON_RATE = 2  # times AdamW's, from scratch: docs/optimizers.md has the runs


def default_learning_rate(recipe: Recipe, parameters: int) -> float:
    """AdamW's for a model of `parameters` non-embedding parameters (Kaplan et al. 2020, eq. D.1).

    That of adapters, and of Muon from scratch, is a multiple of it.
    """
    rate = round(max(0.003239 - 0.0001395 * math.log(max(parameters, 1)), 1e-4), 6)
    if recipe.lora:
        return rate * LORA_RATE
    return rate * MUON_RATE if recipe.optimizer.name == "muon" and not recipe.model.init_from else rate


def default_arguments(recipe: Recipe, parameters: int, steps: int) -> dict:
    """Our defaults; `docs/recipe.md` lists them with the reason for each.

    parameters: non-embedding parameters of the model; steps: optimizer steps of the run.
    """
    return {
        "learning_rate": default_learning_rate(recipe, parameters),
        "warmup_steps": min(max(1, steps // 10), 2_000),
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": max(1, min(50, steps // 20)),
        "eval_strategy": "steps" if recipe.data.eval else "no",
        "save_strategy": "steps",
        "save_steps": max(1, math.ceil(steps / 10)),
        "save_total_limit": 3,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "log_level_replica": "error",
        "logging_nan_inf_filter": False,
        # Trainer writes this into the model's config; false would make every loaded checkpoint generate slowly.
        "use_cache": True,
    }


def unused_settings(recipe: Recipe) -> list[str]:
    """What a recipe sets in `optimizer` though its optimizer or its schedule has no such thing."""
    names = [] if recipe.optimizer.name == "muon" else ["momentum", "ns_steps"]
    if "lr_scheduler_type" in recipe.training:
        names += ["schedule", "cooldown", "floor"]
    elif recipe.optimizer.schedule != "wsd":
        names += ["cooldown"]
    given, usual = vars(recipe.optimizer), vars(OptimizerSection())
    return [f"optimizer.{name} {given[name]}" for name in names if given[name] != usual[name]]


def build_arguments(recipe: Recipe, parameters: int, steps: int) -> TrainingArguments:
    """TrainingArguments for `steps` optimizer steps. Raises RecipeError with HF's own words for a value it refuses."""
    own = ("num_train_epochs", "torch_compile")  # of the whole model at once, where ours is layer by layer
    given = {key: value for key, value in recipe.training.items() if key not in own}
    values = default_arguments(recipe, parameters, steps) | given
    values["max_steps"] = steps
    if recipe.optimizer.name not in OWN_OPTIMIZERS:
        values["optim"] = recipe.optimizer.name
    elif "optim_args" in values:
        raise RecipeError(f"training.optim_args is for HF's optimizers, and optimizer.name is {recipe.optimizer.name}")
    if not recipe.data.eval:
        values["eval_strategy"] = "no"
    warmup = warmup_length(values["warmup_steps"], steps)
    if "lr_scheduler_type" not in values:
        if "lr_scheduler_kwargs" in values:
            raise RecipeError(
                "training.lr_scheduler_kwargs needs a training.lr_scheduler_type; of optimizer.schedule "
                f"{recipe.optimizer.schedule} the settings are optimizer.cooldown and optimizer.floor"
            )
        values |= schedule_arguments(recipe.optimizer, steps, warmup)
    try:
        args = TrainingArguments(
            **values,
            remove_unused_columns=False,
            ignore_data_skip=True,
            metric_for_best_model="eval_constrained_loss" if recipe.data.eval else None,
            greater_is_better=False if recipe.data.eval else None,
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training: {' '.join(str(error).split())}") from None
    if args.n_gpu > 1:
        # Trainer would split each micro-batch in threads (DataParallel): slower, and another batch than the recipe's.
        print(f"{args.n_gpu} GPUs are visible and one is used; `accelerate launch scripts/train.py` uses all")
        args._n_gpu = 1
    return args


def hf_optimizer(name: str, args: TrainingArguments, model: PreTrainedModel) -> tuple[type, dict]:
    """Class and settings of HF's optimizer `name`, before anything is written.

    Raises RecipeError with HF's own words for one that needs a package or a setting that is not there, and for those
    that measure other weights than they train.
    """
    if name.startswith("schedule_free"):
        raise RecipeError(
            f"optimizer.name {name} is refused: the weights that it measures are a mean, those that it trains are "
            "others, and a checkpoint holds one of both; optimizer.schedule: wsd needs no length in advance either"
        )
    try:
        return Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"optimizer.name {name}: {' '.join(str(error).split())}") from None
