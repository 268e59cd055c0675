"""Continue prompts: one as a stream, many in batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mypt.errors import MyPTError, TokenizerError
from mypt.generation.fast_decoder import FastDecoder, is_covered
from mypt.generation.hf_decoder import ForwardDecoder, HFDecoder, beam_search
from mypt.generation.sampler import Sampler
from mypt.generation.sequence import Completion, TokenSequence
from mypt.generation.settings import GenerationSettings
from mypt.generation.trials import Say, caches_beams, generates_alone, generates_batches
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import largest_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    on_text: Callable[[str], object] | None = None,
    *,
    strip: bool = False,
    say: Say = warnings.warn,
) -> Completion:
    """Continue `prompt` until the end of text, a stop string, `max_new_tokens`, or the end of the model's context.

    The same model, prompt and settings give the same text; global random states stay as they were.

    Args:
        prompt: A text, or token ids (at least one).
        on_text: Gets the new text in pieces, as soon as they are whole characters and cannot be the beginning of a
            stop string; together they are `Completion.text`.
        strip: Leave out white space before and after the new text.
        say: Gets one line if `mypt.generation.trials` finds that the model needs a slower way.

    Raises:
        MyPTError: The prompt leaves no room for a token (and may not slide), or logits are NaN or infinite.
        TokenizerError: The tokenizer is not the model's.
    """
    generator = _Generator(model, tokenizer, settings, say)
    return generator.complete([prompt], generator.encode([prompt]), [settings.seed], on_text, strip)[0]


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    *,
    seeds: Sequence[int] | None = None,
    batch_size: int = 8,
    strip: bool = False,
    say: Say = warnings.warn,
) -> Iterator[Completion]:
    """Continue each prompt as `generate` would, `batch_size` at a time; completions come in order, batch by batch.

    A text does not depend on the others of its batch, except for ties within rounding: a batch's sums are taken in
    another order. A model whose results in a batch differ from those of single prompts completes one prompt after the
    other, and `say` gets a line about it.

    Args:
        seeds: One for each prompt (default: `settings.seed` for all).

    Raises:
        MyPTError, TokenizerError: As `generate`, for a prompt of any batch before the first one is computed.
    """
    if batch_size < 1:
        raise MyPTError(f"batch_size is {batch_size}; it must be 1 or more")
    seeds = [settings.seed] * len(prompts) if seeds is None else seeds
    generator = _Generator(model, tokenizer, settings, say)
    ids = generator.encode(prompts)
    batches = (slice(start, start + batch_size) for start in range(0, len(prompts), batch_size))
    return (
        completion
        for part in batches
        for completion in generator.complete(prompts[part], ids[part], seeds[part], strip=strip)
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Ids of a prompt: special tokens in it are plain text, and what the tokenizer itself begins with comes first.

    An empty prompt is the start of a document: an end-of-text token, which is what stands between documents.
    """
    return _encode(tokenizer, [prompt], [tokenizer.eos_token_id])[0]


def context_of(model: PreTrainedModel) -> int | None:
    """Tokens that the model can read at once; None where its config names no limit (or -1, as XLNet's)."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in limits if limit and limit > 0), None)


def _encode(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str | Sequence[int]], beginning: list[int]
) -> list[list[int]]:
    """The ids of each prompt; `beginning` stands for an empty one. TokenizerError if nothing of a text is known."""
    first = tokenizer("").input_ids
    texts = iter(encode_documents(tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)]))
    found = [[*first, *next(texts).tolist()] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        if prompt and not ids:
            raise TokenizerError(
                f"the tokenizer knows no character of the prompt {prompt!r}; use those it was made from"
            )
    return [ids or beginning for ids in found]


class _Generator:
    """A model made ready to complete prompts with the same settings but for the seed."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: GenerationSettings, say: Say
    ):
        self.model, self.tokenizer, self.settings, self.say = model, tokenizer, settings, say
        self.vocab_size = model.config.get_text_config().vocab_size
        self.context = context_of(model)
        saved = model.generation_config
        ends = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
        self.ends = self._known(*ends, tokenizer.eos_token_id)
        padded = range(largest_id(tokenizer) + 1, self.vocab_size)
        self.banned = self._known(*(saved.suppress_tokens or ()), *padded)
        self.pad = next(iter(self._known(tokenizer.pad_token_id)), 0)  # masked: any id will do
        self.longest = 0  # tokens of a prompt and its text
        self.decoder = self._decoder()

    def _known(self, *ids: int | None) -> frozenset[int]:
        """The ids that are in the model's vocabulary; the EOS of a converted model's tokenizer may be outside of it."""
        return frozenset(id for id in ids if id is not None and id < self.vocab_size)

    def _decoder(self) -> FastDecoder | HFDecoder | ForwardDecoder:
        if is_covered(self.model) and self.settings.num_beams == 1:
            return FastDecoder(self.model)
        if generates_alone(self.model, self.say):
            return HFDecoder(self.model, self.pad)
        if self.settings.num_beams > 1:
            raise MyPTError(
                "beam search needs transformers' generate, which gives other logits than the forward pass of "
                f"{type(self.model).__name__}; leave out num_beams (--num-beams), or use --greedy"
            )
        return ForwardDecoder(self.model)

    def _batches(self) -> bool:
        """Whether sequences of different lengths can be computed together."""
        if isinstance(self.decoder, HFDecoder):
            return generates_batches(self.model, self.longest, self.say)
        return isinstance(self.decoder, FastDecoder)

    def encode(self, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """The ids of each prompt, checked."""
        if self._known(self.tokenizer.eos_token_id):
            beginning = [self.tokenizer.eos_token_id]
        else:  # a line end starts a document of a model without an end of text
            beginning = encode_documents(self.tokenizer, ["\n"])[0].tolist()
        found = _encode(self.tokenizer, prompts, beginning)
        for ids in found:
            if not ids:
                raise MyPTError("the prompt is empty, and the model has no end of text to begin behind; give a prompt")
            if max(ids) >= self.vocab_size:
                raise TokenizerError(
                    f"the tokenizer gives id {max(ids)}, the model knows {self.vocab_size} ids; they do not belong "
                    "together"
                )
            if self.context and len(ids) >= self.context and self.settings.overflow != "slide":
                raise MyPTError(
                    f"the prompt has {len(ids)} tokens and the model's context ends at {self.context}, which leaves no "
                    "room for a new one; shorten the prompt, or let it slide (--overflow slide)"
                )
        longest = max(map(len, found), default=0) + self.settings.max_new_tokens
        self.longest = min(longest, self.context) if self.context else longest
        return found

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        ids: Sequence[list[int]],
        seeds: Sequence[int],
        on_text: Callable[[str], object] | None = None,
        strip: bool = False,
    ) -> list[Completion]:
        """One batch; `on_text` is for a batch of one."""
        sequences = [
            TokenSequence(self.tokenizer, row_ids, replace(self.settings, seed=seed), self.ends, on_text, strip)
            for row_ids, seed in zip(ids, seeds, strict=True)
        ]
        slides = self.settings.overflow == "slide"
        while active := [sequence for sequence in sequences if not sequence.finish]:
            if full := [sequence for sequence in active if self.context and len(sequence.window) >= self.context]:
                for sequence in full:
                    if slides and self.context > 1:
                        sequence.slide(self.context)
                    else:
                        sequence.end("context")
            elif self.settings.num_beams > 1:
                for sequence in active:
                    self._search(sequence)
            elif len(active) == 1 or self._batches():
                self._extend(active)
            else:
                for sequence in active:
                    self._extend([sequence])
        texts = (prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt)) for prompt in prompts)
        pairs = zip(texts, sequences, strict=True)
        return [sequence.completion(text, self.decoder.path) for text, sequence in pairs]

    def _extend(self, sequences: list[TokenSequence]) -> None:
        """Add tokens to sequences of equally many new tokens until all end or the longest fills the context."""
        histories, randoms = [sequence.ids for sequence in sequences], [sequence.random for sequence in sequences]
        sampler = Sampler(self.settings, randoms, histories, self.banned, self.ends, done=sequences[0].tokens)

        def choose(logits: torch.Tensor) -> torch.Tensor | None:
            chosen = sampler.choose(logits)
            for sequence, token in zip(sequences, chosen.tolist(), strict=True):
                sequence.add(token)
            return None if all(sequence.finish for sequence in sequences) else chosen

        self.decoder.extend([sequence.window for sequence in sequences], self._budget(sequences), choose)

    def _search(self, sequence: TokenSequence) -> None:
        """Add the best beam; the sequence ends at its own rules."""

        def holds_stop(ids: list[int]) -> bool:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            return any(stop in text for stop in self.settings.stop)

        budget, use_cache = self._budget([sequence]), caches_beams(self.model, self.say)
        options = (self.settings, self.banned, self.ends, self.pad, holds_stop)
        [best] = beam_search(self.model, sequence.window, budget, *options, use_cache=use_cache)
        for token in best:
            sequence.add(token)
        if not sequence.finish:
            sequence.end("context")

    def _budget(self, sequences: list[TokenSequence]) -> int:
        """New tokens that all sequences have room for, by `max_new_tokens` and the context."""
        budget = self.settings.max_new_tokens - sequences[0].tokens
        longest = max(len(sequence.window) for sequence in sequences)
        return min(budget, self.context - longest) if self.context else budget
