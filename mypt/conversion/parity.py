"""Compare the logits of a written model, in whatever format, with those of its source."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mypt.conversion.weights import cast
from mypt.errors import CheckFailed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Probes = dict[str, tuple[Tensor, Tensor]]  # ids and attention mask, int64 (B, T), by name
    Outputs = tuple[dict[str, Tensor], Tensor]  # logits (B, T, V) by name, and a greedy continuation (1, T)

TOLERANCE = 1e-5  # of the largest logit; float32 has 1.2e-7, and GPT-2's matrices are summed in another order
LENGTH, CONTINUATION = 128, 32  # tokens
TEXT = """The committee met on 3 March 2021 to hear the appeal. "Nothing in the record," it wrote, "shows that the
notice was served, and a party that was never told cannot be late." Costs of 1,250.00 were awarded; naïve as it may
sound, both sides thanked the clerk.

def moving_average(values, width):
    total = sum(values[:width])
    for old, new in zip(values, values[width:]):
        yield total / width
        total += new - old
"""


def random_ids(vocab_size: int, context: int | None) -> Tensor:
    """Return random ids of a fixed seed, int64 (2, T); T is `LENGTH`, or the model's context if that is shorter."""
    import torch

    length = min(LENGTH, context or LENGTH)
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def make_probes(config: dict, tokenizer: PreTrainedTokenizerFast | None) -> Probes:
    """Return inputs by name: ids and attention mask, int64 (B, T), no longer than the model's context."""
    import torch

    size, length = config["unpadded_vocab_size"] or config["vocab_size"], config["max_position_embeddings"]
    ids = random_ids(size, length)
    padded = torch.ones_like(ids)
    padded[1, : ids.shape[1] // 3] = 0
    probes = {"random ids": (ids, torch.ones_like(ids)), "left-padded batch": (ids, padded)}
    if tokenizer is not None:
        text = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"][: ids.shape[1]]])
        probes["text"] = (text, torch.ones_like(text))
    return probes


def evaluate(model: PreTrainedModel, probes: Probes) -> Outputs:
    """Compute the logits of each probe, (B, T, V), and a greedy continuation, (1, T), in float32.

    The weights are cast back to their dtype afterwards, which loses nothing.
    """
    import torch

    dtype, logits = str(model.dtype).removeprefix("torch."), {}
    cast(model, "float32")
    with torch.no_grad():
        for name, (ids, mask) in probes.items():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits[name] = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        ids, mask = probes.get("text", probes["random ids"])
        prompt = ids[:1, : ids.shape[1] // 2]
        new = min(CONTINUATION, model.config.max_position_embeddings - prompt.shape[1])
        greedy = model.generate(
            prompt, attention_mask=mask[:1, : prompt.shape[1]], do_sample=False, num_beams=1, max_new_tokens=new
        )
    cast(model, dtype)
    return logits, greedy[:, prompt.shape[1] :]


def differences(first: dict[str, Tensor], second: dict[str, Tensor], probes: Probes) -> dict[str, float]:
    """Return the largest absolute difference of any logit, by probe; positions of padding are left out."""
    kept = {name: mask.bool() for name, (_, mask) in probes.items()}
    return {name: (first[name] - second[name])[kept[name]].abs().max().item() for name in probes}


def compare(expected: Outputs, found: Outputs, probes: Probes) -> dict[str, Any]:
    """Compare two results of `evaluate`, or what a runtime of another format gave for the same probes.

    Returns:
        JSON-ready: `differences` by probe, `largest_logit`, `tolerance`, `greedy_tokens` and `greedy_equal`.

    Raises:
        CheckFailed: a logit differs by more than the tolerance, or is NaN or infinite.
    """
    found_differences = differences(expected[0], found[0], probes)
    largest = max(logits.abs().max().item() for logits in expected[0].values())
    tolerance = TOLERANCE * max(1.0, largest)
    # Where logits are infinite, so is the tolerance.
    wrong = [f"{value:.1e} ({name})" for name, value in found_differences.items() if not value <= tolerance < math.inf]
    if wrong:
        raise CheckFailed(
            f"the written model gives logits that differ by {', '.join(wrong)}, more than the tolerance of "
            f"{tolerance:.1e}; nothing is kept"
        )
    return {
        "differences": found_differences,
        "largest_logit": largest,
        "tolerance": tolerance,
        "greedy_tokens": expected[1].shape[1],
        "greedy_equal": expected[1].tolist() == found[1].tolist(),
    }
