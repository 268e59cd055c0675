"""Compare a written model, in whatever format, with its source: logits, greedy text, bits per byte, speed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mypt.conversion.weights import cast
from mypt.errors import CheckFailed
from mypt.text.embedded import language_topics
from mypt.tokenization.load import largest_id
from mypt.versions import version_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Probes = dict[str, tuple[Tensor, Tensor]]  # ids and attention mask, int64 (B, T), by name

TOLERANCE = 1e-5  # of the largest logit; float32 has 1.2e-7, and GPT-2's matrices are summed in another order
LENGTH, CONTINUATION = 128, 32  # tokens
MEASURED, PROMPT, DECODED, REPEATS = 512, 16, 64, 3  # tokens of text, of a prompt, decoded for the speed; timings
TEXT = """The committee met on 3 March 2021 to hear the appeal. "Nothing in the record," it wrote, "shows that the
notice was served, and a party that was never told cannot be late." Costs of 1,250.00 were awarded; naïve as it may
sound, both sides thanked the clerk.

def moving_average(values, width):
    total = sum(values[:width])
    for old, new in zip(values, values[width:]):
        yield total / width
        total += new - old
"""


class Runner(Protocol):
    """A library that runs models of a format, with one model loaded.

    Attributes:
        name: The library and its version.
        every: It gives the logits of each `every`-th position, the first of them at position `every // 2`.
        normalized: They are log-probabilities, over the ids from 0 to the last that the tokenizer has.
        process: The id of the process that computes: this one, or a server's.
    """

    name: str
    every: int
    normalized: bool
    process: int

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute float32 (B, positions, V) for int64 ids and attention mask (B, T); anything where the mask is 0."""

    def greedy(self, prompt: Tensor, new: int) -> list[int]:
        """Continue a prompt, int64 (1, T), by at most `new` tokens; an end-of-text token is the last."""

    def losses(self, ids: Tensor) -> Tensor:
        """Compute the negative log-likelihood in nats, float32 (T - 1,), of all ids (1, T) but the first."""

    def decode(self, prompt: Tensor, new: int) -> float:
        """Return tokens/s of decoding exactly `new` tokens after a prompt (1, T) with one thread."""


class Outputs(NamedTuple):
    """Logits by the name of the probe, and a greedy continuation."""

    logits: dict[str, Tensor]
    greedy: list[int]


class Text(NamedTuple):
    """Windows of ids, int64 (1, T) each, and the UTF-8 bytes of all ids but the first of each window."""

    windows: list[Tensor]
    bytes: int


# ---- what is asked ----


def random_ids(vocab_size: int, context: int | None) -> Tensor:
    """Return random ids of a fixed seed, int64 (2, T); T is `LENGTH`, or the model's context if that is shorter."""
    import torch

    length = min(LENGTH, context or LENGTH)
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def make_probes(config: dict, tokenizer: PreTrainedTokenizerFast | None) -> Probes:
    """Return inputs by name: ids and attention mask, int64 (B, T), no longer than the model's context."""
    import torch

    size, length = config["unpadded_vocab_size"] or config["vocab_size"], config["max_position_embeddings"]
    if tokenizer is not None:
        size = min(size, largest_id(tokenizer) + 1)  # a file may hold these alone
    ids = random_ids(size, length)
    padded = torch.ones_like(ids)
    padded[1, : ids.shape[1] // 3] = 0
    probes = {"random ids": (ids, torch.ones_like(ids)), "left-padded batch": (ids, padded)}
    if tokenizer is not None:
        text = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"][: ids.shape[1]]])
        probes["text"] = (text, torch.ones_like(text))
    return probes


def sample_text() -> str:
    """Return the beginning of Python's language reference, or `TEXT` where Python lacks it."""
    return "\n\n".join(language_topics())[: 16 * MEASURED] or TEXT


def make_text(tokenizer: PreTrainedTokenizerFast, text: str, context: int) -> Text | None:
    """Cut the first `MEASURED` tokens of a text into windows of the context; None for less than two tokens."""
    import numpy as np
    import torch

    from mypt.tokenization.token_bytes import TextOf

    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:MEASURED]
    windows = [window for start in range(0, len(ids), context) if len(window := ids[start : start + context]) > 1]
    if not windows:
        return None
    text_of = TextOf(tokenizer)
    size = sum(len(text_of(np.array(window[1:]))) for window in windows)
    return Text([torch.tensor([window]) for window in windows], size)


# ---- what runs it ----


class TransformersRunner:
    """A model of transformers, whose logits are computed in float32; the weights keep their dtype.

    A quantized model computes as it is (`exact=False`).
    """

    every, normalized = 1, False

    def __init__(self, model: PreTrainedModel, exact: bool = True):
        self.name, self.model, self._exact = f"transformers {version_of('transformers')}", model, exact
        self.process = os.getpid()

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        import torch

        dtype = str(self.model.dtype).removeprefix("torch.")
        with torch.no_grad():
            if self._exact:
                cast(self.model, "float32")
            yield
            if self._exact:
                cast(self.model, dtype)  # which loses nothing

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self._in_float32():
            return self.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()

    def greedy(self, prompt: Tensor, new: int) -> list[int]:
        with self._in_float32():
            return self._generate(prompt, new)

    def losses(self, ids: Tensor) -> Tensor:
        import torch

        return losses_of(self.logits(ids, torch.ones_like(ids)), ids)

    def decode(self, prompt: Tensor, new: int) -> float:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            start = time.perf_counter()
            with torch.no_grad():
                self._generate(prompt, new, min_new_tokens=new)
            return new / (time.perf_counter() - start)
        finally:
            torch.set_num_threads(threads)

    def _generate(self, prompt: Tensor, new: int, **options) -> list[int]:
        import torch

        options |= {"attention_mask": torch.ones_like(prompt), "do_sample": False, "num_beams": 1}
        return self.model.generate(prompt, max_new_tokens=new, **options)[0, prompt.shape[1] :].tolist()


def losses_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the losses of all ids but the first, (T - 1,), under the logits (1, T, V) of the ids before."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")


# ---- the comparison ----


def evaluate(runner: Runner, probes: Probes, context: int) -> Outputs:
    """Compute the logits of each probe, and continue the first half of the text, or of random ids."""
    logits = {name: runner.logits(ids, mask) for name, (ids, mask) in probes.items()}
    ids, _ = probes.get("text", probes["random ids"])
    prompt = ids[:1, : ids.shape[1] // 2]
    return Outputs(logits, runner.greedy(prompt, min(CONTINUATION, context - prompt.shape[1])))


def differences(first: Outputs, second: Outputs, probes: Probes, runner: Runner | None = None) -> dict[str, float]:
    """Return the largest absolute difference of any logit, by probe; positions of padding are left out.

    `second` is what `runner` gave, if it is not a model of transformers.
    """
    found, every = {}, runner.every if runner else 1
    chosen = slice(every // 2, None, every)
    for name, (_, mask) in probes.items():
        kept, other = mask[:, chosen].bool(), second.logits[name]
        expected = first.logits[name][:, chosen, : other.shape[-1]]
        if runner and runner.normalized:
            expected = expected.log_softmax(-1)
        found[name] = (expected - other)[kept].abs().max().item()
    return found


def compare(
    expected: Outputs, found: Outputs, probes: Probes, runner: Runner | None = None, factor: float = 1.0
) -> dict[str, Any]:
    """Compare two results of `evaluate`, the second of `runner`, or of a model of transformers.

    Args:
        factor: What the tolerance is multiplied with, for a runner that computes in less than float32.

    Returns:
        JSON-ready: `differences` by probe, `largest_logit`, `tolerance`, `greedy_tokens` and `greedy_equal`.

    Raises:
        CheckFailed: a logit differs by more than the tolerance, or is NaN or infinite.
    """
    by_probe = differences(expected, found, probes, runner)
    largest = max(logits.abs().max().item() for logits in expected.logits.values())
    tolerance = factor * TOLERANCE * max(1.0, largest)
    # Where logits are infinite, so is the tolerance.
    wrong = [f"{value:.1e} ({name})" for name, value in by_probe.items() if not value <= tolerance < math.inf]
    if wrong:
        raise CheckFailed(
            f"the written model gives logits that differ by {', '.join(wrong)}, more than the tolerance of "
            f"{tolerance:.1e}; nothing is kept"
        )
    return {
        "differences": by_probe,
        "largest_logit": largest,
        "tolerance": tolerance,
        "greedy_tokens": len(expected.greedy),
        "greedy_equal": expected.greedy == found.greedy,
    }


def measure(runner: Runner, text: Text | None, probes: Probes, context: int) -> dict[str, Any]:
    """Measure bits per byte on a text (None: there is none) and the best tokens/s of some decodings with one thread.

    Raises CheckFailed if a loss is NaN or infinite.
    """
    bits = None
    if text is not None:
        nats = sum(runner.losses(window).double().sum().item() for window in text.windows)
        bits = nats / math.log(2) / max(1, text.bytes)
        if not math.isfinite(bits):
            raise CheckFailed(f"the losses of {runner.name} on the text are {bits}; nothing is kept")
    ids, _ = probes.get("text", probes["random ids"])
    prompt = ids[:1, : min(PROMPT, ids.shape[1], max(1, context // 2))]
    new = min(DECODED, context - prompt.shape[1])
    best = max(runner.decode(prompt, new) for _ in range(REPEATS))
    return {"bits_per_byte": bits, "tokens_per_second": best, "runtime": runner.name}
