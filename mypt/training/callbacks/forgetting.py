"""Measure every evaluation set against its loss at step 0, record it, and act when a guarded one gets worse."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.checkpoints.state import FORGETTING_NAME, RunState, loaded_state
from mypt.errors import CheckpointError, MyPTError
from mypt.evaluation.baseline import BASELINE_NAME, load_baseline, save_baseline
from mypt.evaluation.evaluator import Evaluator, Readings, require_fit
from mypt.evaluation.forgetting import (
    TOLERANCE,
    Policy,
    assess,
    decide,
    describe_sets,
    guarded_sets,
    require_sets,
    verdict,
)
from mypt.evaluation.loss import WindowLosses
from mypt.files import replace_text
from mypt.streams.eval_windows import EvalWindows
from mypt.terminal import say
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.guard import Guard, require_lambda_schedule
from mypt.training.callbacks.pictures import Pace, plot_forgetting
from mypt.training.model.compiled import eager

KEYS = ("loss", "standard_error", "bits_per_byte", "delta", "delta_error", "state")  # of a set in the history


class ForgettingCallback(TrainerCallback, ExportableState):
    """Track forgetting of any causal LM in any HF Trainer.

    Writes forgetting.json, forgetting.png and forgetting_baseline.safetensors (per-window sums, so that every later
    change is paired) to the trainer's output_dir; the history also lives in trainer_state.json and survives a resume.

    Args:
        eval_sets: {name: EvalWindows}.
        target: The set that is learned; default the first.
        guard: The sets that are to be kept; default all others.
        tolerance: Nats per token that a guarded set may lose.
        action: What follows when a guarded set lost more: `warn`, `stop` (with a checkpoint), `reduce_lr` (halve the
            learning rate), `raise_replay` or `rollback`. The last two need `mypt train` or `build_trainer`.
        act_at: The action follows at this multiple of the tolerance.
        coverage: The run's CoverageCallback, in whose ledger the actions are recorded.
        replay: {guarded set: index of its training source in the stream}, for `raise_replay`.
        eval_steps: Measure every so many steps, and at the last one; None: whenever the Trainer itself evaluates.
        time_budget: Share of wall time for evaluation; beyond it the end of the run reports which eval_steps would
            keep it (0: it does not).
        log: Called with the metrics of each measurement; a stock Trainer's `trainer.log` passes them on to the trackers
            of `report_to`. None: they are in `log_history` only.

    Raises:
        DataError: Token ids or windows that the model has no embeddings for.
        MyPTError: Names or an action that do not exist, or an action that cannot work here.
        CheckpointError: A resume without its baseline.
    """

    def __init__(
        self,
        eval_sets: dict[str, EvalWindows],
        *,
        target: str | None = None,
        guard: list[str] | None = None,
        tolerance: float = TOLERANCE,
        action: str = "warn",
        act_at: float = 1.0,
        coverage: CoverageCallback | None = None,
        replay: dict[str, int] | None = None,
        eval_steps: int | None = None,
        time_budget: float = 0.1,
        log: Callable[[dict[str, float]], object] | None = None,
    ):
        if not eval_sets:
            raise MyPTError("forgetting has no evaluation set to watch; give at least one as {name: EvalWindows}")
        self.eval_sets = eval_sets
        target = target or next(iter(eval_sets))
        guard = guarded_sets(eval_sets, target, guard)
        require_sets(eval_sets, target, guard)
        self.policy = Policy(target, guard, tolerance, action, act_at)
        if action in ("raise_replay", "rollback") and replay is None:
            raise MyPTError(
                f"forgetting action {action} needs MyPT's own trainer: use `mypt train` or build_trainer(recipe), or "
                "one of: warn, stop, reduce_lr"
            )
        self.guard = Guard(self.policy, coverage, replay or {})
        self.eval_steps = eval_steps
        self.time_budget = time_budget
        self.log = log
        self.history: list[dict] = []  # entries of `assess`
        self.stopped_at: int | None = None
        self._baseline: dict[str, WindowLosses] = {}
        self._metrics: dict[str, float] = {}  # of the last measurement
        self._ended = False
        self._seconds = 0.0
        self._started = time.monotonic()

    # ---- HF's events ----

    def state(self) -> dict:
        return {
            "args": {},
            "attributes": {
                "history": self.history,
                "stopped_at": self.stopped_at,
                "tolerance": self.policy.tolerance,
                "act_at": self.policy.act_at,
                "actions": self.guard.actions,
                "rate_factor": self.guard.rate_factor,
            },
        }

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # What this object may have measured before training began belongs to no run.
        run_state = loaded_state(state)
        saved = run_state.forgetting
        require_lambda_schedule(kwargs.get("lr_scheduler"), self.policy.action)
        self.guard.restore(run_state, args.learning_rate)
        if self.guard.rate_factor != 1:
            self._say(state, f"learning rate x {self.guard.rate_factor:g} by the guard so far")
        self.history = saved["history"] if saved else []
        self.stopped_at, self._baseline, self._metrics, self._ended = None, {}, {}, False
        require_fit(model, self.eval_sets)
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
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
            self._record(model, args, state, control)
            if state.is_world_process_zero:
                save_baseline(Path(args.output_dir), self._baseline, self.eval_sets)
                self._write(Path(args.output_dir))

    def on_step_end(self, args, state, control, **kwargs):
        if self.eval_steps and (state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps):
            self.on_evaluate(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, model=None, lr_scheduler=None, metrics=None, trainer=None, **kwargs):
        if self._ended and metrics is not None and "eval_constrained_loss" not in metrics:
            # Maybe with the weights of an earlier step: load_best_model_at_end.
            metrics |= self._judge(self._read(model, args, state), state)[1]
            return
        # A stock Trainer evaluates by itself, and comes here once for each of its own sets.
        if not self.history or self.history[-1]["step"] != state.global_step:
            self._record(model, args, state, control)
        if metrics is not None:
            metrics |= self._metrics  # so that `metric_for_best_model` can name them
        is_last = state.global_step >= state.max_steps  # when only a warning has a meaning
        acted = self.guard.acted
        if (self.policy.action == "warn" or not is_last) and state.global_step not in acted:
            decision = decide(self.history, self.policy, acted)
            if decision:
                self.guard.act(decision, args, state, control, lr_scheduler, trainer)
            if decision and decision.action == "stop":
                self.stopped_at = state.global_step
        if state.is_world_process_zero:
            self._write(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        if self._pace.due():
            self.draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._ended = True
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
        policy = self.policy
        same = saved and policy.action == "stop"
        same = same and (saved["tolerance"], saved.get("act_at", 2.0)) == (policy.tolerance, policy.act_at)
        return bool(same) and saved["stopped_at"] == state.step

    # ---- measuring ----

    def measure(self, model: torch.nn.Module, args, state) -> dict[str, float]:
        """Evaluate every set now, and record it. All processes call it together.

        The first measurement of a run is its baseline. Returns the metrics to log: `eval_<name>_loss`,
        `forgetting/<name>_delta` and `eval_constrained_loss`.
        """
        began = time.monotonic()
        readings = self._read(model, args, state)
        self._baseline = self._baseline or {name: reading.losses for name, reading in readings.items()}
        entry, self._metrics = self._judge(readings, state)
        if self.history and self.history[-1]["step"] == state.global_step:
            self.history.pop()  # measured again
        self.history.append(entry)
        self._say(state, human_line(entry))
        self._seconds += time.monotonic() - began
        return self._metrics

    def _record(self, model: torch.nn.Module, args, state, control) -> None:
        """Measure and log, where no Trainer of ours does it."""
        measured = self.measure(model, args, state)
        if self.log is None:
            state.log_history.append({**measured, "epoch": state.epoch or 0.0, "step": state.global_step})
            return
        was_training, is_due = model.training, control.should_log
        model.eval()  # by which TRL knows that its own training metrics do not belong in this entry
        self.log(dict(measured))
        model.train(was_training)
        control.should_log = is_due  # the Trainer's own entry of this step may come yet

    def _read(self, model: torch.nn.Module, args, state) -> Readings:
        broken = f"at step {state.global_step}: the model is broken; lower training.learning_rate and resume from the "
        return measure_finite(self.eval_sets, model, args, f"{broken}last checkpoint with --resume")

    def _judge(self, readings: Readings, state) -> tuple[dict, dict[str, float]]:
        """The entry of the history, and the metrics to log."""
        baseline = self._baseline or {name: reading.losses for name, reading in readings.items()}
        entry, metrics = assess(state.global_step, readings, baseline, self.policy), {}
        for name, reading in entry["sets"].items():
            if not math.isfinite(reading["delta"]):
                raise MyPTError(
                    f"the change of {name} is {reading['delta']} at step {state.global_step}: {BASELINE_NAME} is "
                    "damaged; restore it"
                )
            metrics |= {f"eval_{name}_loss": reading["loss"], f"forgetting/{name}_delta": reading["delta"]}
        return entry, metrics | {"eval_constrained_loss": entry["constrained_loss"]}

    def _ordered(self, entry: dict) -> dict:
        """A saved measurement with what it has of a new one's keys, in their order; trainer_state.json sorts them."""
        saved = entry["sets"]
        sets = {name: {key: saved[name][key] for key in KEYS if key in saved[name]} for name in self.eval_sets}
        return {key: entry[key] for key in ("step", "sets", "constrained_loss") if key in entry} | {"sets": sets}

    # ---- files ----

    def draw(self, args, state) -> None:
        if state.is_world_process_zero and self.history:
            plot_forgetting(self.report(), Path(args.output_dir) / "forgetting.png")

    def report(self) -> dict:
        """The contents of forgetting.json: settings, every measurement, the verdict."""
        return {
            "target": self.policy.target,
            "guard": self.policy.guard,
            "tolerance": self.policy.tolerance,
            "action": self.policy.action,
            "act_at": self.policy.act_at,
            "actions": self.guard.actions,
            "stopped_at": self.stopped_at,
            "history": self.history,
            "verdict": verdict(self.history, self.policy),
        }

    def _write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        replace_text(directory / FORGETTING_NAME, json.dumps(self.report(), indent=1))

    def _say(self, state, line: str) -> None:
        if state.is_world_process_zero:
            say(line)


def measure_finite(eval_sets: dict[str, EvalWindows], model: torch.nn.Module, args, words: str) -> Readings:
    """The readings of a model on all processes. Raises MyPTError with `words` for a NaN or infinite loss."""
    evaluator = Evaluator(eval_sets, args.per_device_eval_batch_size, args.process_index, args.world_size)
    with eager(model):
        readings = evaluator.measure(model)
    for name, reading in readings.items():
        if not math.isfinite(reading.losses.loss):
            raise MyPTError(f"the loss on {name} is {reading.losses.loss} {words}")
    return readings


def human_line(entry: dict) -> str:
    """`step 100: domain 2.15 | general 2.89 (+0.04 +/- 0.01, healthy)`, of an entry of the history."""
    return f"step {entry['step']}: {describe_sets(entry['sets'])}"
