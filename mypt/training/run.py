"""A whole run: build, train what is left, publish the final and the best model."""

import signal
import time
from pathlib import Path

from accelerate import Accelerator
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.checkpoints.complete import read_state
from mypt.errors import CheckFailed, CheckpointError, Interrupted, UnreadableCheckpoint, recipe_wording
from mypt.evaluation.forgetting import INFEASIBLE
from mypt.hardware.out_of_memory import explain_out_of_memory_at_start
from mypt.recipe import Recipe
from mypt.terminal import say
from mypt.training import run_folder
from mypt.training.build import build_trainer
from mypt.training.callbacks.coverage import write_ledger
from mypt.training.run_folder import others
from mypt.training.trainer.trainer import MyPTTrainer


@recipe_wording()
def train(recipe: Recipe, *, resume: bool | str | Path = False, assume_yes: bool = False) -> Path:
    """Build, train (or find that nothing is left to train) and publish the final and the best model.

    resume: as of `build_trainer`; True passes over a checkpoint that cannot be loaded. Returns the run folder. Raises
    MyPTError subclasses: Interrupted after a signal, when the checkpoint is saved; CheckFailed, after everything is
    published, if the upload that the recipe asks for failed, or no saved step kept every guarded set within the
    tolerance.
    """
    unreadable: dict[Path, str] = {}
    while True:
        try:
            return _train(recipe, resume, assume_yes, unreadable)
        except UnreadableCheckpoint as error:
            if resume is not True:
                advice = others(Path(recipe.training["output_dir"]), Path(error.checkpoint))
                raise CheckpointError(f"{error}; {advice}") from error
            unreadable[Path(error.checkpoint)] = error.reason


def _train(recipe: Recipe, resume: bool | str | Path, assume_yes: bool, unreadable: dict[Path, str]) -> Path:
    with explain_out_of_memory_at_start():
        trainer = build_trainer(recipe, resume=resume, assume_yes=assume_yes, unreadable=unreadable)
    try:
        return finish(trainer)
    finally:
        trainer.give_back()


def finish(trainer: MyPTTrainer) -> Path:
    """Train what is left of a built run and publish it, as `train` does."""
    run = Path(trainer.args.output_dir)
    done = read_state(Path(trainer.checkpoint)) if trainer.checkpoint else {"global_step": 0}
    stopped = _stopped_before(trainer, done)
    if stopped or done["global_step"] >= trainer.args.max_steps:
        trainer.settle()
        best = {name: done.get(name) for name in ("best_metric", "best_global_step", "best_model_checkpoint")}
        if (
            trainer.checkpoint and trainer.is_world_process_zero()
        ):  # a kill right after the last save may have left none
            write_ledger(run, done["global_step"], done["stateful_callbacks"]["CoverageCallback"]["attributes"])
        lines = [
            f"already complete: step {done['global_step']} of {trainer.args.max_steps}"
            + (f" ({stopped})" if stopped else "")
        ]
    else:
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=trainer.checkpoint)
        if trainer.state.global_step < trainer.args.max_steps and trainer.signals.stopping:
            _leave(trainer)
        best = vars(trainer.state)
        lines = [
            f"trained to step {trainer.state.global_step} in {time.monotonic() - started:.0f} s; the model is in {run}"
        ]
        if trainer.forgetting:
            lines.append(trainer.forgetting.report()["verdict"])
    if trainer.is_world_process_zero():
        run_folder.publish(run, best["best_model_checkpoint"])
        say(*lines)
    part(trainer.accelerator)
    # Last, since the other processes would not wait for hours.
    if trainer.upload and trainer.is_world_process_zero():
        trainer.upload.finish(run)
    if best["best_metric"] is not None and not best["best_metric"] < INFEASIBLE:
        raise CheckFailed(
            f"no saved step kept every guarded set within the tolerance; {run / run_folder.BEST_NAME} is the one that "
            f"lost least (step {best['best_global_step']})"
        )
    return run


def _stopped_before(trainer: MyPTTrainer, done: dict) -> str | None:
    """Why a run that ended before its last step would end there again, and what lets it go on."""
    if trainer.forgetting and trainer.forgetting.stopped_before(done):
        return "stopped by the forgetting guard; another forgetting.tolerance or action: warn goes on"
    if trainer.early_stopping and trainer.early_stopping.stopped_before(done):
        return "stopped early; a larger safety.early_stopping_patience, or null, goes on"
    return None


def _leave(trainer: MyPTTrainer) -> None:
    """End after a signal: all processes together, one of them with a word."""
    part(trainer.accelerator)
    number, state = trainer.signals.number, trainer.state
    if not trainer.is_world_process_zero():
        raise SystemExit(128 + number)
    checkpoint = Path(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    raise Interrupted(
        f"stopped by {signal.Signals(number).name} after step {state.global_step} of {state.max_steps}; "
        f"everything is in {checkpoint}: the same command with --resume goes on from there",
        number,
    )


def part(accelerator: Accelerator) -> None:
    """All processes end together: one that leaves while another still writes would take the whole launch down."""
    accelerator.wait_for_everyone()
    # gloo's threads need the interpreter's lock to drop the last messages. Whoever drops the group after this holds
    # that lock and waits for the threads: for ever, if they are not done by then (pytorch issues 56297 and 190489).
    time.sleep(0.1)
    accelerator.end_training()
