"""Resolve the values that a recipe leaves open, and the identity of a run."""

import dataclasses
import math
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments

from mypt.checkpoints.adapter import weights_fingerprint
from mypt.errors import RecipeError
from mypt.hardware.processes import agreed, is_main_process, say_once
from mypt.models.configuration_mypt import MyPTConfig
from mypt.planning.coverage import planned_steps
from mypt.planning.evaluation_budget import Evaluation, plan_evaluation
from mypt.planning.optimizer import Choice
from mypt.planning.parameters import dimensions_of
from mypt.planning.step import MICRO_BATCH
from mypt.recipe import AUTO, ModelSection, Recipe
from mypt.streams.jit_stream import JitStream
from mypt.streams.shard_stream import ShardStream
from mypt.training.arguments import build_arguments, default_arguments, unused_settings
from mypt.training.data.run_data import RunData
from mypt.training.data.run_stream import data_identity
from mypt.training.data.text import length_follows_from_data, tokenizer_name
from mypt.training.recipe_settings import choose_run_optimizer, evaluation_settings
from mypt.training.resolve_hardware import REUSED, Hardware, is_sharded, passes_per_step, resolve_compile, with_values


def resolve(recipe: Recipe, data: RunData, model: PreTrainedModel, block_size: int, recorded: dict) -> Recipe:
    """The recipe with the choices frozen that would otherwise depend on code or data; the optimizer's is printed.

    recorded: the identity of the run that the folder holds, whose optimizer is kept where the recipe leaves it open.
    """
    optimizer = _optimizer(recipe, model, block_size, recorded)
    say_once(f"optimizer: {optimizer.value} ({optimizer.reason})")
    return dataclasses.replace(
        recipe,
        model=_resolved_model(recipe, model),
        tokenizer=dataclasses.replace(recipe.tokenizer, name=tokenizer_name(recipe)),
        data=dataclasses.replace(
            recipe.data,
            block_size=block_size,
            eval=data.eval_sources,
            val_fraction=0.0 if data.own_validation else recipe.data.val_fraction,
        ),
        optimizer=dataclasses.replace(recipe.optimizer, name=optimizer.value),
        training={key: value for key, value in recipe.training.items() if key != "optim"},
    )


def _optimizer(recipe: Recipe, model: PreTrainedModel, block_size: int, recorded: dict) -> Choice:
    optim, name = recipe.training.get("optim"), recipe.optimizer.name  # `optim` is HF's way to name an optimizer
    if optim and name != AUTO:
        raise RecipeError(f"optimizer.name {name} and training.optim {optim}: keep one of them")
    if not optim and name == AUTO and recorded.get("optimizer"):
        return Choice(recorded["optimizer"], REUSED)
    dimensions = dimensions_of(model.config.to_dict()) if isinstance(model.config, MyPTConfig) else None
    processes = PartialState().num_processes
    return choose_run_optimizer(recipe, dimensions, block_size, processes, fsdp=processes if is_sharded() else 1)


def _resolved_model(recipe: Recipe, model: PreTrainedModel) -> ModelSection:
    """The section with the way in which rotary positions were stretched, if they were."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    stretched = isinstance(model.config, MyPTConfig) and rope.get("rope_type", "default") != "default"
    if not recipe.model.init_from or not stretched or recipe.lora:
        return recipe.model
    return dataclasses.replace(recipe.model, config=recipe.model.config | {"rope_parameters": dict(rope)})


def run_identity(recipe: Recipe, data: RunData, model: PreTrainedModel, recorded: dict) -> dict:
    """The identity of this run; a resume must agree on every entry."""
    # Trainer sets the special tokens' ids when it begins; the tokenizer stands for them. Early versions recorded them.
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    before = recorded.get("model") or {}
    architecture = {key: value for key, value in model.config.to_diff_dict().items() if key not in tokens}
    architecture |= {key: before[key] for key in tokens if key in before}
    volatile = ("dtype", "transformers_version", "_name_or_path", "architectures", "auto_map", "use_cache")
    seed = recipe.training.get("seed", 42)
    return {
        # Without the paths: data that was moved is still the same data. Without the weights: they may change.
        "data": data_identity(data, recorded.get("data", [])),
        "tokenizer": data.tokenizer_hash,
        "block_size": recipe.data.block_size,
        "seed": seed,
        "data_seed": recipe.training.get("data_seed", seed),
        "order": recipe.data.order,
        "curriculum": recipe.data.curriculum,
        "document_mask": recipe.data.document_mask,
        "model": {key: value for key, value in sorted(architecture.items()) if key not in volatile},
        "init_from": _base(recipe, model, recorded),
        "optimizer": recipe.optimizer.name,
        "lora": dataclasses.asdict(recipe.lora) | {"base_weights": model.base_weights} if recipe.lora else None,
        "frozen": {"layers": recipe.model.freeze_layers, "embeddings": recipe.model.freeze_embeddings}
        if recipe.model.freeze_layers or recipe.model.freeze_embeddings
        else None,
    }


def _base(recipe: Recipe, model: PreTrainedModel, recorded: dict) -> dict | str | None:
    """The content of model.init_from; what is recorded of it if it is gone and the run needs it no more.

    Versions that recorded its name alone can be compared by name, and by the weights that a LoRA run recorded.
    """
    name, before = recipe.model.init_from, recorded.get("init_from")
    if name is None:
        return None
    if isinstance(before, str):
        same = Path(before).resolve() == Path(name).resolve()
        return before if same or (recorded.get("lora") or {}).get("base_weights") else name
    if recipe.lora:
        return {"weights": model.base_weights}
    weights = agreed(weights_fingerprint(name) if is_main_process() else None)
    if weights is None and before:
        say_once(
            f"model.init_from {name} is not there any more: the run resumes from its checkpoint, which contains the "
            "whole model"
        )
        return before
    return {"weights": weights}


def resolve_evaluation(
    recipe: Recipe, data: RunData, model: PreTrainedModel, steps: int, sequences: int, recorded: Recipe | None
) -> tuple[Recipe, Evaluation | None]:
    """The recipe with how often and on how many windows it evaluates, and the reason; None without evaluation sets.

    Args:
        steps: Optimizer steps of the run.
        sequences: Sequences of the global batch.
        recorded: The recipe of the run that is resumed. Its interval is kept where the recipe gives none and the run is
            as long as it was.
    """
    if not data.eval:
        return recipe, None
    given, before = dict(recipe.training), recorded.training if recorded else {}
    if not given.get("eval_steps") and before.get("max_steps") == steps and before.get("eval_steps"):
        given["eval_steps"] = before["eval_steps"]
    recipe, recalled = dataclasses.replace(recipe, training=given), []
    if recorded and recipe.forgetting.eval_windows == recorded.forgetting.eval_windows:
        recalled.append("forgetting.eval_windows")
    if given.get("eval_steps") and given["eval_steps"] == before.get("eval_steps"):
        recalled.append("training.eval_steps")
    splits = [(data.manifests[path].splits, data.eval_splits.get(name, "val")) for name, path in data.eval.items()]
    chosen = plan_evaluation(
        steps=steps,
        sequences=sequences,
        block_size=recipe.data.block_size,
        sets=[found[split].tokens if split in found else None for found, split in splits],
        recalled=recalled,
        **evaluation_settings(recipe, getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1)),
    )
    recipe = with_values(recipe, "forgetting", eval_windows=chosen.windows)
    return with_values(recipe, "training", eval_steps=chosen.eval_steps), chosen


def resolve_arguments(
    recipe: Recipe,
    data: RunData,
    model: PreTrainedModel,
    stream: ShardStream | JitStream,
    steps_done: int,
    hardware: Hardware,
) -> tuple[Recipe, TrainingArguments]:
    """The recipe with every choice frozen into it, and its TrainingArguments; the choices are printed.

    Args:
        stream: The training stream, whose size decides the number of steps that the recipe leaves open.
        steps_done: Optimizer steps of the checkpoint that the run resumes from.
    """
    passes = passes_per_step(recipe)
    per_step = recipe.training.get("per_device_train_batch_size", MICRO_BATCH) * passes * PartialState().num_processes
    steps, reason = _steps(recipe, stream, steps_done, per_step)
    compiled, compile_choice = resolve_compile(recipe, hardware, model, steps)
    recipe = with_values(recipe, "training", torch_compile=compiled)
    recipe, evaluation = resolve_evaluation(recipe, data, model, steps, per_step, hardware.recorded)
    parameters = model.num_parameters(exclude_embeddings=True)
    # The passes are not frozen: on another number of processes others make the same global batch.
    args = build_arguments(with_values(recipe, "training", gradient_accumulation_steps=passes), parameters, steps)
    defaults = default_arguments(recipe, parameters, steps)
    chosen = {name: value for name, value in defaults.items() if name not in recipe.training}
    say_once(f"{steps:,} steps: {reason}", *hardware.lines, compile_choice)
    say_once(*_model_lines(recipe, model, args, parameters, steps))
    say_once(f"defaults: {', '.join(f'{name} {value}' for name, value in chosen.items())}")
    if evaluation:
        say_once(evaluation)
    training = recipe.training | chosen | {"max_steps": steps}
    training.pop("num_train_epochs", None)
    return dataclasses.replace(recipe, training=training), args


def _steps(recipe: Recipe, stream: ShardStream | JitStream, steps_done: int, per_step: int) -> tuple[int, str]:
    """Optimizer steps of the run and the reason; per_step: sequences of the global batch."""
    given = recipe.training
    length, reason = planned_steps(
        max_steps=given.get("max_steps"),
        num_train_epochs=given.get("num_train_epochs"),
        coverage_target=recipe.coverage.target,
        samples=stream.samples_per_epoch,
        total_tokens=stream.tokens_per_epoch,
        global_batch=1,  # so that a length that follows from the data is in samples
        block_size=stream.block_size,
    )
    if not length_follows_from_data(recipe):
        return length, reason
    if isinstance(stream, JitStream):
        # The schedule is laid out over the length, so it does not change when the stream has counted an epoch.
        reason += ", counted" if stream.expected.exact else "; an estimate, which decides the length for good"
    # A resume may take the samples that are left in larger or smaller steps.
    return steps_done + max(0, math.ceil((length - stream.start_sample) / per_step)), reason


def _model_lines(recipe: Recipe, model: PreTrainedModel, args: TrainingArguments, parameters: int, steps: int):
    """Lines about the model, its optimizer and settings that have no effect; parameters: without embeddings."""
    yield (
        f"{model.num_parameters():,} parameters ({parameters:,} without embeddings), "
        f"on {args.device}, {recipe.optimizer.name}, learning rate {args.learning_rate:g}"
    )
    if recipe.lora:
        trained = model.num_parameters(only_trainable=True)
        yield f"lora: {trained:,} of them are trained ({trained / model.num_parameters():.2%}), rank {recipe.lora.r}"
        yield from model.lines
    if unused := unused_settings(recipe):
        yield f"without effect on {recipe.optimizer.name}, this schedule or this Trainer: {', '.join(unused)}"
    if (warmup := args.get_warmup_steps(steps)) > steps:
        yield f"warm-up of {warmup:,} steps: the run ends in it, at {steps / warmup:.1%} of the learning rate"
