"""Write a stock model as transformers does: safetensors, config, generation config and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.load import load_model
from mypt.conversion.parity import TransformersRunner
from mypt.conversion.weights import cast
from mypt.tokenization.load import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def check(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Refuse nothing."""


def tolerance_factor(target: str, dtype: str, saved_as: str) -> float:
    """The factor of the comparison's tolerance: weights are compared in float32."""
    return 1.0


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    folder: Path,
    dtype: str,
    max_shard_size: int | None = None,
) -> list[str]:
    """Write the folder; `model` is cast to `dtype`."""
    cast(model, dtype)
    save(model, tokenizer, folder, max_shard_size)
    return []


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path, max_shard_size: int | None
) -> None:
    """`save_pretrained` of both."""
    model.save_pretrained(folder, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


@contextmanager
def open_folder(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> Iterator[TransformersRunner]:
    """Load the folder as anyone would, and compute in float32."""
    yield TransformersRunner(load_model(folder, device="cpu"))
