"""Measure tokens per second, model FLOPs utilization, the parts of a step's time, memory and the time left."""

import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from mypt.hardware.peak import Peak, peak_of
from mypt.hardware.speeds import write_speed
from mypt.terminal import say

DATA, PASSES, OPTIMIZER, REST = "data", "passes", "optimizer", "rest"  # of a training step
OUTSIDE, STARTUP = "outside", "startup"  # evaluating and saving; what happens before the first step
MANY_MARKS = 4_000  # settle so many at the latest, however seldom the run logs


class ThroughputCallback(TrainerCallback):
    """Add the speed since the last log entry to each entry that has a training loss, in any HF Trainer.

    block_size: tokens in a sample. Keys and units (docs/throughput.md has the definitions):
    throughput/tokens_per_second over all processes; throughput/mfu, a share of 1, of the model's FLOPs without the
    optimizer's; throughput/data_ms, compute_ms and rest_ms per optimizer step, of the main process, and optimizer_ms,
    the optimizer's part of compute_ms; throughput/memory_gib; throughput/eta_seconds.
    Callbacks that come after this one in Trainer's list see the numbers. Evaluating and saving count for the ETA alone.

    identity: as of `mypt.hardware.speeds.identify`; with it speed.json in the output_dir gets the mean speed of this
    session, without its first step.
    """

    def __init__(self, block_size: int, identity: dict | None = None):
        self.block_size = block_size
        self.identity = identity
        self.peak: Peak | None = None
        self._seconds: dict[str, float] = {}
        self._entries = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.peak = peak_of(args.device, _dtype(args, model))
        if state.is_world_process_zero:
            say(f"throughput: MFU is of {self.peak.words}")
        self._clock = _CudaClock if args.device.type == "cuda" else _CpuClock
        self._seconds = dict.fromkeys((DATA, PASSES, OPTIMIZER, REST, OUTSIDE, STARTUP), 0.0)
        self._logged = self._started = self._at(state)
        self._steady = None  # set after the first step, which compiles and allocates
        self._entries = len(state.log_history)
        self._marks, self._last = [], self._clock.mark()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._mark(OUTSIDE if state.global_step > self._started[0] else STARTUP, state)

    def before_batches(self, state) -> None:
        """Called before batches are fetched. A stock Trainer has no such event; there they count from the last one."""
        self._mark(self._marks[-1][0] if self._marks and self._marks[-1][0] in (OUTSIDE, STARTUP) else REST, state)

    def on_step_begin(self, args, state, control, **kwargs):
        self._mark(DATA, state)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._mark(PASSES, state)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._mark(OPTIMIZER, state)

    def on_step_end(self, args, state, control, **kwargs):
        self._mark(REST, state)
        if len(self._marks) > MANY_MARKS or self._steady is None:
            self._add_up()
        self._steady = self._steady or self._at(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._entries += 1
        self._mark(REST if "loss" in logs else OUTSIDE, state)
        if "loss" in logs and state.global_step > self._logged[0]:
            numbers = self._read(args, state)
            logs.update(numbers)
            state.log_history[-1].update(numbers)

    def on_evaluate(self, args, state, control, **kwargs):
        self._mark(OUTSIDE, state)

    def on_save(self, args, state, control, **kwargs):
        self._mark(OUTSIDE, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._add_up()
        if self.identity is None or not state.is_world_process_zero or self._steady is None:
            return
        (first, _, before), (last, _, now) = self._steady, self._at(state)
        seconds = sum(now[kind] - before[kind] for kind in (DATA, PASSES, OPTIMIZER, REST))
        if last > first and seconds > 0:
            each = seconds / (last - first)
            rate = self._samples(args) * self.block_size / each
            figures = {"steps": last - first, "seconds": each, "tokens_per_second": rate}
            write_speed(Path(args.output_dir), self.identity, figures)

    @staticmethod
    def _samples(args) -> int:
        """In an optimizer step."""
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _mark(self, kind: str, state) -> None:
        """End a part of this kind, which began at the last mark."""
        if self.peak is None:  # an evaluation before training
            return
        if len(state.log_history) != self._entries:  # a callback has evaluated by itself
            kind, self._entries = STARTUP if kind == STARTUP else OUTSIDE, len(state.log_history)
        self._marks.append((kind, self._clock.mark()))

    def _add_up(self) -> None:
        for kind, mark in self._marks:
            self._seconds[kind] += self._clock.seconds(self._last, mark)
            self._last = mark
        self._marks.clear()

    def _at(self, state) -> tuple[int, float, dict]:
        return state.global_step, state.total_flos, dict(self._seconds)

    def _read(self, args, state) -> dict[str, float]:
        self._add_up()
        (step, flops, before), now = self._logged, self._at(state)
        steps = now[0] - step
        spent = {kind: now[2][kind] - before[kind] for kind in (DATA, PASSES, OPTIMIZER, REST)}
        seconds = sum(spent.values())
        numbers = {"throughput/tokens_per_second": round(steps * self._samples(args) * self.block_size / seconds, 1)}
        if now[1] > flops:  # Trainer could count them
            mfu = (now[1] - flops) / seconds / (self.peak.flops * args.world_size)
            numbers["throughput/mfu"] = float(f"{mfu:.3g}")
        parts = {"data": spent[DATA], "compute": spent[PASSES] + spent[OPTIMIZER], "optimizer": spent[OPTIMIZER],
                 "rest": spent[REST]}  # fmt: skip
        numbers |= {f"throughput/{name}_ms": round(1e3 * part / steps, 3) for name, part in parts.items()}
        if (memory := _peak_memory(args.device)) is not None:
            numbers["throughput/memory_gib"] = round(memory / 2**30, 3)
        since = self._steady if now[0] > self._steady[0] else self._logged
        whole = sum(now[2][kind] - since[2][kind] for kind in (DATA, PASSES, OPTIMIZER, REST, OUTSIDE))
        numbers["throughput/eta_seconds"] = round((state.max_steps - now[0]) * whole / (now[0] - since[0]), 1)
        self._logged = now
        return numbers


class _CpuClock:
    mark = staticmethod(time.perf_counter)

    @staticmethod
    def seconds(start: float, end: float) -> float:
        return end - start


class _CudaClock:
    """Marks in the GPU's queue, which nothing waits for until they are read."""

    @staticmethod
    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def seconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _dtype(args, model) -> torch.dtype:
    """The dtype of matrix products."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else next(model.parameters()).dtype


def _peak_memory(device: torch.device) -> int | None:
    """Bytes: the peak that torch allocated on a GPU, or that the process held of main memory; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
