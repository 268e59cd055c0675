"""Which sample of a step was the worst, for people: its number, its loss, where it lies and how its text begins."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

from mypt.training.hardware.compiled import eager
from mypt.training.objective import next_tokens
from mypt.training.pulse import Beat

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


def worst_sample(trainer, beat: Beat) -> dict | None:
    """The sample of a step with the highest loss by the weights as they are now, or the first that is no number.

    {"sample", "loss", "place", "text"}; None if every row is no number: then it is the weights. One forward pass over
    the step's batch, so for rare steps only. All processes call it alike.
    """
    args, found = trainer.args, []
    for index, batch in enumerate(beat.batches):
        losses = row_losses(trainer.model, batch).cpu()
        row = int(losses.nan_to_num(nan=math.inf).argmax())
        first = beat.samples[0] + (index * args.world_size + args.process_index) * args.train_batch_size
        per_sample = max(1, len(losses) // args.train_batch_size)  # rows, in a curriculum
        healthy = bool(losses.isfinite().any())
        found.append((first + row // per_sample, losses[row].item(), healthy, batch["input_ids"][row].tolist()))
    found = gather_object(found)
    if not any(healthy for _, _, healthy, _ in found):
        return None
    sample, loss, _, ids = max(found, key=lambda one: math.inf if math.isnan(one[1]) else one[1])
    return {"sample": sample, "loss": loss, "place": _place(trainer.train_dataset, sample), "text": _text(trainer, ids)}


def describe(worst: dict | None) -> str:
    """`sample 643, loss 9.2, data/domain/train/shard_00002.bin token 12,345: 'how it begins'`"""
    if worst is None:
        return "no sample stands out"
    place = f", {worst['place']}" if worst["place"] else ""
    return f"sample {worst['sample']}, loss {worst['loss']:.4g}{place}: {worst['text']!r}"


def _place(stream, sample: int) -> str | None:
    """The shard and the token in it at which a sample of a `ShardStream` begins; of another stream its name."""
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
