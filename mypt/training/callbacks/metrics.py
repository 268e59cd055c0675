"""Write every logged number to metrics.jsonl and draw loss.png."""

import json
import math
from pathlib import Path

from transformers import TrainerCallback

from mypt.checkpoints.state import METRICS_NAME
from mypt.training.callbacks.pictures import Pace, plot_loss


class MetricsCallback(TrainerCallback):
    """Write one JSON line per log entry to the trainer's output_dir.

    A resume first rewrites the file from the checkpoint's history, so that steps that are trained again occur once.
    loss.png is drawn when training ends, and at saves with a `Pace`.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self._pace = Pace()
        if state.is_world_process_zero:
            path = Path(args.output_dir) / METRICS_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(map(json_line, state.log_history)), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with open(Path(args.output_dir) / METRICS_NAME, "a", encoding="utf-8") as file:
                file.write(json_line({**logs, "step": state.global_step}))

    def on_save(self, args, state, control, **kwargs):
        if self._pace.due():
            self.draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.draw(args, state)

    def draw(self, args, state) -> None:
        if state.is_world_process_zero:
            plot_loss(state.log_history, Path(args.output_dir) / "loss.png")


def json_line(entry: dict) -> str:
    """One line of strict JSON; a NaN or infinite number becomes null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
