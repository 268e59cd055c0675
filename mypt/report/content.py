"""Read what a report shows from the files of a run folder, finished or not; nothing is loaded or computed anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mypt.checkpoints.complete import checkpoints, last_complete_checkpoint, step_of
from mypt.checkpoints.interpolated import InterpolationReport, read_interpolation
from mypt.checkpoints.model_config import is_model
from mypt.checkpoints.state import FORGETTING_NAME, LEDGER_NAME, METRICS_NAME, SPIKES_NAME, RunState
from mypt.errors import CheckpointError, MyPTError
from mypt.inspection.training_history import describe_action, last_state, read_training_history, settings_of
from mypt.recipe import RESOLVED_NAME
from mypt.report.charts import Mark
from mypt.storage.card import describe_model
from mypt.storage.run_info import RunInfo
from mypt.storage.upload_files import without_places
from mypt.training.result import Result, read_result

_SPIKES = 20  # loss spikes that are shown: the largest
LEDGERS = (METRICS_NAME, LEDGER_NAME, FORGETTING_NAME, RESOLVED_NAME)  # any of them makes a folder a run's


class Verdict(TypedDict):
    """tone: good, plain, warning or bad. title: how the run ended. lines: sentences about it."""

    tone: str
    title: str
    lines: list[str]


# (state, reason) of result.json: tone, title. {step} and {max_steps} are the run's.
_ENDINGS = {
    ("completed", "max_steps"): ("good", "Completed"),
    ("completed", "interpolated"): ("warning", "Completed; best/ is interpolated so that every guard is kept"),
    ("completed", "infeasible"): ("bad", "Completed, but no saved step kept every guarded set"),
    ("completed", "upload"): ("warning", "Completed, but not uploaded"),
    ("stopped", "forgetting"): ("warning", "Stopped by the forgetting guard at step {step:,}"),
    ("stopped", "early_stopping"): ("warning", "Stopped early at step {step:,}"),
    ("stopped", "interpolated"): ("warning", "Stopped at step {step:,}; best/ is interpolated"),
    ("stopped", "infeasible"): ("bad", "Stopped at step {step:,}; no saved step kept every guarded set"),
    ("stopped", "declined"): ("warning", "Not trained: the coverage was declined"),
    ("failed", "diverged"): ("bad", "Diverged after step {step:,}: a loss, gradient or weight is NaN or infinite"),
    ("failed", "error"): ("bad", "Failed after step {step:,}"),
}


@dataclass(frozen=True)
class RunContent:
    """The content of a run's files, without places on this machine.

    log: entries of metrics.jsonl, each with its step; None for a number that was NaN or infinite. unreadable: its lines
    that cannot be read. result: how the run ended; None while it trains, and after a kill. changed: names of the
    settings that are not the defaults. interpolation: of the model in the folder, or of best/. step, max_steps:
    optimizer steps done so far, and in all; None: not known.
    """

    run: Path
    info: RunInfo
    model: dict[str, str]
    log: list[dict]
    unreadable: int
    result: Result | None
    changed: list[str]
    diagnosis: list[str]
    spikes: list[dict]
    interpolation: InterpolationReport | None
    step: int | None
    max_steps: int | None
    checkpoint: int | None

    @property
    def settings(self) -> dict:
        return settings_of(self.info.recipe)

    @property
    def history(self) -> list[dict]:
        """Every measurement of the evaluation sets."""
        return self.info.forgetting.get("history", [])

    @property
    def per_step(self) -> int | None:
        """Samples of an optimizer step, by the settings of the last session."""
        settings = self.info.coverage.get("settings", {})
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
        if any(name not in settings for name in names):
            return None
        return settings[names[0]] * settings[names[1]] * settings[names[2]]

    def verdict(self) -> Verdict:
        result, lines = self.result, []
        if result is None and not self.info.recipe:  # of a stock Trainer with MyPT's callbacks
            of = f" of {self.max_steps:,}" if self.max_steps else ""
            tone, title = "plain", f"Trained to step {self.step or 0:,}{of}"
            lines.append(f"How it ended is not recorded: there is no {RESOLVED_NAME} of mypt train.")
        elif result is None:
            so_far = f"step {self.step or 0:,}" + (f" of {self.max_steps:,}" if self.max_steps else "")
            saved = f"checkpoint-{self.checkpoint}" if self.checkpoint else "nothing yet"
            tone, title = "warning", f"Not finished: {so_far} so far"
            lines.append(f"It is still training, or was killed. Saved: {saved}; mypt train --resume continues it.")
        elif result.state == "interrupted":
            tone, title = "warning", f"Interrupted by {result.reason} at step {result.step:,} of {result.max_steps:,}"
        else:
            tone, title = _ENDINGS.get((result.state, result.reason), ("warning", f"{result.state}: {result.reason}"))
            title = title.format(step=result.step, max_steps=result.max_steps)
        if result and (result.exit_code or result.state not in ("completed", "stopped")):
            lines.append(result.message)
        if verdict := self.info.forgetting.get("verdict"):
            lines.append(verdict)
            if verdict.startswith("forgetting:") and tone in ("good", "plain"):
                tone = "warning"
        return {"tone": tone, "title": title, "lines": [*lines, *self.diagnosis]}

    def events(self) -> Iterator[Mark]:
        """The events of the run, in order: changes on a resume, actions of the guard, handled NaN, sequence lengths,
        the step at which it diverged."""
        found = [
            Mark(action["step"], "guard: " + describe_action(action).removeprefix(f"step {action['step']:,} "))
            for action in self.info.forgetting.get("actions", [])
        ]
        acted, sources = {mark.x for mark in found}, self.info.coverage.get("sources", [])
        for event in self.info.coverage.get("events", []):
            if "guard" in event or ("weights" in event and event.get("step") in acted):
                continue  # it is among the actions
            step = event.get("step", 0) + ("skipped" in event)  # recorded before the step was done
            found.append(Mark(step, _describe_event(event, sources), _kind(event)))
        if stages := self.info.coverage.get("curriculum"):
            found += [
                Mark(first // self.per_step, f"sequences of {length:,} tokens from here on")
                for first, length in stages
                if self.per_step
            ]
        if self.result and self.result.reason == "diverged":
            found.append(Mark(self.result.step + 1, self.result.message, "bad"))
        spikes = sorted(self.spikes, key=lambda spike: spike["loss"] - spike["limit"], reverse=True)
        for spike in spikes[:_SPIKES]:
            found.append(Mark(spike["step"], f"loss spike: {spike['loss']:.4g}, above {spike['limit']:.4g}"))
        return iter(sorted(found, key=lambda mark: mark.x))


def require_run(run: Path) -> None:
    """Raise CheckpointError unless a folder holds a run."""
    if not run.is_dir():
        raise CheckpointError(f"there is no folder {run}; name a run folder, which mypt train makes")
    if any((run / name).is_file() for name in LEDGERS) or checkpoints(run):
        return
    parent = run.resolve().parent
    hint = f"name its run folder: mypt report {run.parent}" if (parent / RESOLVED_NAME).is_file() else (
        "name a run folder, which mypt train makes"
    )  # fmt: skip
    raise CheckpointError(f"{run} is no run folder: it holds neither {RESOLVED_NAME} nor checkpoint-N; {hint}")


def read_content(run: Path) -> RunContent:
    """Raises CheckpointError for a folder that is no run, a damaged file, or an access token in the recipe."""
    require_run(run)
    info, saved = RunInfo(run, newest=True), last_complete_checkpoint(run)[0]
    state = last_state(run)[1]
    log, unreadable = _read_log(run, state)
    result = read_result(run)
    steps = [entry["step"] for entry in log] + [step for step in [info.step] if step is not None]
    reached = max(steps, default=None)
    if result and _is_stale(result, reached):
        result = None
    history, planned = read_training_history(run), state and state.trainer.get("max_steps")
    ended = result is not None and result.state in ("completed", "stopped")
    return RunContent(
        run=run,
        info=info,
        model=_model(run, saved),
        log=log,
        unreadable=unreadable,
        result=result and Result(**without_places(vars(result)) | {"message": names_for_places(result.message, run)}),
        changed=history["changed_settings"] or [],
        diagnosis=history["diagnosis"]["lines"] if history["diagnosis"] and ended else [],
        spikes=_read_lines(run / SPIKES_NAME, ("step", "loss", "limit"))[0],
        interpolation=info.interpolation or without_places(read_interpolation(run / "best")),
        step=result.step if result else reached,
        max_steps=result.max_steps if result else info.recipe.get("training", {}).get("max_steps") or planned,
        checkpoint=step_of(saved) if saved else None,
    )


def _is_stale(result: Result, reached: int | None) -> bool:
    """Whether a run went on after this result, and was killed or trains now."""
    if reached is None:
        return False
    return reached != result.step if result.state in ("completed", "stopped") else reached > result.step


def names_for_places(message: str, run: Path) -> str:
    """A message that names paths, without the places of the run folder and of files elsewhere."""
    for place in {str(run.resolve()), str(run)}:
        if len(Path(place).parts) > 1:
            message = message.replace(place, run.resolve().name)
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:;,']+/)+", "", message)


def _read_log(run: Path, state: RunState | None) -> tuple[list[dict], int]:
    """metrics.jsonl; of a run without it the log in its last checkpoint."""
    if (run / METRICS_NAME).is_file():
        return _read_lines(run / METRICS_NAME, ("step",))
    return state.trainer.get("log_history", []) if state else [], 0


def _read_lines(path: Path, numbers: tuple[str, ...]) -> tuple[list[dict], int]:
    """The objects in a file of JSON lines in which these are numbers, and how many lines are something else.

    A run that is killed may leave the beginning of a line.
    """
    entries, unreadable = [], 0
    if not path.is_file():
        return entries, unreadable
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                unreadable += bool(line.strip())
                continue
            if isinstance(entry, dict) and all(type(entry.get(name)) in (int, float) for name in numbers):
                entries.append(entry)
            else:
                unreadable += 1
    return entries, unreadable


def _model(run: Path, saved: Path | None) -> dict[str, str]:
    """The description of the model; empty before the first save."""
    folder = run if is_model(run) else saved
    try:
        return without_places(describe_model(folder)) if folder else {}
    except MyPTError as error:
        return {"model": names_for_places(f"cannot be described: {error}", run)}


def _kind(event: dict) -> str:
    return "bad" if "skipped" in event or "rollback" in event else "event"


def _describe_event(event: dict, sources: list[dict]) -> str:
    if skipped := event.get("skipped"):
        return f"no update: loss {skipped.get('loss')}, gradient {skipped.get('grad_norm')}"
    if back := event.get("rollback"):
        rate = "{:g} -> {:g}".format(*event["changes"]["learning_rate"])
        return f"back to {back.get('to')}: loss {back.get('loss')}, learning rate {rate}"
    if grown := event.get("appended"):
        return f"data added to {sources[grown['source']]['name']}: {grown['tokens']:,} tokens now"
    if "weights" in event:
        shares = (f"{source['name']} {w:g}" for source, w in zip(sources, event["weights"], strict=False))
        return f"weights of the sources: {', '.join(shares)}"
    return "changed: " + ", ".join(f"{key} {old} -> {new}" for key, (old, new) in event["changes"].items())
