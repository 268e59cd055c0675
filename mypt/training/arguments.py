"""TrainingArguments from a recipe: HF's names verbatim, our defaults where HF's do not suit GPT training."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mypt.errors import MyPTError, RecipeError, shown
from mypt.hardware.out_of_memory import is_out_of_memory
from mypt.planning.step import OWN_OPTIMIZERS
from mypt.recipe import OptimizerSection, Recipe
from mypt.terminal import say
from mypt.training.optim.schedules import require_schedule, schedule_arguments, warmup_length
from mypt.training.recipe_settings import default_learning_rate


class RunArguments(TrainingArguments):
    """TrainingArguments of one device per process.

    With several, Trainer splits each micro-batch in threads (DataParallel): slower, and not the recipe's batch.
    """

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def default_arguments(recipe: Recipe, parameters: int, steps: int) -> dict:
    """Our defaults; `docs/recipe.md` lists them with the reason for each.

    parameters: non-embedding parameters of the model; steps: optimizer steps of the run.
    """
    return {
        "learning_rate": default_learning_rate(recipe, parameters),
        "warmup_steps": min(max(1, steps // 10), 2_000, max(0, steps - 1)),
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


# TrainingArguments that nothing reads here: the stream is its own loader, the evaluator its own loop, uploads and
# launches have their own settings.
UNREAD = (
    "dataloader_drop_last", "dataloader_multiprocessing_context", "dataloader_in_order", "train_sampling_strategy",
    "length_column_name", "label_names", "include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches",
    "eval_use_gather_object", "eval_accumulation_steps", "prediction_loss_only", "do_train", "do_eval", "do_predict",
    "local_rank", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision",
)  # fmt: skip


def unused_settings(recipe: Recipe) -> list[str]:
    """Settings of a recipe that have no effect: its optimizer, its schedule or its Trainer does not have them."""
    names = [] if recipe.optimizer.name == "muon" else ["momentum", "ns_steps"]
    if "lr_scheduler_type" in recipe.training:
        names += ["schedule", "cooldown", "floor"]
    elif recipe.optimizer.schedule != "wsd":
        names += ["cooldown"]
    given, usual = vars(recipe.optimizer), vars(OptimizerSection())
    unread = [name for name in UNREAD if name in recipe.training]
    if not recipe.training.get("fsdp") and os.environ.get("ACCELERATE_USE_FSDP") != "true":
        unread += ["fsdp_config"] * ("fsdp_config" in recipe.training)
    return [
        *(f"optimizer.{name} {given[name]}" for name in names if given[name] != usual[name]),
        *(f"training.{name} {shown(recipe.training[name], 40)}" for name in unread),
    ]


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
    if "activation_checkpointing" not in TrainingArguments.__dataclass_fields__:  # its name before transformers 5.23
        values = {key.replace("activation_checkpointing", "gradient_checkpointing"): values[key] for key in values}
    fixed = {
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "metric_for_best_model": "eval_constrained_loss" if recipe.data.eval else None,
        "greater_is_better": False if recipe.data.eval else None,
    }
    try:
        args = RunArguments(**values, **fixed)
    except Exception as error:
        key = next((key for key in given if _accepts({k: v for k, v in values.items() if k != key} | fixed)), None)
        named = f"training: {key} {shown(given[key])}" if key else "training: what is given"
        raise RecipeError(f"{named} is refused by TrainingArguments: {_words(error)}") from error
    require_schedule(args, steps)
    if (visible := super(RunArguments, args).n_gpu) > 1:
        say(f"{visible} GPUs are visible and one is used; `accelerate launch scripts/train.py` uses all")
    return args


def _accepts(values: dict) -> bool:
    try:
        return bool(TrainingArguments(**values))
    except Exception:
        return False


@contextmanager
def refused_values(recipe: Recipe, what: str) -> Iterator[None]:
    """Raise an error of a library for a value of the recipe as a RecipeError that names the values that it was given.

    what: that uses them. A MyPTError passes, running out of memory too; `--debug` shows the traceback.
    """
    try:
        yield
    except MyPTError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        usual = {"output_dir", "max_steps", "learning_rate", "warmup_steps", "logging_steps", "seed"}
        given = ", ".join(f"{key} {shown(value, 40)}" for key, value in recipe.training.items() if key not in usual)
        raise RecipeError(f"training: {what} does not accept these values ({given}): {_words(error)}") from error


def _words(error: Exception) -> str:
    """The error in a line; of one whose text alone explains little (KeyError: 'x') with its kind."""
    text = " ".join(str(error).split())
    named = text if text and not isinstance(error, LookupError | AssertionError) else f"{type(error).__name__} {text}"
    return named if len(named) <= 500 else f"{named[:497]}..."


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
    except Exception as error:
        raise RecipeError(f"optimizer.name {name}: {_words(error)}") from error
