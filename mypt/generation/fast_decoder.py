"""Fast decoding of MyPT models: one position per step, without transformers' `generate`.

The prompts go through the model's own `forward`; then each step computes one position of every row with a cache that is
allocated once. The ids are those of transformers' `generate` on the same model, but for ties within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mypt.errors import MyPTError
from mypt.generation.layers import LARGEST, FusedLayers, prepare, prepare_int8
from mypt.models.modeling_mypt import MyPTForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GUESSES = 4  # tokens at most that are guessed before a check

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


@dataclass(slots=True)
class _Rows:
    """The texts of one `extend`: what the steps so far have left."""

    cache: torch.Tensor  # (layers, 2, B, K, capacity, D)
    length: int  # columns of the cache that are filled
    padding: torch.Tensor | None  # (B, 1), the columns before each row; None if all rows are equally long
    cosines: torch.Tensor | None  # (capacity, D)
    sines: torch.Tensor | None
    mask: torch.Tensor | None  # (B, 1, 1, capacity), -inf where a row has no token


class FastDecoder:
    """Decodes with a model that `is_covered`, whose weights must not change meanwhile; threads may share it.

    Memory beyond the model: the cache of each call, layers x 2 x rows x key-value heads x capacity x head_dim numbers;
    for float32 models a copy of layers and head (`mypt.generation.layers.prepare`).

    Args:
        int8: With weights in 8 bits: faster, and slightly other logits; prompts are read in full precision.
        draft: What guesses for `speculate`: the same model in 8 bits, or another one of the same ids.

    Raises:
        MyPTError: The weights are not float32 on a CPU, for int8; for a draft, copies of its weights or of the model's
            do not fit, or its weights are NaN or infinite.
    """

    @torch.inference_mode()
    def __init__(self, model: MyPTForCausalLM, int8: bool = False, draft: FastDecoder | None = None):
        self.model, self.path, self.draft = model, "int8" if int8 else "fast", draft
        self.layers, self.head = prepare_int8(model) if int8 else prepare(model)
        if draft and not all(isinstance(layers, FusedLayers) for layers in (self.layers, draft.layers)):
            raise MyPTError(
                "speculation needs copies of float32 weights, which are made up to "
                f"{LARGEST / 2**30:g} GiB and where four times as much memory is free; leave it out"
            )
        if draft and not all(weight.isfinite().all() for weight in draft.model.parameters()):
            raise MyPTError(
                "weights of the model that guesses are NaN or infinite: it is damaged or its training diverged; use an "
                "earlier checkpoint, or leave it out"
            )

    @torch.inference_mode()
    def extend(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """Give `choose` the logits (B, V) after each row of ids, feed back the ids (B,) that it returns, and so on.

        It ends after `budget` calls, or when `choose` returns None.
        """
        logits, rows = self._start(windows, budget)
        for remaining in range(budget - 1, -1, -1):
            chosen = choose(logits)
            if chosen is None or not remaining:
                return
            logits = self._step(rows, chosen)

    @torch.inference_mode()
    def speculate(
        self, windows: Sequence[Sequence[int]], budget: int, choose: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> None:
        """As `extend`, and a single row by guesses: `draft` names the ids that it finds likeliest, one pass checks all.

        `choose` decides as in `extend`; a guess saves a step where it is what `choose` takes. So texts are those of
        `extend`, drawn ones included: for a guess that is certain, drawing from the model and comparing is the rule of
        Leviathan et al. (2023, 2211.17192), which keeps a guess with the model's probability of it.

        Keys and values of guesses are in the cache until the check writes the right ones over them.
        """
        if len(windows) > 1:
            self.extend(windows, budget, choose)
            return
        logits, rows = self._start(windows, budget)
        text, end = [*windows[0]], len(windows[0]) + budget
        guesser = _Guesser(self.draft, self.model, rows, end)
        chosen, count = choose(logits), GUESSES
        while chosen is not None and len(text) + 1 < end:
            text.append(int(chosen))
            guesses = guesser.guess(text, min(count, end - len(text) - 1))
            logits = self._read(rows, len(text) - 1, [text[-1], *guesses])
            if guesses and logits.isnan().any():  # of a guess alone, perhaps
                guesses, logits = [], self._read(rows, len(text) - 1, text[-1:])
            for place, guess in enumerate([*guesses, None]):
                rows.length = len(text)
                chosen = choose(logits[place : place + 1])
                if chosen is None or int(chosen) != guess:
                    break
                text.append(guess)
            count = min(GUESSES, place + 1)  # one more than were right: bad guesses cost time

    def _read(self, rows: _Rows, index: int, ids: list[int]) -> torch.Tensor:
        """Logits (T, V) after each of T ids of one row, the first of which goes to `index`."""
        states = self.model.model.embed_tokens(torch.tensor(ids, device=self.model.device))
        places = slice(index, index + len(ids))
        cosine = sine = None
        if rows.cosines is None:
            states = states + self.model.model.embed_positions.weight[places]
        else:
            cosine, sine = rows.cosines[places, None], rows.sines[places, None]  # (T, 1, D)
        return self.head(self.layers.read(states, rows.cache, index, cosine, sine))

    def _start(self, windows: Sequence[Sequence[int]], room: int) -> tuple[torch.Tensor, _Rows]:
        """Read the rows, padded on the left, with room for so many tokens more; logits (B, V) of their last ids."""
        length = max(map(len, windows))
        device = self.model.device
        ids = torch.tensor([[0] * (length - len(window)) + list(window) for window in windows], device=device)
        padding, places = None, {}
        if len(set(map(len, windows))) > 1:
            padding = torch.tensor([[length - len(window)] for window in windows], device=device)
            columns = torch.arange(length, device=device)
            places["attention_mask"] = (columns >= padding).long()
            places["position_ids"] = (columns - padding).clamp(min=0)
        outputs = self.model(ids, use_cache=True, logits_to_keep=1, **places)
        return outputs.logits[:, -1], self._rows(outputs.past_key_values, length, length + room, padding)

    def _rows(self, prompt_cache, length: int, capacity: int, padding: torch.Tensor | None) -> _Rows:
        """Cache, positions and mask for `capacity` columns; the prompt's keys and values move in."""
        layers = prompt_cache.layers
        batch, heads, _, width = layers[0].keys.shape
        cache = layers[0].keys.new_zeros(len(layers), 2, batch, heads, capacity, width)
        for mine, theirs in zip(cache, layers, strict=True):
            mine[0, :, :, :length], mine[1, :, :, :length] = theirs.keys, theirs.values
            theirs.keys = theirs.values = None
        columns = torch.arange(capacity, device=cache.device)
        cosines = sines = mask = None
        if self.model.config.position_embedding_type == "rope":
            tables = self.model.model.rotary_emb(cache, columns[None])  # (1, capacity, D) each
            cosines, sines = (table[0] for table in tables)
        if padding is not None:
            hidden = (columns < padding)[:, None, None]  # (B, 1, 1, capacity)
            mask = torch.zeros(hidden.shape, dtype=cache.dtype, device=hidden.device)
            mask.masked_fill_(hidden, -torch.inf)
        return _Rows(cache, length, padding, cosines, sines, mask)

    def _step(self, rows: _Rows, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) after one more id for each row, int64 (B,)."""
        base, index = self.model.model, rows.length
        states = base.embed_tokens(ids)  # (B, C)
        # One view while all rows are equally long; a row of the table for each otherwise.
        places = slice(index, index + 1) if rows.padding is None else index - rows.padding[:, 0]
        cosine = sine = mask = None
        if rows.cosines is None:
            states = states + base.embed_positions.weight[places]
        else:
            cosine, sine = rows.cosines[places, None], rows.sines[places, None]  # (B or 1, 1, D)
        if rows.mask is not None:
            mask = rows.mask[..., : index + 1]
        states = self.layers(states, rows.cache, index, cosine, sine, mask)
        rows.length += 1
        return self.head(states)


class _Guesser:
    """A draft along one text, with a cache of its own, or the text's if it is the same model in 8 bits.

    Where its context ends before the text, it continues with the last half of it. An id that it does not know is read
    as another one: its guesses may be anything.
    """

    def __init__(self, draft: FastDecoder, model: MyPTForCausalLM, rows: _Rows, end: int):
        """end: ids that the text has at most."""
        self.draft, self.end, self.context = draft, end, draft.model.config.max_position_embeddings
        self.first, self.rows = 0, rows if draft.model is model else None  # its cache, and where in the text it begins
        self.last = draft.model.config.vocab_size - 1
        self.shared = min(draft.model.config.vocab_size, model.config.vocab_size)  # ids that both models have

    def guess(self, text: list[int], count: int) -> list[int]:
        """Up to `count` ids after `text`: that of the last call, its guesses that were right, and at least one id."""
        count = min(count, self.context // 2)
        if not count:
            return []
        if self.rows is None or len(text) - self.first + count > self.context:
            self.first = max(0, len(text) - self.context // 2) if len(text) + count > self.context else 0
            window = self._known(text[self.first :])
            logits, self.rows = self.draft._start([window], min(self.end - self.first, self.context) - len(window))
        else:
            index = min(self.rows.length, len(text) - 1 - self.first)  # wrong guesses are written over
            unread = self._known(text[self.first + index :])
            logits = self.draft._read(self.rows, index, unread)
            self.rows.length = index + len(unread)
        guesses = [self._likeliest(logits)]
        while len(guesses) < count:
            last = torch.tensor(guesses[-1:], device=logits.device)
            guesses.append(self._likeliest(self.draft._step(self.rows, last)))
        return guesses

    def _likeliest(self, logits: torch.Tensor) -> int:
        return int(logits[-1, : self.shared].argmax())

    def _known(self, ids: list[int]) -> list[int]:
        return [min(id, self.last) for id in ids]
