"""Write a stock model with weights of 8 bits by torchao, as a folder that `from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.load import load_model
from mypt.conversion.parity import TransformersRunner
from mypt.conversion.safetensors import save
from mypt.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def tolerance_factor(target: str, dtype: str, saved_as: str) -> float:
    """The factor of the comparison's tolerance: all but the weights is computed in the source's dtype."""
    return {"float32": 10.0, "float16": 500.0}.get(saved_as, 3000.0)


def check(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Raise CheckpointError for an architecture whose layers torchao leaves as they are."""
    if config["model_type"] == "gpt2":
        raise CheckpointError(
            "int8 cannot express gpt2: transformers writes its layers as Conv1D, which torchao leaves as they are; "
            "--format gguf --dtype q8_0 can"
        )


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    folder: Path,
    dtype: str,
    max_shard_size: int | None = None,
) -> list[str]:
    """Write the folder; `model` then has the weights that it holds, each an integer times a scale. Returns notes."""
    from torch import nn
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    with TemporaryDirectory(dir=folder) as plain:
        model.save_pretrained(plain)
        quantized = load_model(plain, device="cpu", quantization=TorchAoConfig(Int8WeightOnlyConfig()))
    save(quantized, tokenizer, folder, max_shard_size)
    count = 0
    for name, module in quantized.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "dequantize"):
            model.get_submodule(name).weight.data = module.weight.dequantize().clone()
            count += 1
    return [f"{count} matrices have 8 bits a weight; embeddings, head and norms keep {str(model.dtype)[6:]}"]


@contextmanager
def open_folder(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> Iterator[TransformersRunner]:
    """Load the folder as anyone would."""
    yield TransformersRunner(load_model(folder, device="cpu"), exact=False)
