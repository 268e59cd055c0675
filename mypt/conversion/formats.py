"""The file formats of an export: the writer of each, and a runner of the written model for the parity check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mypt.conversion.parity import Outputs, Probes


class Format(NamedTuple):
    """A new format is an entry of FORMATS.

    Attributes:
        write: Writes a stock model and its tokenizer (None: there is none) to a folder.
        run: Loads the folder and computes what `mypt.conversion.parity.evaluate` does, in float32.
    """

    write: Callable[[PreTrainedModel, PreTrainedTokenizerFast | None, Path], object]
    run: Callable[[Path, Probes], Outputs]


def _write_safetensors(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path) -> None:
    from mypt.tokenization.load import save_tokenizer

    model.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def _run_safetensors(folder: Path, probes: Probes) -> Outputs:
    from mypt.checkpoints.load import load_model
    from mypt.conversion.parity import evaluate

    return evaluate(load_model(folder, device="cpu"), probes)


FORMATS = {"safetensors": Format(_write_safetensors, _run_safetensors)}
