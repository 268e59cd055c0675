"""What a person sees while it trains: a progress bar on a terminal, one plain line per log entry when piped."""

import sys
import time

from tqdm.auto import tqdm
from transformers import TrainerCallback


class ProgressBarCallback(TrainerCallback):
    """Loss, learning rate, coverage and tokens per second of the training steps since the last log entry.

    tokens_per_step: targets in one optimizer step over all processes.
    """

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self._bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", disable=not sys.stderr.isatty()
            )
        self._last_step, self._last_time = state.global_step, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._bar is None or "loss" not in logs:
            return
        seconds = max(time.monotonic() - self._last_time, 1e-9)
        rate = (state.global_step - self._last_step) * self.tokens_per_step / seconds
        self._last_step, self._last_time = state.global_step, time.monotonic()
        passes = "" if state.epoch is None else f"{state.epoch:.2f}x, "  # None: of what is streamed, nobody knows yet
        text = f"loss {logs['loss']:.3f}, lr {logs['learning_rate']:.2e}, {passes}{rate:,.0f} tokens/s"
        if self._bar.disable:
            print(f"step {state.global_step}/{state.max_steps}: {text}", flush=True)
        else:
            self._bar.set_postfix_str(text)

    def on_evaluate(self, args, state, control, **kwargs):
        # The time an evaluation took is no training time.
        self._last_step, self._last_time = state.global_step, time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    """Print a line above the progress bar, if there is one."""
    tqdm.write(line)
