"""Figures of a model that are no losses; here BLEU and chrF of what it writes after prompts, against references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from mypt.errors import MyPTError
from mypt.generation.prompts import read_records
from mypt.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 128
_INSTALL = "BLEU and chrF need the package sacrebleu: pip install mypt[metrics]"


@dataclass(frozen=True)
class Metric:
    """One figure; `delta` is the change from the first model (None for itself)."""

    model: str
    data: str  # the name of the references, or of the task
    metric: str
    value: float
    error: float | None  # standard error
    delta: float | None
    samples: int
    details: str  # sacrebleu's signature, or the version of the task
    data_hash: str


def with_changes(metrics: list[Metric], first: str) -> list[Metric]:
    """The same figures with `delta`, the change from the model `first`, which comes before the others."""
    base = {(metric.data, metric.metric): metric.value for metric in metrics if metric.model == first}
    return [
        metric if metric.model == first else replace(metric, delta=metric.value - base[metric.data, metric.metric])
        for metric in metrics
    ]


@dataclass(frozen=True)
class References:
    """Prompts and what should follow them.

    Attributes:
        prompts: One text each.
        references: The texts that are right for each prompt, one or more.
        hash: xxh3-128 of the file.
    """

    prompts: list[str]
    references: list[list[str]]
    hash: str

    @property
    def stop(self) -> tuple[str, ...]:
        """A text ends with its first line, unless a reference has several."""
        return () if any("\n" in text for texts in self.references for text in texts) else ("\n",)


def read_references(file: str) -> References:
    """Read lines of JSON with `prompt` and `reference`, a text or a list of texts.

    Raises MyPTError, naming the line, for what is no such line, and for any file if sacrebleu is not installed.
    """
    if find_spec("sacrebleu") is None:
        raise MyPTError(_INSTALL)
    if not file.endswith(".jsonl"):
        raise MyPTError(f"--references {file}: expected a .jsonl file with a prompt and a reference on each line")
    records, found = read_records(file), []
    for number, record in enumerate(records, 1):
        given = record.get("reference")
        texts = [given] if isinstance(given, str) else given
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise MyPTError(
                f"{file}: record {number} has no text or list of texts as its reference; write "
                '{"prompt": "...", "reference": "..."} on each line'
            )
        found.append(texts)
    digest = xxhash.xxh3_128_hexdigest(Path(file).read_bytes())
    return References([record["prompt"] for record in records], found, digest)


def score_references(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    references: References,
    *,
    path: str,
    name: str,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[list[Metric], list[str]]:
    """Continue each prompt greedily and compare all of the texts with the references.

    Args:
        path, name: What the figures call the model and the references.
        progress: Called with the number of texts that are new.

    Returns:
        BLEU and chrF2 of the corpus, and the texts.
    """
    from mypt.generation.engine import Engine

    engine = Engine(model, tokenizer, say=lambda line: None)
    settings = GenerationSettings(greedy=True, max_new_tokens=max_new_tokens, stop=references.stop, seed=0)
    texts = []
    for completion in engine.complete_batch(references.prompts, settings, batch_size=batch_size, strip=True):
        texts.append(completion.text)
        progress(1)
    return [
        Metric(path, name, metric, value, None, None, len(texts), signature, references.hash)
        for metric, value, signature in corpus_scores(texts, references.references)
    ], texts


def corpus_scores(texts: list[str], references: list[list[str]]) -> list[tuple[str, float, str]]:
    """(name, value, sacrebleu's signature) of BLEU and chrF2; references: one or more for each text."""
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    streams = [[found[place] if place < len(found) else None for found in references] for place in range(most)]
    found = []
    for metric in (BLEU(), CHRF()):
        score = metric.corpus_score(texts, streams)
        found.append((score.name, float(score.score), str(metric.get_signature())))
    return found
