"""Continue prompts: one as a stream, many in batches, for any number of callers at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock, RLock
from typing import TYPE_CHECKING

import torch

from mypt.errors import MyPTError, TokenizerError
from mypt.generation.fast_decoder import FastDecoder, is_covered
from mypt.generation.hf_decoder import ForwardDecoder, HFDecoder, beam_search, saved_generation_config
from mypt.generation.sampler import Sampler
from mypt.generation.sequence import Completion, TokenSequence
from mypt.generation.settings import GenerationSettings
from mypt.generation.stream import TextStream
from mypt.generation.trials import Say, caches_beams, generates_alone, generates_batches
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import largest_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# A tokenizer's switches (truncation, special tokens) are set for each call, so one call at a time.
TOKENIZING = RLock()

OnText = Callable[[str], object]
ShouldStop = Callable[[], bool]


def never() -> bool:
    return False


class Engine:
    """A model and its tokenizer, ready to continue prompts; threads may share it.

    The same model, prompt and settings give the same text, whatever else is generated meanwhile; global random states
    stay as they were. The weights may change between two texts, not during one; values that are written through
    `.data` are not noticed: make a new engine then.

    Args:
        model: Any causal language model, in eval mode.
        say: Gets one line if `mypt.generation.trials` finds that the model needs a slower way.
        int8: Decode with weights in 8 bits: faster on a CPU, and slightly other logits.
        speculate: Guess the tokens of greedy texts with weights in 8 bits and check them: the same texts, sooner for
            models of about 50M parameters and more; texts that are drawn are generated as without it.

    Attributes:
        vocab_size: Ids that the model knows.
        context: Tokens that the model can read at once; None where its config names no limit.
        ends: Ids that end a text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        say: Say = warnings.warn,
        *,
        int8: bool = False,
        speculate: bool = False,
    ):
        if int8 and speculate:
            raise MyPTError("--int8 and --speculate: guesses in 8 bits are of no use to 8 bits; leave out one of them")
        self.model, self.tokenizer, self.say = model, tokenizer, say
        self.int8, self.speculate = int8, speculate
        self.vocab_size = model.config.get_text_config().vocab_size
        self.context = context_of(model)
        saved = saved_generation_config(model)
        ends = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
        self.ends = self._known(*ends, tokenizer.eos_token_id)
        padded = range(largest_id(tokenizer) + 1, self.vocab_size)
        self.banned = self._known(*(saved.suppress_tokens or ()), *padded)
        self.pad = next(iter(self._known(tokenizer.pad_token_id)), 0)  # masked: any id will do
        self._fast: tuple[list, FastDecoder] | None = None  # and the versions of the weights that it has copied
        self._preparing = Lock()

    def stream(
        self,
        prompt: str | Sequence[int],
        settings: GenerationSettings,
        should_stop: ShouldStop = never,
        *,
        strip: bool = False,
    ) -> TextStream:
        """The new text in pieces, while a thread of its own generates it; arguments and errors as of `complete`.

        A prompt that is refused raises at once, what happens later while the pieces are read.
        """
        texts, ids = self._texts([prompt], settings, should_stop)
        return TextStream(
            lambda on_text, closed: texts.complete([prompt], ids, [settings.seed], on_text, strip, closed)[0]
        )

    def complete(
        self,
        prompt: str | Sequence[int],
        settings: GenerationSettings,
        on_text: OnText | None = None,
        should_stop: ShouldStop = never,
        *,
        strip: bool = False,
    ) -> Completion:
        """Continue `prompt` until the end of text, a stop string, `max_new_tokens`, or the end of the model's context.

        Args:
            prompt: A text, or token ids (at least one).
            on_text: Gets the new text in pieces, as soon as they are whole characters and cannot be the beginning of a
                stop string; together they are `Completion.text`.
            should_stop: Asked before each token; the text ends there when it is True.
            strip: Leave out white space before and after the new text.

        Raises:
            MyPTError: The prompt leaves no room for a token (and may not slide), or logits are NaN or infinite.
            TokenizerError: The tokenizer is not the model's.
        """
        texts, ids = self._texts([prompt], settings, should_stop)
        return texts.complete([prompt], ids, [settings.seed], on_text, strip)[0]

    def complete_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: GenerationSettings,
        *,
        seeds: Sequence[int] | None = None,
        batch_size: int = 8,
        strip: bool = False,
    ) -> Iterator[Completion]:
        """Continue each prompt as `complete` would, `batch_size` at a time; completions come in order, batch by batch.

        A text does not depend on the others of its batch, except for ties within rounding: a batch's sums are taken in
        another order. A model whose results in a batch differ from those of single prompts completes one prompt after
        the other, and `say` gets a line about it.

        Args:
            seeds: One for each prompt (default: `settings.seed` for all).

        Raises:
            MyPTError, TokenizerError: As `complete`, for a prompt of any batch before the first one is computed.
        """
        if batch_size < 1:
            raise MyPTError(f"batch_size is {batch_size}; it must be 1 or more")
        seeds = [settings.seed] * len(prompts) if seeds is None else seeds
        texts, ids = self._texts(prompts, settings, never)
        batches = (slice(start, start + batch_size) for start in range(0, len(prompts), batch_size))
        return (
            completion
            for part in batches
            for completion in texts.complete(prompts[part], ids[part], seeds[part], strip=strip)
        )

    def encode(self, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """The ids of each prompt: special tokens in it are plain text, what the tokenizer begins with comes first.

        An empty prompt is the start of a document: an end-of-text token, which is what stands between documents; a line
        end for a model without one. Raises TokenizerError if nothing of a text is known, or for ids that the model does
        not know.
        """
        with TOKENIZING:
            first = self.tokenizer("").input_ids
            texts = [prompt for prompt in prompts if isinstance(prompt, str)]
            encoded = iter(encode_documents(self.tokenizer, texts))
            found = [[*first, *next(encoded).tolist()] if isinstance(prompt, str) else [*prompt] for prompt in prompts]
        for prompt, ids in zip(prompts, found, strict=True):
            if prompt and not ids:
                raise TokenizerError(
                    f"the tokenizer knows no character of the prompt {prompt!r}; use those it was made from"
                )
        found = [ids or self.beginning() for ids in found]
        largest = max((max(ids, default=0) for ids in found), default=0)
        if largest >= self.vocab_size:
            raise TokenizerError(
                f"the tokenizer gives id {largest}, the model knows {self.vocab_size} ids; they do not belong together"
            )
        return found

    def beginning(self) -> list[int]:
        """The ids that stand before a document; empty where the tokenizer has no end of text and no line end."""
        if self._known(self.tokenizer.eos_token_id):
            return [self.tokenizer.eos_token_id]
        with TOKENIZING:
            return encode_documents(self.tokenizer, ["\n"])[0].tolist()

    def decoder(self, num_beams: int = 1) -> FastDecoder | HFDecoder | ForwardDecoder:
        """What computes texts with so many beams. MyPTError for beams of a model whose `generate` is not right."""
        if num_beams == 1 and is_covered(self.model):
            return self._prepared()
        if self.int8 or self.speculate:
            raise MyPTError(
                "weights in 8 bits are for MyPT models whose parts are as they were made, without beams; leave out "
                "--int8 and --speculate"
            )
        if generates_alone(self.model, self.say):
            return HFDecoder(self.model, self.pad)
        if num_beams > 1:
            raise MyPTError(
                "beam search needs transformers' generate, which gives other logits than the forward pass of "
                f"{type(self.model).__name__}; leave out num_beams (--num-beams), or use --greedy"
            )
        return ForwardDecoder(self.model)

    def _prepared(self) -> FastDecoder:
        """The decoder of before, unless a weight has changed since: it holds copies of small models' weights."""
        versions = [
            (id(w), w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in self.model.parameters()
        ]
        with self._preparing:
            if self._fast is None or self._fast[0] != versions:
                self._fast = None  # its copies go before others are made
                self._fast = versions, FastDecoder(self.model, self.int8, self.speculate)
            return self._fast[1]

    def _known(self, *ids: int | None) -> frozenset[int]:
        """The ids that are in the model's vocabulary; the EOS of a converted model's tokenizer may be outside of it."""
        return frozenset(id for id in ids if id is not None and id < self.vocab_size)

    def _texts(
        self, prompts: Sequence[str | Sequence[int]], settings: GenerationSettings, should_stop: ShouldStop
    ) -> tuple[_Texts, list[list[int]]]:
        """What generates the texts, and the ids of each prompt, checked."""
        decoder, found = self.decoder(settings.num_beams), self.encode(prompts)
        for ids in found:
            if not ids:
                raise MyPTError("the prompt is empty, and the model has no end of text to begin behind; give a prompt")
            if self.context and len(ids) >= self.context and settings.overflow != "slide":
                raise MyPTError(
                    f"the prompt has {len(ids)} tokens and the model's context ends at {self.context}, which leaves no "
                    "room for a new one; shorten the prompt, or let it slide (--overflow slide)"
                )
        longest = max(map(len, found), default=0) + settings.max_new_tokens
        longest = min(longest, self.context) if self.context else longest
        return _Texts(self, decoder, settings, longest, should_stop), found


def context_of(model: PreTrainedModel) -> int | None:
    """Tokens that the model can read at once; None where its config names no limit (or -1, as XLNet's)."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in limits if limit and limit > 0), None)


class _Texts:
    """Texts of one call: the same settings for all but for the seed; `longest` tokens at most, with the prompt."""

    def __init__(
        self,
        engine: Engine,
        decoder: FastDecoder | HFDecoder | ForwardDecoder,
        settings: GenerationSettings,
        longest: int,
        should_stop: ShouldStop,
    ):
        self.engine, self.decoder, self.settings = engine, decoder, settings
        self.longest, self.should_stop = longest, should_stop

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        ids: Sequence[list[int]],
        seeds: Sequence[int],
        on_text: OnText | None = None,
        strip: bool = False,
        closed: ShouldStop = never,
    ) -> list[Completion]:
        """One batch; `on_text` is for a batch of one. closed: a second reason to stop."""
        tokenizer, context = self.engine.tokenizer, self.engine.context
        sequences = [
            TokenSequence(tokenizer, row_ids, replace(self.settings, seed=seed), self.engine.ends, on_text, strip)
            for row_ids, seed in zip(ids, seeds, strict=True)
        ]

        def stopped() -> bool:
            return closed() or self.should_stop()

        slides = self.settings.overflow == "slide"
        while active := [sequence for sequence in sequences if not sequence.finish]:
            if stopped():
                for sequence in active:
                    sequence.end("stopped")
            elif full := [sequence for sequence in active if context and len(sequence.window) >= context]:
                for sequence in full:
                    if slides and context > 1:
                        sequence.slide(context)
                    else:
                        sequence.end("context")
            elif self.settings.num_beams > 1:
                for sequence in active:
                    self._search(sequence, stopped)
            elif len(active) == 1 or self._batches():
                self._extend(active, stopped)
            else:
                for sequence in active:
                    self._extend([sequence], stopped)
        texts = (prompt if isinstance(prompt, str) else tokenizer.decode(list(prompt)) for prompt in prompts)
        pairs = zip(texts, sequences, strict=True)
        return [sequence.completion(text, self.decoder.path) for text, sequence in pairs]

    def _batches(self) -> bool:
        """Whether sequences of different lengths can be computed together."""
        if isinstance(self.decoder, HFDecoder):
            return generates_batches(self.engine.model, self.longest, self.engine.say)
        return isinstance(self.decoder, FastDecoder)

    def _extend(self, sequences: list[TokenSequence], stopped: ShouldStop) -> None:
        """Add tokens to sequences of equally many new tokens until all end or the longest fills the context."""
        histories, randoms = [sequence.ids for sequence in sequences], [sequence.random for sequence in sequences]
        rules = self.engine.banned, self.engine.ends
        sampler = Sampler(self.settings, randoms, histories, *rules, done=sequences[0].tokens)

        def choose(logits: torch.Tensor) -> torch.Tensor | None:
            if stopped():
                return None
            chosen = sampler.choose(logits)
            for sequence, token in zip(sequences, chosen.tolist(), strict=True):
                sequence.add(token)
            return None if all(sequence.finish for sequence in sequences) else chosen

        windows, budget = [sequence.window for sequence in sequences], self._budget(sequences)
        if self.settings.draws or not self.engine.speculate:
            self.decoder.extend(windows, budget, choose)
        else:
            self.decoder.speculate(windows, budget, choose)

    def _search(self, sequence: TokenSequence, stopped: ShouldStop) -> None:
        """Add the best beam; the sequence ends at its own rules."""
        engine, stop = self.engine, self.settings.stop

        def ended(ids: list[int]) -> bool:
            text = engine.tokenizer.decode(ids, skip_special_tokens=True) if stop else ""
            return stopped() or any(string in text for string in stop)

        budget, use_cache = self._budget([sequence]), caches_beams(engine.model, engine.say)
        options = (self.settings, engine.banned, engine.ends, engine.pad, ended)
        [best] = beam_search(engine.model, sequence.window, budget, *options, use_cache=use_cache)
        for token in best:
            sequence.add(token)
        if not sequence.finish:
            sequence.end("stopped" if stopped() else "context")

    def _budget(self, sequences: list[TokenSequence]) -> int:
        """New tokens that all sequences have room for, by `max_new_tokens` and the context."""
        budget = self.settings.max_new_tokens - sequences[0].tokens
        longest = max(len(sequence.window) for sequence in sequences)
        return min(budget, self.engine.context - longest) if self.engine.context else budget
