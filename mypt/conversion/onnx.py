"""Write a stock model as an ONNX graph with its cache of keys and values, and run it by onnxruntime.

The folder has the layout and the names that transformers.js reads: onnx/model.onnx, and beside it config, generation
config and tokenizer.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import CheckpointError
from mypt.versions import version_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mypt.conversion.parity import Runner

FILE, WEIGHTS, GENAI = "onnx/model.onnx", "model.onnx_data", "genai_config.json"
_TRACE = "pkg.torch.onnx.stack_trace"  # of each node the lines of Python that made it, by paths of this machine


def check(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Raise CheckpointError for rotary frequencies that torch cannot trace."""
    if (config.get("rope_parameters") or {}).get("rope_type") == "dynamic":
        raise CheckpointError(
            "onnx cannot express rope_type dynamic, whose frequencies change with the length; --format safetensors can"
        )


def tolerance_factor(target: str, dtype: str, saved_as: str) -> float:
    """The factor of the comparison's tolerance: sums are in another order, layer after layer."""
    return 10.0


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    folder: Path,
    dtype: str,
    max_shard_size: int | None = None,
) -> list[str]:
    """Write the folder; `model` is cast to float32, and loses the rows of ids that the tokenizer does not have.

    Such ids are kept from a text by generation_config.json in transformers alone. Returns notes.
    """
    import onnx_ir
    import torch

    from mypt.conversion.weights import cast
    from mypt.tokenization.load import largest_id, save_tokenizer

    cast(model, dtype)
    padding = model.config.vocab_size - (largest_id(tokenizer) + 1) if tokenizer is not None else 0
    if padding > 0:
        model.resize_token_embeddings(largest_id(tokenizer) + 1, mean_resizing=False)
        kept = [id for id in model.generation_config.suppress_tokens or () if id < model.config.vocab_size]
        model.generation_config.suppress_tokens = kept or None
    layers = model.config.num_hidden_layers
    heads, width = _cache_shape(model.config)
    # Sizes that differ from each other and from 1, so that the graph takes none of them for a constant.
    batch, length, seen = 2, 3, 5
    past = [torch.zeros(batch, heads, seen, width) for _ in range(2 * layers)]
    # The ids come last: the graph then takes the size of the batch from them. transformers.js begins with an empty
    # cache whose batch is 0.
    inputs = (
        past,
        torch.ones(batch, seen + length, dtype=torch.long),
        torch.arange(seen, seen + length).expand(batch, length).contiguous(),
        torch.zeros(batch, length, dtype=torch.long),
    )
    dynamic = torch.export.Dim.AUTO
    rows = {0: dynamic, 1: dynamic}
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    (folder / "onnx").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            _decoder(model),
            inputs,
            dynamo=True,
            input_names=[*(f"past_key_values.{name}" for name in names), "attention_mask", "position_ids", "input_ids"],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=([{0: dynamic, 2: dynamic}] * len(past), rows, rows, rows),
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(_TRACE, None)
    onnx_ir.save(program.model, folder / FILE, external_data=WEIGHTS)
    (folder / GENAI).write_text(json.dumps(_genai(model, tokenizer), indent=1) + "\n")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    return [f"{padding} rows of ids that the tokenizer does not have are left out"] if padding > 0 else []


def _cache_shape(config) -> tuple[int, int]:
    """Heads of keys and values, and their width."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _genai(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """The settings that onnxruntime-genai reads: the names of the graph's inputs and outputs, and its sizes."""
    config, (heads, width) = model.config, _cache_shape(model.config)
    ends = model.generation_config.eos_token_id
    ends = (tokenizer and tokenizer.eos_token_id) if ends is None else ends
    decoder = {
        "session_options": {"provider_options": []},
        "filename": FILE,
        "head_size": width,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": heads,
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    length = config.max_position_embeddings
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": ends, "pad_token_id": config.pad_token_id}
    return {
        "model": {
            "type": "llama" if config.model_type == "gpt2" else config.model_type,  # its gpt2 has a cache of one tensor
            "decoder": decoder,
            "context_length": length,
            "vocab_size": config.vocab_size,
            **{name: value for name, value in ids.items() if value is not None},
        },
        "search": {"do_sample": False, "max_length": length, "past_present_share_buffer": False},
    }


def _decoder(model: PreTrainedModel):
    from torch import nn
    from transformers import DynamicCache

    class Decoder(nn.Module):
        """A model whose cache comes and goes as a list of tensors, keys and values in turn, (B, K, S, D) each."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, past, attention_mask, position_ids, input_ids):
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
        self.name, self.process = f"onnxruntime {version_of('onnxruntime')}", os.getpid()
        self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs() if value.name.startswith("past_")]
        self._heads, self._width = _cache_shape(AutoConfig.from_pretrained(folder))
        settings = GenerationConfig.from_pretrained(folder)
        self._suppressed = list(settings.suppress_tokens or [])
        ends = settings.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        import numpy as np
        import torch

        # In two parts, so that the second reads the cache.
        half, past = max(1, ids.shape[1] // 2), self._empty(len(ids))
        first, past = self._run(ids[:, :half].numpy(), mask[:, :half].numpy(), past)
        rest = ids[:, half:]
        second = [self._run(rest.numpy(), mask.numpy(), past)[0]] if rest.shape[1] else []
        return torch.from_numpy(np.concatenate([first, *second], 1))

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
        import numpy as np

        past, mask, found = self._empty(1), np.ones_like(ids), []
        while len(found) < new and not (found and found[-1] in ends):
            logits, past = self._run(ids, mask, past)
            logits[0, -1, self._suppressed] = -np.inf
            found.append(int(logits[0, -1].argmax()))
            ids = np.array([found[-1:]])
            mask = np.ones((1, mask.shape[1] + 1), np.int64)
        return found

    def _empty(self, rows: int) -> list[np.ndarray]:
        import numpy as np

        return [np.zeros((rows, self._heads, 0, self._width), np.float32) for _ in self._names]

    def _run(self, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits (B, T, V) and the longer cache for the next ids (B, T) and a mask over all, (B, S)."""
        positions = (mask.cumsum(1) - 1).clip(min=0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits, *present = self._session.run(None, feed | dict(zip(self._names, past, strict=True)))
        return logits, present
