"""A whole run: build, train what is left, publish the final and the best model, record how it ended."""

import contextlib
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.checkpoints.interpolated import InterpolationReport, chosen_point
from mypt.checkpoints.state import RunState, read_state
from mypt.errors import (
    CheckFailed,
    CheckpointError,
    Diverged,
    Interrupted,
    MyPTError,
    UnreadableCheckpoint,
    recipe_wording,
)
from mypt.evaluation.evaluator import Evaluator
from mypt.evaluation.forgetting import kept_all
from mypt.hardware.out_of_memory import explain_out_of_memory_at_start, is_out_of_memory
from mypt.recipe import Recipe
from mypt.terminal import say
from mypt.training import run_folder
from mypt.training.build import build_trainer
from mypt.training.callbacks.coverage import write_ledger
from mypt.training.interpolation import InterpolatedBest, describe, kept_guards, record
from mypt.training.result import RESULT_NAME, Result, read_result, write_result
from mypt.training.run_folder import others
from mypt.training.trainer.trainer import MyPTTrainer


@runtime_checkable
class BeforeUpload(Protocol):
    """A callback that writes into the finished run folder what is to go up with it to an object store."""

    def before_upload(self, run: Path) -> None:
        """Write it. The main process alone calls this; result.json has how the run ends if nothing fails."""


class Ending(NamedTuple):
    """How a run ended, as `Result` has it."""

    state: str
    reason: str
    exit_code: int = 0


@recipe_wording()
def train(
    recipe: Recipe,
    callbacks: Iterable[TrainerCallback] = (),
    *,
    resume: bool | str | Path = False,
    assume_yes: bool = False,
) -> Path:
    """Build, train (or find that nothing is left to train) and publish the final and the best model.

    Args:
        callbacks: As of `build_trainer`.
        resume: As of `build_trainer`; True passes over a checkpoint that cannot be loaded.
        assume_yes: Do not ask below one pass over the data.

    Returns:
        The run folder, with `result.json` (`Result`).

    Raises:
        Interrupted: After a signal, when the checkpoint is saved.
        CheckFailed: After everything is published, if the upload that the recipe asks for failed, or no saved step
            kept every guarded set within the tolerance and no interpolation towards the start does.
        MyPTError: As `build_trainer`.
    """
    unreadable: dict[Path, str] = {}
    callbacks = [*callbacks]  # for a second attempt, too
    while True:
        try:
            with explain_out_of_memory_at_start():
                trainer = build_trainer(recipe, callbacks, resume=resume, assume_yes=assume_yes, unreadable=unreadable)
            try:
                return finish(trainer)
            finally:
                trainer.give_back()
        except UnreadableCheckpoint as error:
            if resume is not True:
                advice = others(Path(recipe.training["output_dir"]), Path(error.checkpoint))
                raise CheckpointError(f"{error}; {advice}") from error
            unreadable[Path(error.checkpoint)] = error.reason


def finish(trainer: MyPTTrainer) -> Path:
    """Train what is left of a built run, publish it as `train` does and write `result.json`."""
    run = Path(trainer.args.output_dir)
    saved = read_state(Path(trainer.checkpoint)) if trainer.checkpoint else RunState({"global_step": 0})
    done: dict = saved.trainer
    early, began = _stopped_before(trainer, saved), time.monotonic()
    is_complete = bool(early) or done["global_step"] >= trainer.args.max_steps
    report, made = None, False
    try:
        if is_complete:
            lines = _complete(trainer, saved, early)
        else:
            lines = _train(trainer, began)
            done, early = vars(trainer.state), _stopped_now(trainer)
        decided = _recorded_ending(run, done) if is_complete else None
        wanted = _interpolation(trainer, run, done, saved, decided)
        if trainer.is_world_process_zero():
            report = wanted and wanted.found()
            run_folder.publish(run, None if report else done.get("best_model_checkpoint"))
            say(*lines)
        part(trainer.accelerator)
        # Last, since the other processes would not wait for hours.
        if trainer.is_world_process_zero():
            if wanted and not report:
                report = _interpolated(trainer, wanted)
                made = report is not None
            if report:
                lines = [f"interpolated, so that every guard is kept: {describe(report)}; {run / run_folder.BEST_NAME}"]
                say(*lines)
            record(run, report)
        elif wanted:
            return run  # the main process decides how the run ends
        infeasible = None if report else _infeasible(run, done)
        ending = _ending(infeasible, early) if infeasible else _good_ending(early, report)
        if made or decided != ending:  # which has the seconds of training
            _record(trainer, done, began, ending, infeasible or lines[0], report)
        if trainer.upload and trainer.is_world_process_zero():
            unsent = Ending(ending.state, "upload", 1)
            _upload(trainer, run, functools.partial(_record, trainer, done, began, unsent, _SENDING, report))
    except UnreadableCheckpoint:
        raise  # another one may do
    except BaseException as error:
        _record(trainer, done if is_complete else vars(trainer.state), began, _ending(error, early), error, report)
        raise
    if infeasible:
        raise infeasible
    return run


def _interpolation(
    trainer: MyPTTrainer, run: Path, done: dict, saved: RunState, decided: Ending | None
) -> InterpolatedBest | None:
    """An interpolation that may give a better OUT/best; None where the last saved step kept the guards, among others.

    saved: the state that the run resumed from. decided: how a run ended that is complete: an earlier step that kept
    the guards may have been better.
    """
    forgetting = trainer.forgetting
    # A run that ended by itself had an interpolation only if its reason is that, or hides it.
    had_none = (
        decided and decided.state in ("completed", "stopped") and decided.reason not in ("interpolated", "upload")
    )
    if trainer.start is None or (kept_guards(done) and had_none):
        return None
    history = forgetting.history or (saved.forgetting or {}).get("history")
    if kept_guards(done) and (not history or kept_all(history[-1], forgetting.policy)):
        return None
    evaluator = Evaluator(forgetting.eval_sets, trainer.args.per_device_eval_batch_size)
    best = done["best_model_checkpoint"]
    return InterpolatedBest(run, trainer.start, best, forgetting.policy, evaluator, best_kept=kept_guards(done))


def _interpolated(trainer: MyPTTrainer, wanted: InterpolatedBest) -> InterpolationReport | None:
    """Make OUT/best by interpolation; None, with the reason printed, where that cannot be done."""
    trainer.free()
    try:
        return wanted.make()
    except (MyPTError, OSError) as error:
        reason = error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = "out of memory"
    say(f"not interpolated: {reason}")
    return None


def _complete(trainer: MyPTTrainer, saved: RunState, early: str | None) -> list[str]:
    """Finish a run that has no step left."""
    trainer.release_later_checkpoints()
    if trainer.checkpoint and trainer.is_world_process_zero():  # a kill right after the last save may have left none
        write_ledger(Path(trainer.args.output_dir), saved.step, saved.coverage)
    why = f" ({_CURES[early]})" if early else ""
    return [f"already complete: step {saved.step} of {trainer.args.max_steps}{why}"]


def _train(trainer: MyPTTrainer, began: float) -> list[str]:
    """Train to the last step. Raises Interrupted after a signal, in the other processes SystemExit."""
    trainer.train(resume_from_checkpoint=trainer.checkpoint)
    if trainer.state.global_step < trainer.args.max_steps and trainer.signals.stopping:
        _leave(trainer)
    seconds, run = time.monotonic() - began, trainer.args.output_dir
    lines = [f"trained to step {trainer.state.global_step} in {seconds:.0f} s; the model is in {Path(run)}"]
    return [*lines, trainer.forgetting.report()["verdict"]] if trainer.forgetting else lines


_SENDING = "killed while the run was sent; run the same command with --resume to send the rest"
_CURES = {
    "forgetting": "stopped by the forgetting guard; set another forgetting.tolerance, or action: warn, to continue",
    "early_stopping": "stopped early; raise safety.early_stopping_patience, or set it to null, to continue",
}


def _stopped_before(trainer: MyPTTrainer, saved: RunState) -> str | None:
    """The rule by which a run that ended before its last step would end there again."""
    if trainer.forgetting and trainer.forgetting.stopped_before(saved):
        return "forgetting"
    if trainer.early_stopping and trainer.early_stopping.stopped_before(saved):
        return "early_stopping"
    return None


def _stopped_now(trainer: MyPTTrainer) -> str | None:
    """The rule by which the run that was just trained ended before its last step."""
    if trainer.state.global_step >= trainer.args.max_steps:
        return None
    return "forgetting" if trainer.forgetting and trainer.forgetting.stopped_at is not None else "early_stopping"


def _leave(trainer: MyPTTrainer) -> None:
    """End all processes together after a signal; the main one reports it."""
    part(trainer.accelerator)
    number, state = trainer.signals.number, trainer.state
    if not trainer.is_world_process_zero():
        raise SystemExit(128 + number)
    checkpoint = Path(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    if trainer.upload:
        trainer.upload.wait(checkpoint)
    raise Interrupted(
        f"stopped by {signal.Signals(number).name} after step {state.global_step} of {state.max_steps}; "
        f"everything is in {checkpoint}: run the same command with --resume to continue",
        number,
    )


def _upload(trainer: MyPTTrainer, run: Path, record_unsent: Callable[[], None]) -> None:
    """Send the finished run with what callbacks write for it. A kill leaves the result that `record_unsent` wrote."""
    if trainer.upload.store.keeps_runs:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, BeforeUpload):
                callback.before_upload(run)
    ended = read_result(run)
    record_unsent()
    trainer.upload.finish(run)
    if ended:
        _write(run, ended)


def _infeasible(run: Path, done: dict) -> CheckFailed | None:
    """What is wrong if no saved step kept every guarded set within the tolerance."""
    if kept_guards(done):
        return None
    return CheckFailed(
        f"no saved step kept every guarded set within the tolerance; {run / run_folder.BEST_NAME} is the one that "
        f"lost least (step {done['best_global_step']})",
        "infeasible",
    )


def _good_ending(early: str | None, report: InterpolationReport | None) -> Ending:
    """The ending of a run in which nothing failed. early: the rule that stopped it before its last step."""
    ending = Ending("stopped", early) if early else Ending("completed", "max_steps")
    return ending._replace(reason="interpolated") if report else ending


def _ending(error: BaseException, early: str | None) -> Ending:
    """The ending of a run by an error."""
    if isinstance(error, Interrupted):
        return Ending("interrupted", signal.Signals(error.exit_code - 128).name, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", signal.SIGINT.name, 128 + signal.SIGINT)
    if isinstance(error, CheckFailed):
        state = "stopped" if early or error.reason == "declined" else "completed"
        return Ending(state, error.reason, error.exit_code)
    code = error.exit_code if isinstance(error, MyPTError) else 2 if isinstance(error, OSError) else 1
    return Ending("failed", "diverged" if isinstance(error, Diverged) else "error", code)


def _recorded_ending(run: Path, done: dict) -> Ending | None:
    """The ending in `result.json`; None without a readable one of this step."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((run / RESULT_NAME).read_text(encoding="utf-8"))
        if found.get("step") == done["global_step"]:
            return Ending(*(found.get(name) for name in Ending._fields))
    return None


def _record(
    trainer,
    done: dict,
    began: float,
    ending: Ending,
    message: object,
    interpolation: InterpolationReport | None,
) -> None:
    """Write `result.json` from the main process."""
    if not trainer.is_world_process_zero():
        return
    best, step = done.get("best_metric"), done.get("best_global_step")
    if interpolation:
        best = chosen_point(interpolation)["sets"][trainer.forgetting.policy.target]["loss"]
        step = interpolation["step"]
    result = Result(
        *ending,
        step=done["global_step"],
        max_steps=trainer.args.max_steps,
        objective=best if best is not None and math.isfinite(best) else None,
        best_step=step,
        alpha=interpolation and interpolation["alpha"],
        seconds=round(time.monotonic() - began, 3),
        message=str(message) or type(message).__name__,
    )
    _write(Path(trainer.args.output_dir), result)


def _write(run: Path, result: Result) -> None:
    """A disk that is full keeps nobody from reading the first error."""
    try:
        write_result(run, result)
    except OSError as error:
        say(f"{RESULT_NAME} could not be written: {error.strerror or error}", error=True)


def part(accelerator: Accelerator) -> None:
    """All processes end together: one that leaves while another still writes would take the whole launch down."""
    accelerator.wait_for_everyone()
    # gloo's threads need the interpreter's lock to drop the last messages. Whoever drops the group after this holds
    # that lock and waits for the threads: for ever, if they are not done by then (pytorch issues 56297 and 190489).
    time.sleep(0.1)
    accelerator.end_training()
