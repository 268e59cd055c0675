"""Continue a prompt token by token, and hand out the text while it grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers.generation import BaseStreamer

from mypt.errors import MyPTError, TokenizerError
from mypt.generation.settings import GenerationSettings
from mypt.generation.text import GrowingText
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import largest_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Completion:
    """A finished text; `tokens` counts the generated ones, an end of text included."""

    prompt: str
    text: str
    prompt_tokens: int
    tokens: int
    finish: Literal["eos", "length", "context"]  # end of text; max_new_tokens reached; the model's context is full
    seed: int


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    settings: GenerationSettings,
    on_text: Callable[[str], object] | None = None,
) -> Completion:
    """Continue `prompt` until the end of text, `max_new_tokens`, or the end of the model's context.

    on_text gets the new text in pieces, as soon as they are whole characters; together they are `Completion.text`.
    The same model, prompt and settings give the same text; torch's global random state stays as it was.
    Raises MyPTError if the prompt leaves no room for a token, TokenizerError if the tokenizer is not the model's.
    """
    ids = prompt_ids(tokenizer, prompt)
    config = model.config.get_text_config()
    if max(ids) >= config.vocab_size:
        raise TokenizerError(
            f"the tokenizer gives id {max(ids)}, the model knows {config.vocab_size} ids; they do not belong together"
        )
    room = _room(model, ids, settings.max_new_tokens)
    relay = _Relay(GrowingText(tokenizer, ids), on_text)
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        output = model.generate(
            torch.tensor([ids], device=device), streamer=relay, **_arguments(model, tokenizer, settings, room)
        )
    new = output[0, len(ids) :].tolist()
    finish = "length" if len(new) == settings.max_new_tokens else "context"
    if new[-1] in _stop_ids(model, tokenizer):
        finish = "eos"
    return Completion(prompt, "".join(relay.pieces), len(ids), len(new), finish, settings.seed)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Ids of a prompt: special tokens in it are plain text, and what the tokenizer itself begins with comes first.

    An empty prompt is the start of a document: an end-of-text token, which is what stands between documents.
    """
    ids = [*tokenizer("").input_ids, *encode_documents(tokenizer, [prompt])[0].tolist()]
    return ids or [tokenizer.eos_token_id]


def _room(model: PreTrainedModel, ids: list[int], max_new_tokens: int) -> int:
    """How many tokens to generate at most: as asked, or what the context leaves."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return max_new_tokens
    if len(ids) >= context:
        raise MyPTError(
            f"the prompt has {len(ids)} tokens and the model's context ends at {context}, which leaves no room for a "
            "new one; shorten the prompt"
        )
    return min(max_new_tokens, context - len(ids))


def _arguments(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: GenerationSettings, room: int
) -> dict:
    """For transformers' `generate`; every sampling setting is given, None too, or the model's own would count."""
    padded = range(largest_id(tokenizer) + 1, model.config.get_text_config().vocab_size)
    suppressed = {*(model.generation_config.suppress_tokens or ()), *padded}
    arguments = {
        "max_new_tokens": room,
        "do_sample": not settings.greedy,
        "use_cache": True,
        "eos_token_id": sorted(_stop_ids(model, tokenizer)),
        "pad_token_id": tokenizer.pad_token_id,
        "suppress_tokens": sorted(suppressed) or None,
    }
    if settings.greedy:
        return arguments
    return arguments | {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The tokenizer's end of text and those that the model was saved with."""
    saved = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(saved if isinstance(saved, list) else [] if saved is None else [saved])}


class _Relay(BaseStreamer):
    """Takes each token from transformers' `generate` and passes on the text that it completes.

    transformers' own TextStreamer waits for the next space and loses leading blanks of a line with some tokenizers.
    """

    def __init__(self, text: GrowingText, on_text: Callable[[str], object] | None):
        self.text = text
        self.on_text = on_text
        self.pieces: list[str] = []
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._pass_on(self.text.add(int(value)))
        self._prompt_seen = True

    def end(self) -> None:
        self._pass_on(self.text.rest())

    def _pass_on(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            if self.on_text:
                self.on_text(piece)
