"""Time and memory of a trainer's first steps, one evaluation and one save; then it ends."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback


class StepMeter(TrainerCallback):
    """Attach to a `MyPTTrainer`: `warmup` steps, `least` to `most` more of about `seconds`, an evaluation, a save.

    Attributes:
        marks: Times of the first step's beginning and of each step's end.
        evaluations: Seconds of each measurement of the evaluation sets; the first is the baseline's.
        saving: Seconds of the save. saved: the time at its end.
        memory, evaluation_memory: Peak bytes of the steps and of the last evaluation.
    """

    def __init__(
        self,
        trainer,
        clock: Callable[[], float],
        *,
        warmup: int,
        least: int,
        most: int,
        seconds: float,
    ):
        self.clock, self.warmup, self.least, self.most, self.seconds = clock, warmup, least, most, seconds
        self.device = trainer.args.device
        self.marks: list[float] = []
        self.evaluations: list[float] = []
        self.saving = self.saved = 0.0
        self.memory = self.evaluation_memory = None
        self._evaluated = 0.0
        # After the one that completes a save, before those that draw.
        trainer.callback_handler.callbacks.insert(2, self)
        self.evaluates = trainer.forgetting is not None
        if self.evaluates:
            self._inner, trainer.forgetting.measure = trainer.forgetting.measure, self._measure

    def _measure(self, *args, **kwargs):
        reset_peak(self.device)
        start = self._now()
        metrics = self._inner(*args, **kwargs)
        self.evaluations.append(self._now() - start)
        self.evaluation_memory = peak(self.device)
        return metrics

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return self.clock()

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.marks:
            reset_peak(self.device)
            self.marks.append(self._now())

    def on_step_end(self, args, state, control, **kwargs):
        self.marks.append(self._now())
        counted = len(self.marks) - 1 - self.warmup
        if counted < self.least:
            return
        if counted >= self.most or self.marks[-1] - self.marks[self.warmup] >= self.seconds:
            self.memory, self._evaluated = peak(self.device), self._now()
            control.should_training_stop = control.should_save = True
            control.should_evaluate = self.evaluates

    def on_evaluate(self, args, state, control, **kwargs):
        self._evaluated = self._now()

    def on_save(self, args, state, control, **kwargs):
        self.saved = self._now()
        self.saving = self.saved - self._evaluated


def reset_peak(device: torch.device) -> None:
    """Begin a new high-water mark, where the system has one that can be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Bytes that torch allocated at most on a GPU, or that this process held of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        return int(line.split()[1]) * 1024 if line else None
    import resource

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
