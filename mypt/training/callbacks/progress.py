"""Show progress: a bar on a terminal, one plain line per log entry when piped."""

from transformers import TrainerCallback

from mypt.formatting import duration
from mypt.terminal import progress_bar, say

# Without tqdm's estimate of the time left, which ignores evaluations.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class ProgressBarCallback(TrainerCallback):
    """Show loss, learning rate and coverage of each log entry, and the numbers of an earlier `ThroughputCallback`."""

    def __init__(self):
        self._bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._bar = progress_bar(total=state.max_steps, initial=state.global_step, bar_format=_BAR, leave=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._bar is None or "loss" not in logs:
            return
        text = log_line(logs, state.epoch)
        if self._bar.disable:
            say(f"step {state.global_step}/{state.max_steps}: {text}")
        else:
            self._bar.set_postfix_str(text)

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.close()


def log_line(logs: dict, passes: float | None) -> str:
    """`loss 3.250, lr 1.00e-03, 0.13x, 2,602 tokens/s, 31.2% MFU, 2 min left`, without what is not known."""
    parts = [f"loss {logs['loss']:.3f}", f"lr {logs['learning_rate']:.2e}"]
    if passes is not None:  # unknown for streamed text
        parts.append(f"{passes:.2f}x")
    if (rate := logs.get("throughput/tokens_per_second")) is not None:
        parts.append(f"{rate:,.0f} tokens/s")
    if (mfu := logs.get("throughput/mfu")) is not None:
        parts.append(f"{mfu:.1%} MFU")
    if (seconds := logs.get("throughput/eta_seconds", 0)) >= 1:
        parts.append(f"{duration(seconds)} left")
    return ", ".join(parts)
