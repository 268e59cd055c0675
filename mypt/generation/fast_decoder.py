"""Fast decoding of MyPT models: one position per step, without transformers' `generate`.

The prompts go through the model's own `forward`; then each step computes one position of every row with a cache that is
allocated once. The ids are those of transformers' `generate` on the same model, but for ties within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mypt.generation.layers import prepare_layers
from mypt.models.modeling_mypt import MyPTForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rotary types whose cosines depend on the position alone; `dynamic` and `longrope` change with the text's length.
FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3")


def is_covered(model: PreTrainedModel) -> bool:
    """Whether FastDecoder can stand in for the model: a MyPTForCausalLM in eval mode whose parts are as they were made.

    Not covered are other architectures, adapters, quantised weights, hooks, models over several devices, and rotary
    positions that change with the length of the text.
    """
    if type(model) is not MyPTForCausalLM or model.training:
        return False
    if model.config.position_embedding_type == "rope" and (
        model.config.rope_parameters["rope_type"] not in FIXED_ROPE_TYPES
    ):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in model.modules()):
        return False
    matrices = [m for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    plain = all(type(matrix) is nn.Linear for matrix in matrices)
    kinds = {(type(weight), weight.device, weight.dtype) for weight in model.parameters()}
    return plain and len(kinds) == 1 and kinds.pop()[0] is nn.Parameter


class FastDecoder:
    """Decodes with a model that `is_covered`, whose weights must not change meanwhile.

    Memory beyond the model: the cache, layers x 2 x rows x key-value heads x capacity x head_dim numbers; for small
    models a copy of the layers (`prepare_layers`).
    """

    path = "fast"

    @torch.inference_mode()
    def __init__(self, model: MyPTForCausalLM):
        self.model = model
        self.layers = prepare_layers(model.model)

    @torch.inference_mode()
    def extend(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """Give `choose` the logits (B, V) after each row of ids, feed back the ids (B,) that it returns, and so on.

        It ends after `budget` calls, or when `choose` returns None.
        """
        logits = self.start(windows, budget)
        for remaining in range(budget - 1, -1, -1):
            chosen = choose(logits)
            if chosen is None or not remaining:
                return
            logits = self.step(chosen)

    @torch.inference_mode()
    def start(self, windows: Sequence[Sequence[int]], room: int) -> torch.Tensor:
        """Read the rows, padded on the left, with room for so many tokens more; logits (B, V) of their last ids."""
        self.length = max(map(len, windows))
        device = self.model.device
        padding = torch.tensor([self.length - len(window) for window in windows], device=device)
        ids = torch.tensor([[0] * (self.length - len(window)) + list(window) for window in windows], device=device)
        columns = torch.arange(self.length, device=device)
        padded = len(set(map(len, windows))) > 1
        self.padding = padding[:, None] if padded else None  # (B, 1)
        places = {}
        if padded:
            places["attention_mask"] = (columns >= self.padding).long()
            places["position_ids"] = (columns - self.padding).clamp(min=0)
        outputs = self.model(ids, use_cache=True, logits_to_keep=1, **places)
        self._allocate(outputs.past_key_values, self.length + room)
        return outputs.logits[:, -1]

    @torch.inference_mode()
    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) after one more id for each row, int64 (B,)."""
        base, index = self.model.model, self.length
        states = base.embed_tokens(ids)  # (B, C)
        # One view while all rows are equally long; a row of the table for each otherwise.
        places = slice(index, index + 1) if self.padding is None else index - self.padding[:, 0]
        cosine = sine = mask = None
        if self.cosines is None:
            states = states + base.embed_positions.weight[places]
        else:
            cosine, sine = self.cosines[places, None], self.sines[places, None]  # (B or 1, 1, D)
        if self.mask is not None:
            mask = self.mask[..., : index + 1]
        states = self.layers(states, self.cache, index, cosine, sine, mask)
        self.length += 1
        return self.model.lm_head(states)

    def _allocate(self, prompt_cache, capacity: int) -> None:
        """Cache, positions and mask for `capacity` columns; the prompt's keys and values move in."""
        layers = prompt_cache.layers
        batch, heads, length, width = layers[0].keys.shape
        self.cache = layers[0].keys.new_zeros(len(layers), 2, batch, heads, capacity, width)
        for mine, theirs in zip(self.cache, layers, strict=True):
            mine[0, :, :, :length], mine[1, :, :, :length] = theirs.keys, theirs.values
            theirs.keys = theirs.values = None
        columns = torch.arange(capacity, device=self.cache.device)
        self.cosines = self.sines = self.mask = None
        if self.model.config.position_embedding_type == "rope":
            tables = self.model.model.rotary_emb(self.cache, columns[None])  # (1, capacity, D) each
            self.cosines, self.sines = (table[0] for table in tables)
        if self.padding is not None:
            hidden = (columns < self.padding)[:, None, None]  # (B, 1, 1, capacity)
            self.mask = torch.zeros(hidden.shape, dtype=self.cache.dtype, device=hidden.device)
            self.mask.masked_fill_(hidden, -torch.inf)
