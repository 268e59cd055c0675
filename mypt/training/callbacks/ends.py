"""Measure a short run at its two ends alone, and save nothing: the probes of `mypt plan --replay`."""

from transformers import TrainerCallback

from mypt.evaluation.evaluator import Readings
from mypt.training.callbacks.diagnosis import DiagnosisCallback
from mypt.training.callbacks.forgetting import ForgettingCallback, measure_finite
from mypt.training.callbacks.metrics import MetricsCallback
from mypt.training.callbacks.progress import ProgressBarCallback


class MeasureEnds(TrainerCallback):
    """Measure the evaluation sets when training begins and when it ends.

    Args:
        start: The readings at step 0, where they are known.
        bar: A progress bar that counts steps.

    Attributes:
        start, end: The readings; None until they are measured, `end` after a run that was stopped, too.
    """

    def __init__(self, start: Readings | None, bar):
        self.start, self.end, self._bar = start, None, bar

    def attach(self, trainer) -> None:
        """Take the place of the callbacks that measure, record and show a run."""
        self._sets = trainer.forgetting.eval_sets
        for callback in (ForgettingCallback, MetricsCallback, ProgressBarCallback, DiagnosisCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.start = self.start or self._measure(model, args, state)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = False
        self._bar.update(1)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == state.max_steps:
            self.end = self._measure(model, args, state)

    def _measure(self, model, args, state) -> Readings:
        words = f"after {state.global_step} steps of a probe; lower training.learning_rate"
        return measure_finite(self._sets, model, args, words)
