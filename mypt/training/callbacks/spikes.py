"""Loss spikes: a step far above the ones before it, written down with the sample that stands out."""

import json
import statistics
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.terminal import say
from mypt.training.pulse import Beat
from mypt.training.suspect import describe, worst_sample

SPIKES_NAME = "spikes.jsonl"
WINDOW = 100  # steps before, that a step is compared with
ENOUGH = 20  # of them, below which nothing is judged
DEVIATIONS = 6.0  # in standard deviations, estimated as 1.4826 x MAD, which single spikes do not move
LEAST = 0.1  # nats per token


class SpikeCallback(TrainerCallback, ExportableState):
    """Writes spikes.jsonl: steps whose loss is above median + max(6 x 1.4826 x MAD, 0.1 nats) of the 100 before.

    Of the loss of single steps, before they are averaged for the log. The trainer tells each to `see`. Losses and
    spikes live in trainer_state.json, so that a resumed run finds the same ones.
    """

    def __init__(self):
        self.losses: list[float] = []
        self.spikes: list[dict] = []

    def state(self) -> dict:
        return {"args": {}, "attributes": {"losses": list(self.losses), "spikes": list(self.spikes)}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {"args": {}, "attributes": {}})["attributes"]
        self.losses = list(saved.get("losses", []))
        self.spikes = list(saved.get("spikes", []))
        path = Path(args.output_dir) / SPIKES_NAME
        if state.is_world_process_zero and (self.spikes or path.exists()):
            # Steps that are trained again will be written again.
            path.write_text("".join(map(_line, self.spikes)), encoding="utf-8")

    def see(self, trainer, beat: Beat) -> None:
        """Judge one step. All processes call it alike."""
        limit = threshold(self.losses, beat.loss)
        self.losses = [*self.losses[-WINDOW + 1 :], beat.loss]
        if limit is None:
            return
        worst = worst_sample(trainer, beat)
        in_a_row = bool(self.spikes) and self.spikes[-1]["step"] == beat.step - 1
        figures = {"step": beat.step, "loss": beat.loss, "limit": limit, "grad_norm": beat.grad_norm}
        self.spikes.append({**figures, "samples": list(beat.samples), "worst": worst})
        if trainer.is_world_process_zero():
            with open(Path(trainer.args.output_dir) / SPIKES_NAME, "a", encoding="utf-8") as file:
                file.write(_line(self.spikes[-1]))
            if not in_a_row:
                say(f"loss spike at {beat}, above {limit:.4g}: {describe(worst)}")


def threshold(before: list[float], loss: float) -> float | None:
    """What `loss` is above if it is a spike after these losses, else None."""
    if len(before) < ENOUGH or loss <= min(before) + LEAST:  # the median is not below the minimum
        return None
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
    limit = median + max(DEVIATIONS * deviation, LEAST)
    return None if loss <= limit else limit


def _line(spike: dict) -> str:
    """Sorted as in trainer_state.json, where it may come from."""
    return json.dumps(spike, sort_keys=True) + "\n"
