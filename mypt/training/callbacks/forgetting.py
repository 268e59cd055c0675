"""Measure every evaluation set against its step-0 baseline; say, record and act when a guarded one gets worse."""

import json
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.checkpoints.state import RunState, saved_states
from mypt.errors import CheckpointError, Diverged, MyPTError
from mypt.evaluation.baseline import BASELINE_NAME, load_baseline, save_baseline
from mypt.evaluation.forgetting import ACTED_ON, INFEASIBLE, TOLERANCE, judge, require_sets, verdict
from mypt.evaluation.loss import WindowLosses, window_losses
from mypt.files import replace_text
from mypt.streams.eval_windows import EvalWindows
from mypt.terminal import say
from mypt.training.callbacks.curves import Pace, plot_forgetting
from mypt.training.model.compiled import eager

REPORT_NAME = "forgetting.json"
ACTIONS = ("warn", "stop")


@dataclass(frozen=True)
class Reading:
    """One evaluation set at one step: loss and change since step 0 in nats per token, with standard errors."""

    loss: float
    standard_error: float
    bits_per_byte: float
    delta: float
    delta_error: float
    state: str  # target, healthy, watch, warning, critical; other for a set that is neither target nor guard


class ForgettingCallback(TrainerCallback, ExportableState):
    """Track forgetting of any causal LM in any HF Trainer.

    eval_sets: {name: EvalWindows}. target: the set being learned (default the first). guard: sets to be kept
    (default all others). tolerance: nats per token. action: `warn`, or `stop` when a guarded set reaches `warning`.
    eval_steps: measure every so many steps, and at the last; None: whenever the Trainer itself evaluates.
    time_budget: share of wall time for evaluation; beyond it the end of the run says which eval_steps would keep it
    (0: it does not).
    Writes forgetting.json, forgetting.png and forgetting_baseline.safetensors (per-window sums, so that every later
    delta is paired) to the trainer's output_dir; the history also lives in trainer_state.json and survives a resume.
    Raises MyPTError for names or an action that do not exist, CheckpointError for a resume without its baseline.
    """

    def __init__(
        self,
        eval_sets: dict[str, EvalWindows],
        *,
        target: str | None = None,
        guard: list[str] | None = None,
        tolerance: float = TOLERANCE,
        action: str = "warn",
        eval_steps: int | None = None,
        time_budget: float = 0.1,
    ):
        if not eval_sets:
            raise MyPTError("forgetting has no evaluation set to watch; give at least one as {name: EvalWindows}")
        if action not in ACTIONS:
            raise MyPTError(f"forgetting action is {action!r}, expected one of: {', '.join(ACTIONS)}")
        self.eval_sets = eval_sets
        self.target = target or next(iter(eval_sets))
        self.guard = [name for name in eval_sets if name != self.target] if guard is None else guard
        require_sets(eval_sets, self.target, self.guard)
        self.tolerance = tolerance
        self.action = action
        self.eval_steps = eval_steps
        self.time_budget = time_budget
        self.history: list[dict] = []  # {"step", "sets": {name: Reading as dict}, "constrained_loss"}
        self.stopped_at: int | None = None
        self._baseline: dict[str, WindowLosses] = {}
        self._seconds = 0.0
        self._started = time.monotonic()

    # ---- HF's events ----

    def state(self) -> dict:
        return {
            "args": {},
            "attributes": {"history": self.history, "stopped_at": self.stopped_at, "tolerance": self.tolerance},
        }

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        name = type(self).__name__
        state.stateful_callbacks.setdefault(name, self.state())
        # What this object may have measured before training began belongs to no run.
        self.history = (
            saved_states(state.stateful_callbacks)[name]["attributes"]["history"] if state.global_step else []
        )
        self.stopped_at, self._baseline = None, {}
        self._seconds, self._started, self._pace = 0.0, time.monotonic(), Pace()
        if self.history:
            losses = {name: reading["loss"] for name, reading in self.history[0]["sets"].items()}
            self._baseline = load_baseline(Path(args.output_dir), self.eval_sets, losses)
            if (measured := self.history[-1]["sets"].keys()) != self.eval_sets.keys():
                raise CheckpointError(
                    f"the checkpoint's history is of the sets {', '.join(measured)}, and {', '.join(self.eval_sets)} "
                    "are given; restore the sets (data.eval), or start a new run"
                )
            self.history = list(map(self._ordered, self.history))
        else:
            state.log_history.append({**self.measure(model, args, state), "epoch": 0.0, "step": state.global_step})
            if state.is_world_process_zero:
                save_baseline(Path(args.output_dir), self._baseline, self.eval_sets)
                self._write(Path(args.output_dir))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.eval_steps and (state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps):
            self.on_evaluate(args, state, control, model)

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        # A stock Trainer evaluates by itself, and comes here once for each of its own sets.
        if not self.history or self.history[-1]["step"] != state.global_step:
            measured = self.measure(model, args, state)
            state.log_history.append({**measured, "epoch": state.epoch, "step": state.global_step})
            if metrics is not None:
                metrics |= measured  # so that `metric_for_best_model` can name them
        worst = [name for name, reading in self.history[-1]["sets"].items() if reading["state"] in ACTED_ON]
        if worst and self.action == "stop" and not control.should_training_stop:
            self.stopped_at = state.global_step
            control.should_training_stop = control.should_save = True
            self._say(state, f"stopping: {', '.join(worst)} lost more than the tolerance of {self.tolerance:g} nats")
        if state.is_world_process_zero:
            self._write(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        if self._pace.due():
            self.draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.draw(args, state)
        share = self._seconds / max(time.monotonic() - self._started, 1e-9)
        budget = self.time_budget
        if 0 < budget < share < 1 and len(self.history) > 2:
            # Training takes (1 - share) / share as long as evaluation now, and (1 - budget) / budget as long then.
            factor = share / (1 - share) * (1 - budget) / budget
            steps = math.ceil((self.eval_steps or state.eval_steps) * factor)
            self._say(state, f"evaluation took {share:.0%} of the time; eval_steps: {steps} would take {budget:.0%}")

    def stopped_before(self, state: RunState) -> bool:
        """Whether a saved state ends in a stop that these settings would repeat."""
        saved = state.forgetting
        same = saved and self.action == "stop" and saved["tolerance"] == self.tolerance
        return bool(same) and saved["stopped_at"] == state.step

    # ---- measuring ----

    def measure(self, model: torch.nn.Module, args, state) -> dict[str, float]:
        """Evaluate every set now. Returns the metrics to log: `eval_<name>_loss`, `forgetting/<name>_delta`, ...

        The first measurement of a run is its baseline. All ranks must call it together.
        """
        began = time.monotonic()
        readings, metrics = {}, {}
        for name, windows in self.eval_sets.items():
            with eager(model):
                losses = window_losses(
                    model, windows, args.per_device_eval_batch_size, args.process_index, args.world_size
                )
            if not math.isfinite(losses.loss):
                raise Diverged(
                    f"the loss on {name} is {losses.loss} at step {state.global_step}: the model is broken; "
                    "lower training.learning_rate and go on from the last checkpoint with --resume"
                )
            baseline = self._baseline.setdefault(name, losses)
            readings[name] = self._read(name, losses, baseline)
            if not math.isfinite(readings[name].delta):
                raise MyPTError(
                    f"the change of {name} is {readings[name].delta} at step {state.global_step}: {BASELINE_NAME} is "
                    "damaged; restore it"
                )
            metrics[f"eval_{name}_loss"] = losses.loss
            metrics[f"forgetting/{name}_delta"] = readings[name].delta
        metrics["eval_constrained_loss"] = self._constrained(readings)
        sets = {name: vars(reading) for name, reading in readings.items()}
        if self.history and self.history[-1]["step"] == state.global_step:
            self.history.pop()  # measured again
        self.history.append(
            {"step": state.global_step, "sets": sets, "constrained_loss": metrics["eval_constrained_loss"]}
        )
        self._say(state, human_line(state.global_step, readings))
        self._seconds += time.monotonic() - began
        return metrics

    def _ordered(self, entry: dict) -> dict:
        """A saved measurement with what it has of a new one's keys, in their order; trainer_state.json sorts them."""
        keys, saved = [field.name for field in fields(Reading)], entry["sets"]
        sets = {name: {key: saved[name][key] for key in keys if key in saved[name]} for name in self.eval_sets}
        return {key: entry[key] for key in ("step", "sets", "constrained_loss") if key in entry} | {"sets": sets}

    def _read(self, name: str, losses: WindowLosses, baseline: WindowLosses) -> Reading:
        delta, error = losses.delta(baseline)
        state = "target" if name == self.target else "other"
        if name in self.guard:
            state = judge(delta, error, self.tolerance)
        bits = losses.bits_per_byte(self.eval_sets[name].bytes_per_token)
        return Reading(losses.loss, losses.standard_error, bits, delta, error, state)

    def _constrained(self, readings: dict[str, Reading]) -> float:
        """The target's loss if every guard is healthy, else 1000 + nats beyond the tolerance of the worst one."""
        lost = [readings[name].delta for name in self.guard if readings[name].state != "healthy"]
        return INFEASIBLE + max(lost) - self.tolerance if lost else readings[self.target].loss

    # ---- files ----

    def draw(self, args, state) -> None:
        if state.is_world_process_zero and self.history:
            plot_forgetting(self.report(), Path(args.output_dir) / "forgetting.png")

    def report(self) -> dict:
        """The contents of forgetting.json: settings, every measurement, the verdict."""
        return {
            "target": self.target,
            "guard": self.guard,
            "tolerance": self.tolerance,
            "action": self.action,
            "stopped_at": self.stopped_at,
            "history": self.history,
            "verdict": verdict(self.history, self.target, self.guard, self.tolerance),
        }

    def _write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        replace_text(directory / REPORT_NAME, json.dumps(self.report(), indent=1))

    def _say(self, state, line: str) -> None:
        if state.is_world_process_zero:
            say(line)


def human_line(step: int, readings: dict[str, Reading]) -> str:
    """`step 100: domain 2.15 | general 2.89 (+0.04 +/- 0.01, healthy)`"""
    parts = []
    for name, reading in readings.items():
        part = f"{name} {reading.loss:.2f}"
        if reading.state not in ("target", "other"):
            part += f" ({reading.delta:+.2f} +/- {reading.delta_error:.2f}, {reading.state})"
        parts.append(part)
    return f"step {step}: " + " | ".join(parts)
