"""Find loss spikes and the sample of a step that stands out."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.checkpoints.state import SPIKES_NAME, loaded_state
from mypt.terminal import say
from mypt.training.model.compiled import eager
from mypt.training.model.objective import next_tokens
from mypt.training.stability.step_monitor import StepStats

TEXT = 100  # characters of the sample that are shown


@torch.no_grad()
def row_losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean nats per target of each row of a micro-batch, float32 (rows,); 0 for a row without targets."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    labels = next_tokens(batch)
    inputs = {name: tensor.to(device) for name, tensor in batch.items() if "labels" not in name}
    with eager(model):
        logits = model(**inputs, use_cache=False).logits.float()  # (rows, T, vocabulary)
    model.train(was_training)
    labels = labels.to(device)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return losses.sum(dim=1) / labels.ne(-100).sum(dim=1).clamp(min=1)


def worst_sample(trainer, stats: StepStats) -> dict | None:
    """The sample with the highest loss of a step by the current weights, or the first that is NaN or infinite.

    All processes call it together. It takes one forward pass over the step's batch.

    Returns:
        {"sample", "loss", "place", "text"}, or None if every row is NaN or infinite: then the weights are broken.
    """
    args, found = trainer.args, []
    for index, batch in enumerate(stats.batches):
        losses = row_losses(trainer.model, batch).cpu()
        row = int(losses.nan_to_num(nan=math.inf).argmax())
        first = stats.samples[0] + (index * args.world_size + args.process_index) * args.train_batch_size
        per_sample = max(1, len(losses) // args.train_batch_size)  # rows, in a curriculum
        healthy = bool(losses.isfinite().any())
        found.append((first + row // per_sample, losses[row].item(), healthy, batch["input_ids"][row].tolist()))
    found = gather_object(found)
    if not any(healthy for _, _, healthy, _ in found):
        return None
    sample, loss, _, ids = max(found, key=lambda one: math.inf if math.isnan(one[1]) else one[1])
    return {"sample": sample, "loss": loss, "place": _place(trainer.train_dataset, sample), "text": _text(trainer, ids)}


def describe(worst: dict | None) -> str:
    """`sample 643, loss 9.2, data/domain/train/shard_00002.bin token 12,345: 'its first characters'`"""
    if worst is None:
        return "no sample stands out"
    place = f", {worst['place']}" if worst["place"] else ""
    return f"sample {worst['sample']}, loss {worst['loss']:.4g}{place}: {worst['text']!r}"


def _place(stream, sample: int) -> str | None:
    """The shard and token at which a sample of a `ShardStream` begins; the name of any other stream."""
    if not hasattr(stream, "places"):
        return getattr(stream, "name", None)
    (owner,), (token,) = stream.places(np.array([sample]))
    reader = stream.readers[owner]
    for shard in reader.shards:
        if token < shard.tokens:
            return f"{reader.directory / shard.file} token {token:,}"
        token -= shard.tokens
    return str(reader.directory)


def _text(trainer, ids: list[int]) -> str:
    decode = getattr(trainer.processing_class, "decode", None)
    return decode(ids, skip_special_tokens=False)[:TEXT] if decode else " ".join(map(str, ids[:20]))


WINDOW = 100  # earlier steps that a step is compared with
ENOUGH = 20  # fewest earlier steps for a judgement
DEVIATIONS = 6.0  # standard deviations, estimated as 1.4826 x MAD, which single spikes do not move
LEAST = 0.1  # nats per token


class SpikeCallback(TrainerCallback, ExportableState):
    """Write spikes.jsonl: steps whose loss is above median + max(6 x 1.4826 x MAD, 0.1 nats) of the 100 steps before.

    The trainer calls `see` with the loss of every single step, before they are averaged for the log. Losses and spikes
    are saved in trainer_state.json, so that a resumed run finds the same ones.
    """

    def __init__(self):
        self.losses: list[float] = []
        self.spikes: list[dict] = []

    def state(self) -> dict:
        return {"args": {}, "attributes": {"losses": list(self.losses), "spikes": list(self.spikes)}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = loaded_state(state).spikes or {}
        self.losses = list(saved.get("losses", []))
        self.spikes = list(saved.get("spikes", []))
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        path = Path(args.output_dir) / SPIKES_NAME
        if state.is_world_process_zero and (self.spikes or path.exists()):
            # Drop the lines of steps that are trained again.
            path.write_text("".join(map(_line, self.spikes)), encoding="utf-8")

    def see(self, trainer, stats: StepStats) -> None:
        """Judge one step. All processes call it together."""
        limit = threshold(self.losses, stats.loss)
        self.losses = [*self.losses[-WINDOW + 1 :], stats.loss]
        if limit is None:
            return
        worst = worst_sample(trainer, stats)
        in_a_row = bool(self.spikes) and self.spikes[-1]["step"] == stats.step - 1
        figures = {"step": stats.step, "loss": stats.loss, "limit": limit, "grad_norm": stats.grad_norm}
        self.spikes.append({**figures, "samples": list(stats.samples), "worst": worst})
        if trainer.is_world_process_zero():
            with open(Path(trainer.args.output_dir) / SPIKES_NAME, "a", encoding="utf-8") as file:
                file.write(_line(self.spikes[-1]))
            if not in_a_row:
                say(f"loss spike at {stats}, above {limit:.4g}: {describe(worst)}")


def threshold(before: list[float], loss: float) -> float | None:
    """The limit that `loss` exceeds if it is a spike after these losses, else None."""
    if len(before) < ENOUGH or loss <= min(before) + LEAST:  # the median is not below the minimum
        return None
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
    limit = median + max(DEVIATIONS * deviation, LEAST)
    return None if loss <= limit else limit


def _line(spike: dict) -> str:
    """Keys are sorted as in trainer_state.json, from which a resume takes the spike."""
    return json.dumps(spike, sort_keys=True) + "\n"
