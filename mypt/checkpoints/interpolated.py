"""Weights between a base model and one adapted from it, read and written one pair of tensors at a time.

W(alpha) = W_base + alpha (W_adapted - W_base): WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mypt.checkpoints.adapter import is_adapter, read_adapter_config, require_base
from mypt.checkpoints.model_config import cached_model, read_config_file
from mypt.checkpoints.state import Number
from mypt.checkpoints.tensors import TensorEntry, list_tensors, part_of, read_header, read_tensor
from mypt.errors import CheckpointError, TokenizerError
from mypt.json_files import Count, find_json
from mypt.tokenization.load import model_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

REPORT_NAME = "interpolation.json"  # beside the weights
PLOT_NAME = "interpolation.png"
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_NOT_A_NUMBER = re.compile("float8|F8|F4|F6")  # of quantized weights, which have scales apart
_ZERO_AT_BASE = re.compile(r"\.lora_(embedding_)?B(\.|$)")
_SAME_AT_BASE = re.compile(r"\.lora_(embedding_)?A(\.|$)")


class Reading(TypedDict):
    """One evaluation set at one alpha, in nats per token; NaN where the model is broken."""

    loss: Number
    delta: Number
    delta_error: Number
    bits_per_byte: Number
    state: str


class Point(TypedDict):
    """The measurements at one alpha."""

    alpha: float
    sets: dict[str, Reading]


class _OfRun(TypedDict, total=False):
    step: Count
    inputs: str


class InterpolationReport(_OfRun):
    """The content of interpolation.json: alpha, the two models, and the measurements by which alpha was chosen.

    In a run's OUT/best also `step`, of the adapted model, and `inputs`, a digest of all that decides alpha.
    """

    alpha: float
    base: str
    adapted: str
    target: list[str]
    guard: list[str]
    tolerance: float
    curve: list[Point]


def read_interpolation(folder: Path) -> InterpolationReport | None:
    """interpolation.json of a model's folder; None if there is none. Raises CheckpointError if it is damaged."""
    return find_json(folder / REPORT_NAME, InterpolationReport, CheckpointError, "restore it, or delete it")


def chosen_point(report: InterpolationReport) -> Point | None:
    """The measurements of the alpha that was chosen; None if it was given and nothing was measured."""
    return next((point for point in report["curve"] if point["alpha"] == report["alpha"]), None)


@dataclass(frozen=True)
class InterpolatedWeights:
    """The line from the weights of a base model to those of a model, or LoRA adapter, that was trained from it.

    Attributes:
        base: Folder of the base model; adapted: of the adapted model or adapter, in safetensors.
        tensors: The adapted model's, by name.
        partners: Name and place of each one's value at alpha 0; None for LoRA's factor B, which is zero there. Factor A
            and integers have no partner: they are the same for every alpha.
        vocabulary: Rows of the adapted model's embedding and head; shared_ids: how many of them move, those of the
            tokens that both models know. Rows of added tokens stay as the adapted model has them.
    """

    base: Path
    adapted: Path
    tensors: dict[str, TensorEntry]
    partners: dict[str, tuple[str, TensorEntry] | None]
    vocabulary: int
    shared_ids: int

    def tensor(self, name: str, alpha: float) -> Tensor:
        """A tensor of W(alpha) in the adapted model's shape and dtype, computed in float32 or wider."""
        import torch

        adapted = read_tensor(self.tensors[name].file, name)
        if alpha == 1 or name not in self.partners:
            return adapted
        partner, wide = self.partners[name], torch.promote_types(adapted.dtype, torch.float32)
        end = adapted.to(wide)
        start = torch.zeros_like(end) if partner is None else read_tensor(partner[1].file, partner[0]).to(wide)
        if _is_table(name, adapted.shape, self.vocabulary):
            start = torch.cat([start[: self.shared_ids], end[self.shared_ids :]])
        return (torch.lerp(start, end, alpha) if alpha else start).to(adapted.dtype)  # whatever NaN `end` holds

    def write(self, alpha: float, folder: Path) -> None:
        """Write the weight files of W(alpha), laid out as the adapted model's. Raises OSError."""
        import torch

        for file in sorted({entry.file for entry in self.tensors.values()}):
            header = read_header(file)[0]
            temporary = folder / f"{file.name}.tmp"  # a model may still map the file that is replaced
            with open(file, "rb") as source, open(temporary, "wb") as target:
                length = source.read(8)
                target.write(length + source.read(int.from_bytes(length, "little")))
                for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
                    values = self.tensor(name, alpha).contiguous().reshape(-1)
                    target.write(values.view(torch.uint8).numpy())
            os.replace(temporary, folder / file.name)


def interpolated_weights(base: str | Path, adapted: str | Path) -> InterpolatedWeights:
    """Pair the tensors of two models. Nothing but headers, configs and tokenizers is read.

    Args:
        base: A folder, or a hub id that the cache holds.
        adapted: The folder of a model or of a LoRA adapter.

    Raises:
        CheckpointError: A folder holds no whole model in safetensors, or a tensor has no partner of its shape, which it
            names; an adapter of another kind than LoRA, or trained beside other weights.
        TokenizerError: A token has another id in the other model.
    """
    adapted, found = Path(adapted), Path(base) if Path(base).is_dir() else cached_model(str(base))
    if found is None:
        raise CheckpointError(f"base model {base} is neither a folder nor in the hub's cache; check the name")
    if is_adapter(found):
        raise CheckpointError(f"base {base} is an adapter; merge it first: mypt merge {base} --out DIR")
    tensors, base_tensors = _weights(adapted), _weights(found)
    if is_adapter(adapted):
        _require_lora(adapted)
        require_base(adapted, str(base))
    else:
        for folder in (found, adapted):
            if read_config_file(folder).get("quantization_config"):
                raise CheckpointError(f"{folder} is quantized; interpolate the models that it was made of")
    partners = {name: _partner(name, base_tensors) for name in tensors if not _SAME_AT_BASE.search(name)}
    if missing := sorted(name for name, partner in partners.items() if partner == ("", None)):
        raise CheckpointError(
            f"{adapted} was not trained from {base}: {len(missing)} of {len(tensors)} tensors are not there, "
            f"{missing[0]} first; name the model that training started from"
        )
    vocabulary = _rows(tensors) or _rows(base_tensors)  # an adapter has no embedding, as a rule
    shared = min(_shared_ids(found, adapted), vocabulary)
    for name, partner in partners.items():
        ours, theirs = tensors[name], partner[1] if partner else tensors[name]
        if _is_table(name, ours.shape, vocabulary):
            shared = min(shared, theirs.shape[0])
            same = ours.shape[1:] == theirs.shape[1:]
        else:
            same = ours.shape == theirs.shape
        if not same:
            raise CheckpointError(
                f"{adapted} was not trained from {base}: {name} is {list(ours.shape)} there and {list(theirs.shape)} "
                "in the base; name the model that training started from"
            )
        if other := next((entry.dtype for entry in (ours, theirs) if _NOT_A_NUMBER.match(entry.dtype)), None):
            raise CheckpointError(f"{name} is {other}, which cannot be interpolated; use the model before quantization")
    moved = {name: partner for name, partner in partners.items() if tensors[name].dtype in _FLOATS}
    return InterpolatedWeights(found, adapted, tensors, moved, vocabulary, shared)


def _weights(folder: Path) -> dict[str, TensorEntry]:
    """The tensors of a model or an adapter. Raises CheckpointError unless they are whole and in safetensors."""
    tensors, problems = list_tensors(folder)
    if problems:
        raise CheckpointError(f"{folder}: {'; '.join(problems)}; save or copy it again")
    if pickled := next((entry.file for entry in tensors.values() if entry.file.suffix == ".bin"), None):
        raise CheckpointError(f"{pickled} is no safetensors file; save the model again with transformers")
    return tensors


def _partner(name: str, base: dict[str, TensorEntry]) -> tuple[str, TensorEntry | None] | None:
    """Name and place of a tensor in the base model; None: it is zero there; ("", None): it is not there.

    Files of a model without its head lack the first part of the names (GPT-2's `transformer.`), and an adapter's names
    begin with two of peft's.
    """
    if _ZERO_AT_BASE.search(name):
        return None
    plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    found = next((key for key in (plain, plain.partition(".")[2]) if key in base), "")
    return found, base.get(found)


def _rows(tensors: dict[str, TensorEntry]) -> int:
    """Rows of the embedding of tokens; 0 without one."""
    return max((entry.shape[0] for name, entry in tensors.items() if part_of(name) == "embedding"), default=0)


def _is_table(name: str, shape: tuple[int, ...], vocabulary: int) -> bool:
    """Whether a tensor has a row for each token."""
    return bool(shape) and shape[0] == vocabulary and part_of(name) in ("embedding", "head")


def _require_lora(folder: Path) -> None:
    config = read_adapter_config(folder)
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA" or config.get("use_dora"):
        raise CheckpointError(
            f"adapter {folder} is {'DoRA' if kind == 'LORA' else kind}, whose change has no scale; merge it "
            f"(mypt merge {folder} --out DIR) and interpolate the merged model"
        )


def _shared_ids(base: Path, adapted: Path) -> float:
    """How many first ids are the same token for both; infinite if both have one vocabulary, or one is not known.

    Raises TokenizerError if a token of the base has another id in the adapted model.
    """
    tokenizers = model_tokenizer(base), model_tokenizer(adapted)
    if None in tokenizers:
        return float("inf")
    first, second = (tokenizer.get_vocab() for tokenizer in tokenizers)
    by_id = sorted(first, key=first.get)
    if moved := next((token for token in by_id if second.get(token) != first[token]), None):
        raise TokenizerError(
            f"{base} and {adapted} have different tokenizers: token {json.dumps(moved)} is {first[moved]} in the base "
            f"and {second.get(moved, 'not there')} in the other; only models of one vocabulary can be interpolated"
        )
    return float("inf") if len(first) == len(second) else max(first.values()) + 1
