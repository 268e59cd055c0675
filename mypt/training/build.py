"""Recipe -> data, model, optimizer, callbacks and Trainer, placed where a resume has to go on."""

import dataclasses
import math
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from accelerate.utils import set_seed as set_rank_seed
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from transformers import logging as transformers_logging

from mypt.checkpoints.adapter import INSTALL_PEFT
from mypt.checkpoints.complete import read_state
from mypt.errors import MyPTError, RecipeError
from mypt.evaluation.documents import require_document_mask
from mypt.models.configuration_mypt import MyPTConfig
from mypt.planning.coverage import planned_steps
from mypt.recipe import RESOLVED_NAME, ModelSection, Recipe, save_recipe
from mypt.streams.shard_stream import ShardStream
from mypt.training import run_folder
from mypt.training.arguments import OWN_OPTIMIZERS, build_arguments, default_arguments
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.forgetting import ForgettingCallback
from mypt.training.callbacks.metrics import MetricsCallback
from mypt.training.callbacks.progress import ProgressBarCallback
from mypt.training.callbacks.upload import UploadCallback
from mypt.training.data import RunData, resolve_data
from mypt.training.model import build_model, default_block_size
from mypt.training.optimizers import muon_factory
from mypt.training.stream import build_eval_sets, build_stream, data_identity, place_stream
from mypt.training.trainer import MyPTTrainer


def build_trainer(recipe: Recipe, *, resume: bool = False, assume_yes: bool = False) -> MyPTTrainer:
    """Everything that `recipe` describes, ready for `trainer.train(resume_from_checkpoint=trainer.checkpoint)`.

    resume: go on from the last complete checkpoint in training.output_dir, or start if there is none.
    assume_yes: do not ask below one pass over the data. Text sources are prepared, the run folder is claimed and the
    resolved recipe written. Raises MyPTError subclasses as the parts do.
    """
    if not recipe.training.get("output_dir"):
        raise RecipeError("training.output_dir is missing: say where the run goes, for example runs/first")
    run = Path(recipe.training["output_dir"])
    # The first PartialState decides for all; without `cpu` it would not know a CPU launch's other processes.
    PartialState(cpu=recipe.training.get("use_cpu", not torch.accelerator.is_available()))
    upload = _upload(recipe)
    seed = recipe.training.get("seed", 42)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    data = resolve_data(recipe)
    block_size = recipe.data.block_size or default_block_size(recipe.model)
    lora = _lora() if recipe.lora else None
    quantization = lora and lora.quantization(recipe.lora)
    model = build_model(recipe.model, data, block_size, seed, adapter=bool(lora), quantization=quantization)
    if recipe.data.document_mask:
        require_document_mask(model, recipe.model.init_from or recipe.model.preset)
    if lora:
        model = lora.attach_adapters(model, recipe.lora, recipe.model.init_from, seed)
    recipe = _resolve(recipe, data, model, block_size or model.config.max_position_embeddings)
    identity = _identity(recipe, data, model, run_folder.recorded_identity(run))
    checkpoint = _claim(run, identity, resume)
    steps_done, saved = _progress(checkpoint)
    stream = build_stream(recipe, data, saved)
    eval_sets = build_eval_sets(recipe, data, going_on=bool(checkpoint))
    args = _arguments(recipe, model, stream, steps_done)
    place_stream(stream, recipe, args)

    callbacks, forgetting = _callbacks(recipe, model, stream, eval_sets, args, assume_yes)
    trainer = MyPTTrainer(
        model=model,
        args=args,
        train_dataset=stream,
        eval_dataset=eval_sets or None,
        processing_class=data.tokenizer,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=_optimizer(recipe, args),
        forgetting=forgetting,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if upload:  # after those whose files it reads
        trainer.add_callback(upload)
    trainer.checkpoint, trainer.upload = checkpoint, upload
    if PartialState().is_main_process:
        run_folder.record(run, identity)
        save_recipe(recipe, run / RESOLVED_NAME)
    # Each process its own dropout masks; a resume restores them from its checkpoint.
    set_rank_seed(seed, device_specific=True)
    return trainer


def _lora():
    """The module mypt.training.lora, which needs an optional package."""
    try:
        from mypt.training import lora
    except ImportError as error:
        raise RecipeError(f"recipe section 'lora': {INSTALL_PEFT}") from error
    return lora


def _upload(recipe: Recipe) -> UploadCallback | None:
    """The hub is asked first: a wrong token should not show when hours of preparing or training are over."""
    if recipe.upload is None:
        return None
    upload, refused = UploadCallback(**vars(recipe.upload)), [None]
    if PartialState().is_main_process:
        try:
            upload.connect()
        except MyPTError as error:
            refused = [error]
    if broadcast_object_list(refused)[0]:  # to all: the others would wait for a process that has left
        raise refused[0]
    return upload


def _resolve(recipe: Recipe, data: RunData, model: PreTrainedModel, block_size: int) -> Recipe:
    """The recipe with the choices frozen that would otherwise depend on code or data."""
    training = dict(recipe.training)
    optim = training.pop("optim", None)  # HF's way to name an optimizer
    if optim and recipe.optimizer.name:
        raise RecipeError(f"optimizer.name {recipe.optimizer.name} and training.optim {optim}: keep one of them")
    muon = isinstance(model.config, MyPTConfig) and not recipe.lora
    name = recipe.optimizer.name or optim or ("muon" if muon else "adamw")
    return dataclasses.replace(
        recipe,
        model=_resolved_model(recipe, model),
        data=dataclasses.replace(recipe.data, block_size=block_size, eval=data.eval_sources),
        optimizer=dataclasses.replace(recipe.optimizer, name=name),
        training=training,
    )


def _resolved_model(recipe: Recipe, model: PreTrainedModel) -> ModelSection:
    """The section with the way in which rotary positions were stretched, if they were."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    stretched = isinstance(model.config, MyPTConfig) and rope.get("rope_type", "default") != "default"
    if not recipe.model.init_from or not stretched or recipe.lora:
        return recipe.model
    return dataclasses.replace(recipe.model, config=recipe.model.config | {"rope_parameters": dict(rope)})


def _identity(recipe: Recipe, data: RunData, model: PreTrainedModel, recorded: dict) -> dict:
    """What makes this run this run; a resume must agree on every entry."""
    architecture = model.config.to_diff_dict()
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
        "init_from": recipe.model.init_from,
        "optimizer": recipe.optimizer.name,
        "lora": dataclasses.asdict(recipe.lora) | {"base_weights": model.base_weights} if recipe.lora else None,
    }


def _claim(run: Path, identity: dict, resume: bool) -> str | None:
    with PartialState().main_process_first():
        checkpoint, skipped = run_folder.claim(run, identity, resume)
        if PartialState().is_main_process:
            for line in skipped:
                print(line)
            if skipped:
                run_folder.set_aside_incomplete(run, checkpoint)
            if checkpoint:
                print(f"resuming from {checkpoint}")
    return str(checkpoint) if checkpoint else None


def _progress(checkpoint: str | None) -> tuple[int, dict | None]:
    """Steps done and the saved state of the stream."""
    if not checkpoint:
        return 0, None
    state = read_state(Path(checkpoint))
    return state["global_step"], state["stateful_callbacks"]["CoverageCallback"]["attributes"]


def _arguments(recipe: Recipe, model: PreTrainedModel, stream: ShardStream, steps_done: int):
    """TrainingArguments with the number of steps; every choice made here is then frozen into the recipe."""
    given = recipe.training
    per_step = (
        given.get("per_device_train_batch_size", 8)
        * given.get("gradient_accumulation_steps", 1)
        * PartialState().num_processes
    )
    steps, reason = planned_steps(
        max_steps=given.get("max_steps"),
        num_train_epochs=given.get("num_train_epochs"),
        coverage_target=recipe.coverage.target,
        samples=stream.samples_per_epoch,
        total_tokens=stream.tokens_per_epoch,
        global_batch=1,
        block_size=stream.block_size,
    )
    if not given.get("max_steps", 0) > 0:
        # The length is in samples; a resume may take the rest of them in larger or smaller steps.
        steps = steps_done + max(0, math.ceil((steps - stream.start_sample) / per_step))
    parameters = model.num_parameters(exclude_embeddings=True)
    args = build_arguments(recipe, parameters, steps)
    defaults = default_arguments(parameters, steps, bool(recipe.data.eval), recipe.lora is not None)
    chosen = {name: value for name, value in defaults.items() if name not in given}
    if PartialState().is_main_process:
        print(f"{steps:,} steps: {reason}")
        print(
            f"{model.num_parameters():,} parameters ({parameters:,} without embeddings), "
            f"{'bfloat16 autocast' if args.bf16 else str(model.dtype).removeprefix('torch.')} on {args.device}, "
            f"{recipe.optimizer.name}, learning rate {args.learning_rate:g}"
        )
        if recipe.lora:
            trained = model.num_parameters(only_trainable=True)
            print(
                f"lora: {trained:,} of them are trained ({trained / model.num_parameters():.2%}), rank {recipe.lora.r}"
            )
        print(f"defaults: {', '.join(f'{name} {value}' for name, value in chosen.items())}")
    recipe.training |= chosen | {"max_steps": steps}
    recipe.training.pop("num_train_epochs", None)
    return args


def _callbacks(recipe, model, stream, eval_sets, args, assume_yes):
    coverage = CoverageCallback(
        stream,
        parameters={"total": model.num_parameters(), "non_embedding": model.num_parameters(exclude_embeddings=True)},
        confirm=recipe.coverage.confirm,
        strict=recipe.coverage.strict,
        assume_yes=assume_yes,
    )
    forgetting = None
    if eval_sets:
        section = recipe.forgetting
        forgetting = ForgettingCallback(
            eval_sets,
            target=section.target,
            guard=section.guard,
            tolerance=section.tolerance,
            action=section.action,
            time_budget=section.time_budget,
        )
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    progress = ProgressBarCallback(per_step * stream.block_size)
    return [c for c in (coverage, forgetting, MetricsCallback(), progress) if c is not None], forgetting


def _optimizer(recipe: Recipe, args):
    """MuonAdamW in the form that Trainer takes, or None where the recipe names one of HF's."""
    if recipe.optimizer.name not in OWN_OPTIMIZERS:
        return None
    return muon_factory, {
        "muon": recipe.optimizer.name == "muon",
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "momentum": recipe.optimizer.momentum,
        "ns_steps": recipe.optimizer.ns_steps,
        "bfloat16": args.bf16,
    }
