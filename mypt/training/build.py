"""Recipe -> data, model, optimizer, callbacks and Trainer, at the position where a resume continues."""

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import set_seed as set_rank_seed
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers import logging as transformers_logging

from mypt.checkpoints.adapter import INSTALL_PEFT
from mypt.checkpoints.environment import ENVIRONMENT_NAME, RecordedDataset, this_session
from mypt.checkpoints.probes import require_document_mask
from mypt.checkpoints.state import STATE_NAME, read_state
from mypt.errors import CheckpointError, RecipeError, UnreadableCheckpoint, recipe_wording
from mypt.files import free_for
from mypt.formatting import gibibytes
from mypt.hardware.processes import agreed, is_main_process, on_main, say_once
from mypt.hardware.speeds import identify
from mypt.inspection.dataset_commands import recorded_datasets
from mypt.planning.disk import Saving, plan_disk
from mypt.planning.step import OWN_OPTIMIZERS
from mypt.preparation.contamination import contamination_line, find_contamination
from mypt.recipe import AUTO, RESOLVED_NAME, Recipe, save_recipe
from mypt.storage.run_files import recorded_run
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.jit_stream import JitStream
from mypt.streams.shard_stream import ShardStream
from mypt.terminal import say
from mypt.training import run_folder
from mypt.training.arguments import hf_optimizer, refused_values
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.diagnosis import DiagnosisCallback
from mypt.training.callbacks.early_stopping import EarlyStoppingCallback
from mypt.training.callbacks.forgetting import ForgettingCallback
from mypt.training.callbacks.metrics import MetricsCallback
from mypt.training.callbacks.progress import ProgressBarCallback
from mypt.training.callbacks.throughput import ThroughputCallback
from mypt.training.callbacks.upload import UploadCallback
from mypt.training.data.fetched import as_given, fetched
from mypt.training.data.run_data import RunData, resolve_data
from mypt.training.data.run_stream import build_eval_sets, build_stream, place_stream
from mypt.training.interpolation import Start
from mypt.training.launch import refuse_zero, require_processes
from mypt.training.model.build import build_model
from mypt.training.model.freeze import freeze
from mypt.training.model.init_from import existing_model
from mypt.training.optim.optimizers import muon_factory
from mypt.training.request import default_block_size, output_dir
from mypt.training.resolve import resolve, resolve_arguments, run_identity
from mypt.training.resolve_hardware import Hardware, resolve_hardware
from mypt.training.tracking import require_start, require_trackers
from mypt.training.trainer.trainer import MyPTTrainer


@recipe_wording()
def build_trainer(
    recipe: Recipe,
    callbacks: Iterable[TrainerCallback] = (),
    *,
    resume: bool | str | Path = False,
    assume_yes: bool = False,
    unreadable: dict[Path, str] | None = None,
) -> MyPTTrainer:
    """Everything that `recipe` describes, ready for `trainer.train(resume_from_checkpoint=trainer.checkpoint)`.

    Text sources are prepared, the run folder is claimed and the resolved recipe written. The folder is locked until
    `trainer.give_back()` is called, the trainer is no longer used, or the process ends.

    Args:
        callbacks: More TrainerCallbacks; they come after MyPT's own, whose numbers they see.
        resume: True: resume from the last good checkpoint in training.output_dir, or start if there is none. A
            checkpoint's name there, or its path: resume from that one, and move later ones aside.
        assume_yes: Do not ask below one pass over the data.
        unreadable: Checkpoints to pass over, and why.

    Raises:
        FolderInUse: Another process trains in the folder.
        UnreadableCheckpoint: The checkpoint cannot be loaded; `trainer.train` raises it too.
        MyPTError: As the parts do.
    """
    run = output_dir(recipe)
    require_processes()
    # The first PartialState decides for all; without `cpu` it would not know a CPU launch's other processes.
    PartialState(cpu=recipe.training.get("use_cpu", not torch.accelerator.is_available()))
    require_trackers(recipe.training.get("report_to"))
    give_back = on_main(lambda: run_folder.hold(run)) or (lambda: None)
    try:
        trainer = _build(recipe, run, resume, assume_yes, unreadable, give_back)
        for callback in callbacks:
            trainer.add_callback(callback)
    except BaseException:
        give_back()
        raise
    weakref.finalize(trainer, give_back)
    return trainer


def _build(
    recipe: Recipe,
    run: Path,
    resume: bool | str | Path,
    assume_yes: bool,
    unreadable: dict[Path, str] | None,
    give_back: Callable[[], None],
) -> MyPTTrainer:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    recipe, copies = fetched(recipe)
    upload, seed = _upload(recipe), recipe.training.get("seed", 42)
    brought = (on_main(lambda: upload.restore(run)) or []) if upload and resume is True else []

    data = resolve_data(recipe)
    recorded = run_folder.recorded_identity(run)
    # The main process decides: all have to resume from the same checkpoint.
    checkpoint, skipped = agreed(on_main(lambda: run_folder.choose(run, resume, unreadable)))
    block_size = recipe.data.block_size or default_block_size(recipe.model)
    model = _model(recipe, data, block_size, seed, checkpoint)
    start = _start(recipe, data, block_size)

    recipe = resolve(recipe, data, model, block_size or _longest_context(recipe, model), recorded)
    identity = run_identity(recipe, data, model, recorded)
    _claim(run, identity, bool(resume), upload, brought)
    on_main(lambda: _report_start(run, checkpoint, skipped))
    steps_done, stream_state = _progress(checkpoint, bool(data.streamed))
    recipe, hardware = resolve_hardware(recipe, model, run if checkpoint else None)
    stream = build_stream(recipe, data, stream_state)
    recipe, args = resolve_arguments(recipe, data, model, stream, steps_done, hardware)
    place_stream(stream, recipe, args)
    eval_sets = build_eval_sets(recipe, data, going_on=bool(checkpoint))
    if not checkpoint:
        on_main(lambda: _report_contamination(data))
    on_main(lambda: _report_disk(run, args, hardware, bool(eval_sets)))

    coverage = _coverage(recipe, model, stream, assume_yes)
    forgetting = _forgetting(recipe, data, eval_sets, coverage)
    set_aside = None
    if checkpoint and is_main_process():
        set_aside = functools.partial(_set_aside, run, checkpoint, not isinstance(resume, bool), upload)
    resumed = {"checkpoint": str(checkpoint) if checkpoint else None, "set_aside": set_aside}
    ends = {"upload": upload, "start": start, "give_back": give_back}
    trainer = _trainer(recipe, args, data, model, stream, hardware, coverage, forgetting, **resumed, **ends)
    if is_main_process():
        session = this_session(hardware.machine, PartialState().num_processes)
        run_folder.record(run, identity, session, _recorded_datasets(data, copies), steps_done)
        save_recipe(as_given(recipe, copies), run / RESOLVED_NAME)
    # Each process its own dropout masks; a resume restores them from its checkpoint.
    set_rank_seed(seed, device_specific=True)
    return trainer


def _trainer(
    recipe: Recipe,
    args: TrainingArguments,
    data: RunData,
    model: PreTrainedModel,
    stream: ShardStream | JitStream,
    hardware: Hardware,
    coverage: CoverageCallback,
    forgetting: ForgettingCallback | None,
    *,
    upload: UploadCallback | None,
    start: Start | None,
    **options,
) -> MyPTTrainer:
    """options: checkpoint, set_aside and give_back of `MyPTTrainer`."""
    patience = recipe.safety.early_stopping_patience
    stopping = None if patience is None else EarlyStoppingCallback(forgetting, patience)
    interpolates = forgetting and forgetting.policy.guard and recipe.forgetting.interpolate == AUTO
    diagnosis = DiagnosisCallback(coverage, forgetting and forgetting.policy.target)
    ours = [coverage, forgetting, MetricsCallback(), ProgressBarCallback(), diagnosis]
    with refused_values(recipe, "HF's Trainer"):
        trainer = MyPTTrainer(
            model=model,
            args=args,
            train_dataset=stream,
            eval_dataset=forgetting.eval_sets if forgetting else None,
            processing_class=data.tokenizer,
            callbacks=[callback for callback in ours if callback],
            optimizer_cls_and_kwargs=_optimizer(recipe, args, model),
            forgetting=forgetting,
            early_stopping=stopping,
            upload=upload,
            start=start if interpolates else None,
            throughput=ThroughputCallback(stream.block_size, _speed_identity(hardware)),
            hardware=hardware,
            compile_layers=recipe.training["torch_compile"],
            on_nan=recipe.safety.on_nan,
            **options,
        )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    require_start(trainer.callback_handler.callbacks)
    for last in (upload, stopping):  # upload: after those whose files it reads
        if last:
            trainer.add_callback(last)
    return trainer


def _recorded_datasets(data: RunData, copies: dict[str, str]) -> list[RecordedDataset]:
    """copies: {local copy: URI} of those in object stores, which are recorded by their URIs."""
    uses: dict[str, list[str]] = {}
    for directory in data.train:
        uses.setdefault(copies.get(directory, directory), []).append("train")
    for name, directory in data.eval.items():
        uses.setdefault(copies.get(directory, directory), []).append(f"eval {name}")
    manifests = {copies.get(directory, directory): manifest for directory, manifest in data.manifests.items()}
    return recorded_datasets(uses, manifests)


def _report_contamination(data: RunData) -> None:
    """One line if an evaluation set is among the training data. Only the first documents of streamed text are here."""
    sets = {name: (directory, data.eval_splits.get(name, "val")) for name, directory in data.eval.items()}
    if line := contamination_line(find_contamination(sets, [*data.train], data.manifests)):
        say(line)


def _report_disk(run: Path, args: TrainingArguments, hardware: Hardware, evaluated: bool) -> None:
    """One line if the disk has no room for the run folder, by the estimate of `mypt plan`."""
    if not hardware.step:
        return
    saving = Saving(save_steps=args.save_steps, limit=args.save_total_limit, free=free_for(run))
    disk = plan_disk(hardware.dimensions, hardware.step, steps=args.max_steps, evaluated=evaluated, saving=saving)
    if not disk.fits:
        say(
            f"warning: {run} will need about {gibibytes(disk.peak)} GiB ({disk}), and {gibibytes(disk.free)} GiB are "
            "free for it: lower training.save_total_limit, or free some space"
        )


def _longest_context(recipe: Recipe, model: PreTrainedModel) -> int:
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    if limit <= 0:
        raise RecipeError(f"model.init_from {recipe.model.init_from} names no longest context; give data.block_size")
    return limit


def _model(
    recipe: Recipe, data: RunData, block_size: int | None, seed: int, checkpoint: Path | None
) -> PreTrainedModel:
    """The model, with the adapters or the frozen parts that the recipe asks for."""
    lora = _lora() if recipe.lora else None
    quantization = lora and lora.quantization(recipe.lora)
    options = {"adapter": bool(lora), "quantization": quantization, "checkpoint": checkpoint}
    try:
        model = build_model(recipe.model, data, block_size, seed, **options)
    except CheckpointError as error:
        if not (lora and checkpoint):
            raise
        words = f"the base of this run's adapters is not there: {error}; if it moved: --model.init_from=PATH"
        if Path(recipe.model.init_from).is_dir():
            words = (
                f"the base of this run's adapters cannot be loaded: {str(error).partition(';')[0]}; they continue "
                "beside the base that they began with alone: restore it, or name a copy of it: --model.init_from=PATH"
            )
        raise CheckpointError(words) from error
    if recipe.data.document_mask:
        require_document_mask(model, recipe.model.init_from or recipe.model.preset)
    if lora:
        model = lora.attach_adapters(model, recipe.lora, recipe.model.init_from, seed)
    if frozen := freeze(model, recipe.model, recipe.training):
        say_once(frozen)
    return model


def _start(recipe: Recipe, data: RunData, block_size: int | None) -> Start | None:
    """The model that training starts from, to be made again when it ends; None for a preset's random weights."""
    name = recipe.model.init_from
    if not name:
        return None
    build = functools.partial(existing_model, recipe.model, data, block_size, report=lambda *lines: None)
    return Start(name, None if recipe.lora else build)


def _lora():
    """The module mypt.training.model.lora, which needs an optional package."""
    try:
        from mypt.training.model import lora
    except ImportError as error:
        raise RecipeError(f"recipe section 'lora': {INSTALL_PEFT}") from error
    return lora


def _upload(recipe: Recipe) -> UploadCallback | None:
    """The store is asked first: a wrong token should not show when hours of preparing or training are over."""
    if recipe.upload is None:
        return None
    upload = UploadCallback(**vars(recipe.upload))
    on_main(upload.connect)
    return upload


def _claim(run: Path, identity: dict, resume: bool, upload: UploadCallback | None, brought: list[Path]) -> None:
    """Refuse a folder or a store of another run. brought: the files that were fetched from the store before."""
    is_fetched = run / ENVIRONMENT_NAME in brought  # the folder held no run before
    try:
        claim = functools.partial(run_folder.claim, run, identity, resume, upload.uri if is_fetched else None)
        on_main(claim)  # first: all processes end with the words of its refusal
        if not PartialState().is_main_process:
            claim()
        PartialState().wait_for_everyone()  # before the main process moves what the others look at
        if upload:
            run_id = recorded_run(run) or run_folder.run_hash(identity)
            on_main(lambda: upload.claim(run_id, resume=resume))
    except CheckpointError:
        if is_fetched:  # another run's: a wrong upload.uri leaves nothing behind
            run_folder.discard(brought)
        raise


def _report_start(run: Path, checkpoint: Path | None, skipped: list[str]) -> None:
    """Report from where the run starts; a run that starts anew moves incomplete checkpoints aside."""
    for line in skipped:
        say(line)
    if checkpoint:
        say(f"resuming from {checkpoint}")
    else:
        run_folder.set_aside_incomplete(run, None)


def _set_aside(run: Path, checkpoint: Path, chosen: bool, upload: UploadCallback | None) -> None:
    """The checkpoints after the one that the run resumes from, which are damaged or, if it was `chosen`, given up."""
    if not chosen:
        run_folder.set_aside_incomplete(run, checkpoint)
        return
    if upload:  # its store may have later ones that are not here
        upload.give_up_after(checkpoint.name)
    if aside := run_folder.set_aside_later(run, checkpoint):
        names = ", ".join(sorted(path.name for path in aside.iterdir()))
        say(f"{names}: moved to {aside}, since the run resumes from {checkpoint.name}")


def _progress(checkpoint: Path | None, streamed: bool) -> tuple[int, dict | None]:
    """Steps done and the saved state of the stream. Raises CheckpointError for a state that nothing can resume from."""
    if not checkpoint:
        return 0, None
    state = read_state(checkpoint)
    saved = state.coverage
    if saved is None:
        raise UnreadableCheckpoint(str(checkpoint), f"{STATE_NAME} does not record how far the data was read")
    unknown = state.trainer.keys() - {field.name for field in fields(TrainerState)}
    if unknown or ("lanes" if streamed else "weights") not in saved:
        fault = f"has {', '.join(sorted(unknown))}" if unknown else "does not record where the data stream was"
        raise CheckpointError(
            f"{checkpoint / STATE_NAME} {fault}, which this version of mypt and transformers cannot resume from; "
            "resume with the version that saved it, or start a new run"
        )
    return state.step, saved


def _coverage(recipe: Recipe, model: PreTrainedModel, stream, assume_yes: bool) -> CoverageCallback:
    parameters = {"total": model.num_parameters(), "non_embedding": model.num_parameters(exclude_embeddings=True)}
    if recipe.lora:
        adapters = model.num_parameters(only_trainable=True)
        parameters = {"total": parameters["total"] - adapters, "adapters": adapters}
    section = recipe.coverage
    return CoverageCallback(
        stream,
        parameters=parameters,
        confirm=section.confirm,
        strict=section.strict,
        assume_yes=assume_yes,
        init_from=recipe.model.init_from,
    )


def _forgetting(
    recipe: Recipe, data: RunData, eval_sets: dict[str, EvalWindows], coverage: CoverageCallback
) -> ForgettingCallback | None:
    if not eval_sets:
        return None
    section, sources = recipe.forgetting, list(data.train)
    return ForgettingCallback(
        eval_sets,
        target=section.target,
        guard=None if section.guard is None else list(section.guard),
        tolerance=section.tolerance,
        action=section.action,
        act_at=section.act_at,
        coverage=coverage,
        replay={name: sources.index(directory) for name, directory in data.replay.items()},
        time_budget=section.time_budget,
    )


def _speed_identity(hardware: Hardware) -> dict | None:
    """The identity by which a plan recognises this run's speed; None for a model that plans do not know by formulas."""
    if hardware.step is None:
        return None
    return identify(hardware.machine, hardware.dimensions, hardware.step, PartialState().num_processes)


def _optimizer(recipe: Recipe, args, model):
    """MuonAdamW or HF's optimizer of that name, in the form that Trainer takes."""
    if recipe.optimizer.name not in OWN_OPTIMIZERS:
        return hf_optimizer(recipe.optimizer.name, args, model)
    refuse_zero(recipe.optimizer.name, recipe.training)
    return muon_factory, {
        "muon": {"muon": True, "adamw": False}[recipe.optimizer.name],
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "momentum": recipe.optimizer.momentum,
        "ns_steps": recipe.optimizer.ns_steps,
        "bfloat16": args.bf16,
    }
