"""Write a stock model as an ONNX graph with its cache of keys and values, and run it by onnxruntime.

The folder has the layout and the names that transformers.js reads: onnx/model.onnx, and beside it config, generation
config and tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mypt.versions import version_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mypt.conversion.formats import Options
    from mypt.conversion.parity import Runner

FILE, WEIGHTS = "onnx/model.onnx", "model.onnx_data"
DTYPES = ("float32",)


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path, options: Options
) -> list[str]:
    """Write the folder; `model` is cast to float32. Returns notes."""
    import torch

    from mypt.conversion.weights import cast
    from mypt.tokenization.load import save_tokenizer

    cast(model, options.dtype)
    layers = model.config.num_hidden_layers
    heads, width = _cache_shape(model.config)
    # Sizes that differ from each other and from 1, so that the graph takes none of them for a constant.
    batch, length, seen = 2, 3, 5
    past = [torch.zeros(batch, heads, seen, width) for _ in range(2 * layers)]
    inputs = (
        torch.zeros(batch, length, dtype=torch.long),
        torch.ones(batch, seen + length, dtype=torch.long),
        torch.arange(seen, seen + length).expand(batch, length).contiguous(),
        past,
    )
    dynamic = torch.export.Dim.AUTO
    rows = {0: dynamic, 1: dynamic}
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    (folder / "onnx").mkdir()
    program = torch.onnx.export(
        _decoder(model),
        inputs,
        dynamo=True,
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes=(rows, rows, rows, [{0: dynamic, 2: dynamic}] * len(past)),
        verbose=False,
    )
    program.save(folder / FILE, external_data=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    return []


def _cache_shape(config) -> tuple[int, int]:
    """Heads of keys and values, and their width."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _decoder(model: PreTrainedModel):
    from torch import nn
    from transformers import DynamicCache

    class Decoder(nn.Module):
        """A model whose cache comes and goes as a list of tensors, keys and values in turn, (B, K, S, D) each."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, position_ids, past):
            cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
            out = self.model(
                input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            layers = out.past_key_values.layers
            return out.logits, *(states for layer in layers for states in (layer.keys, layer.values))

    return Decoder().eval()


# ---- running ----


@contextmanager
def open_folder(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> Iterator[Runner]:
    """Load the graph in onnxruntime, which computes with one thread."""
    yield OnnxRunner(folder)


class OnnxRunner:
    """An exported graph in onnxruntime, and a greedy loop around it."""

    every, normalized = 1, False

    def __init__(self, folder: Path):
        import onnxruntime
        from transformers import AutoConfig, GenerationConfig

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.name = f"onnxruntime {version_of('onnxruntime')}"
        self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs() if value.name.startswith("past_")]
        self._heads, self._width = _cache_shape(AutoConfig.from_pretrained(folder))
        settings = GenerationConfig.from_pretrained(folder)
        self._suppressed = list(settings.suppress_tokens or [])
        ends = settings.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        import torch

        logits, _ = self._run(ids.numpy(), mask.numpy(), self._empty(len(ids)))
        return torch.from_numpy(logits)

    def losses(self, ids: Tensor) -> Tensor:
        import torch

        from mypt.conversion.parity import losses_of

        return losses_of(self.logits(ids, torch.ones_like(ids)), ids)

    def greedy(self, prompt: Tensor, new: int) -> list[int]:
        return self._continue(prompt.numpy(), new, self._ends)

    def decode(self, prompt: Tensor, new: int) -> float:
        start = time.perf_counter()
        self._continue(prompt.numpy(), new, set())
        return new / (time.perf_counter() - start)

    def _continue(self, ids: np.ndarray, new: int, ends: set[int]) -> list[int]:
        past, mask, found = self._empty(1), np.ones_like(ids), []
        while len(found) < new and not (found and found[-1] in ends):
            logits, past = self._run(ids, mask, past)
            logits[0, -1, self._suppressed] = -np.inf
            found.append(int(logits[0, -1].argmax()))
            ids = np.array([found[-1:]])
            mask = np.ones((1, mask.shape[1] + 1), np.int64)
        return found

    def _empty(self, rows: int) -> list[np.ndarray]:
        return [np.zeros((rows, self._heads, 0, self._width), np.float32) for _ in self._names]

    def _run(self, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits (B, T, V) and the longer cache for the next ids (B, T) and a mask over all, (B, S)."""
        positions = (mask.cumsum(1) - 1).clip(min=0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits, *present = self._session.run(None, feed | dict(zip(self._names, past, strict=True)))
        return logits, present
