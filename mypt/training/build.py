"""Recipe -> data, model, optimizer, callbacks and Trainer, placed where a resume has to go on."""

import dataclasses
import math
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import set_seed as set_rank_seed
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from transformers import logging as transformers_logging

from mypt.checkpoints.complete import read_state
from mypt.errors import RecipeError
from mypt.models.configuration_mypt import MyPTConfig
from mypt.planning.coverage import planned_steps
from mypt.recipe import RESOLVED_NAME, Recipe, save_recipe
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.ledger import main_source
from mypt.streams.shard_stream import ShardStream
from mypt.training import run_folder
from mypt.training.arguments import OWN_OPTIMIZERS, build_arguments, default_arguments
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.forgetting import ForgettingCallback
from mypt.training.callbacks.metrics import MetricsCallback
from mypt.training.callbacks.progress import ProgressBarCallback
from mypt.training.data import RunData, resolve_data
from mypt.training.model import build_model, default_block_size
from mypt.training.optimizers import muon_factory
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
    seed = recipe.training.get("seed", 42)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    data = resolve_data(recipe)
    block_size = recipe.data.block_size or default_block_size(recipe.model)
    model = build_model(recipe.model, data, block_size, seed)
    block_size = block_size or model.config.max_position_embeddings
    stream = ShardStream(
        data.train,
        block_size=block_size,
        seed=recipe.training.get("data_seed", seed),
        document_mask=recipe.data.document_mask,
    )
    eval_sets = _eval_sets(recipe, data, block_size)
    recipe = _resolve(recipe, data, model, block_size)
    identity = _identity(recipe, stream, data, model)
    checkpoint = _claim(run, identity, resume)
    progress = _progress(checkpoint)
    args = _arguments(recipe, model, stream, *progress)
    _place(stream, args, start_sample=progress[1])

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
    trainer.checkpoint = checkpoint
    if PartialState().is_main_process:
        run_folder.record(run, identity)
        save_recipe(recipe, run / RESOLVED_NAME)
    # Each process its own dropout masks; a resume restores them from its checkpoint.
    set_rank_seed(seed, device_specific=True)
    return trainer


def _resolve(recipe: Recipe, data: RunData, model: PreTrainedModel, block_size: int) -> Recipe:
    """The recipe with the choices frozen that would otherwise depend on code or data."""
    training = dict(recipe.training)
    optim = training.pop("optim", None)  # HF's way to name an optimizer
    if optim and recipe.optimizer.name:
        raise RecipeError(f"optimizer.name {recipe.optimizer.name} and training.optim {optim}: keep one of them")
    name = recipe.optimizer.name or optim or ("muon" if isinstance(model.config, MyPTConfig) else "adamw")
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, block_size=block_size, eval=data.eval_sources),
        optimizer=dataclasses.replace(recipe.optimizer, name=name),
        training=training,
    )


def _identity(recipe: Recipe, stream: ShardStream, data: RunData, model: PreTrainedModel) -> dict:
    """What makes this run this run; a resume must agree on every entry."""
    architecture = model.config.to_diff_dict()
    volatile = ("dtype", "transformers_version", "_name_or_path", "architectures", "auto_map", "use_cache")
    return {
        # Without the paths: data that was moved is still the same data.
        "data": [
            {"fingerprint": reader.fingerprint, "weight": source.weight}
            for source, reader in zip(stream.sources, stream.readers, strict=True)
        ],
        "tokenizer": data.tokenizer_hash,
        "block_size": stream.block_size,
        "seed": recipe.training.get("seed", 42),
        "data_seed": stream.seed,
        "document_mask": stream.document_mask,
        "model": {key: value for key, value in sorted(architecture.items()) if key not in volatile},
        "init_from": recipe.model.init_from,
        "optimizer": recipe.optimizer.name,
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


def _progress(checkpoint: str | None) -> tuple[int, int]:
    """Steps done and the number of the next sample."""
    if not checkpoint:
        return 0, 0
    state = read_state(Path(checkpoint))
    return state["global_step"], state["stateful_callbacks"]["CoverageCallback"]["attributes"]["next_sample"]


def _arguments(recipe: Recipe, model: PreTrainedModel, stream: ShardStream, steps_done: int, next_sample: int):
    """TrainingArguments with the number of steps; every choice made here is then frozen into the recipe."""
    given = recipe.training
    per_step = (
        given.get("per_device_train_batch_size", 8)
        * given.get("gradient_accumulation_steps", 1)
        * PartialState().num_processes
    )
    main = main_source(stream.sources)
    share = stream.mixture.shares[main]
    steps, reason = planned_steps(
        max_steps=given.get("max_steps"),
        num_train_epochs=given.get("num_train_epochs"),
        coverage_target=recipe.coverage.target,
        samples=stream.samples_per_epoch,
        # of a mixture, the main source decides, and only its share of a step is drawn from it
        total_tokens=round(stream.sources[main].tokens / share),
        global_batch=1,
        block_size=stream.block_size,
    )
    if not given.get("max_steps", 0) > 0:
        # The length is in samples; a resume may take the rest of them in larger or smaller steps.
        steps = steps_done + max(0, math.ceil((steps - next_sample) / per_step))
    parameters = model.num_parameters(exclude_embeddings=True)
    args = build_arguments(recipe, parameters, steps)
    defaults = default_arguments(parameters, steps, bool(recipe.data.eval))
    chosen = {name: value for name, value in defaults.items() if name not in given}
    if PartialState().is_main_process:
        print(f"{steps:,} steps: {reason}")
        print(
            f"{model.num_parameters():,} parameters ({parameters:,} without embeddings), "
            f"{'bfloat16 autocast' if args.bf16 else str(model.dtype).removeprefix('torch.')} on {args.device}, "
            f"{recipe.optimizer.name}, learning rate {args.learning_rate:g}"
        )
        print(f"defaults: {', '.join(f'{name} {value}' for name, value in chosen.items())}")
    recipe.training |= chosen | {"max_steps": steps}
    recipe.training.pop("num_train_epochs", None)
    return args


def _place(stream: ShardStream, args, start_sample: int) -> None:
    """Give the stream this process's share of each step and the first sample not yet trained on."""
    stream.micro_batch_size = args.per_device_train_batch_size
    stream.rank, stream.world_size = args.process_index, args.world_size
    stream.start_sample = start_sample


def _eval_sets(recipe: Recipe, data: RunData, block_size: int) -> dict[str, EvalWindows]:
    limit = None if recipe.forgetting.eval_windows == "all" else recipe.forgetting.eval_windows
    return {
        name: EvalWindows(directory, block_size=block_size, max_windows=limit) for name, directory in data.eval.items()
    }


def _callbacks(recipe, model, stream, eval_sets, args, assume_yes):
    coverage = CoverageCallback(
        stream.sources,
        stream.block_size,
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
