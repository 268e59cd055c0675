"""Byte-level BPE trained on a bounded sample of the corpus."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING

import xxhash

from mypt.errors import TokenizerError
from mypt.tokenization.load import EOS, wrap

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

EXAMPLE_CHARACTERS = 10_000
SMALLEST_VOCABULARY = 257  # the 256 bytes and EOS


class TextSample:
    """A uniform sample of at most `size` distinct examples, whatever the length and the order of the corpus.

    An example is a document, or a piece of at most 10,000 characters of a longer one. The examples with the smallest
    keyed hashes win (bottom-k sampling): the sample spreads over the whole corpus, repeats nothing, needs one
    pass and at most `size` x 40 kB, and depends on the texts and the seed alone.
    """

    def __init__(self, size: int, seed: int, below: int = 2**64) -> None:
        self.size, self.seed = size, seed
        self.below = below  # only examples with a smaller hash can still win
        self._heap: list[tuple[int, bytes]] = []  # (-hash, example): the largest hash on top
        self._hashes: set[int] = set()

    def add(self, text: str) -> None:
        for start in range(0, len(text), EXAMPLE_CHARACTERS):
            example = text[start : start + EXAMPLE_CHARACTERS].encode()
            self.offer(xxhash.xxh3_64_intdigest(example, self.seed), example)

    def offer(self, key: int, example: bytes) -> None:
        """Take in one hashed example: samples of the parts of a corpus, put together, are the sample of the whole."""
        if key >= self.below or key in self._hashes:
            return
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (-key, example))
        else:
            dropped, _ = heapq.heapreplace(self._heap, (-key, example))
            self._hashes.remove(-dropped)
        self._hashes.add(key)
        if len(self._heap) == self.size:
            self.below = -self._heap[0][0]

    def entries(self) -> list[tuple[int, bytes]]:
        """(hash, UTF-8 bytes) of the examples, in no order."""
        return [(-key, example) for key, example in self._heap]

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[str]:
        """The examples in the order of their hashes."""
        return (example.decode() for _, example in sorted(self._heap, reverse=True))


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """What `train_bpe` gives, as a tokenizer of transformers."""
    return wrap(train_bpe(texts, vocab_size))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` ids: 0 (EOS), the 256 bytes, then merges by frequency.

    The result is smaller when the texts run out of pairs that occur twice. Equal texts in equal order give equal
    tokenizers. Raises TokenizerError for a vocabulary that cannot hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: byte-level BPE needs {SMALLEST_VOCABULARY} or more"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # The trainer takes memory for all ids that are asked for; a merge takes two tokens out of these texts, or more.
    texts = texts if isinstance(texts, Sized) else list(texts)  # which are read twice
    most = SMALLEST_VOCABULARY + 2 * sum(map(len, texts))
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, most),
        min_frequency=2,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend
