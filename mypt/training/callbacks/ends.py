"""Measure a short run at its two ends alone, and save nothing: the probes of `mypt plan --replay`."""

import math

from transformers import TrainerCallback

from mypt.errors import MyPTError
from mypt.evaluation.evaluator import Evaluator, Readings
from mypt.training.callbacks.diagnosis import DiagnosisCallback
from mypt.training.callbacks.forgetting import ForgettingCallback
from mypt.training.callbacks.metrics import MetricsCallback
from mypt.training.callbacks.progress import ProgressBarCallback
from mypt.training.model.compiled import eager


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
        evaluator = Evaluator(self._sets, args.per_device_eval_batch_size, args.process_index, args.world_size)
        with eager(model):
            readings = evaluator.measure(model)
        for name, reading in readings.items():
            if not math.isfinite(reading.losses.loss):
                raise MyPTError(
                    f"the loss on {name} is {reading.losses.loss} after {state.global_step} steps of a probe; lower "
                    "training.learning_rate"
                )
        return readings
