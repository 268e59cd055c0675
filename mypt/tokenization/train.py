"""Train tokenizers, byte-level BPE and characters, and choose the size of a vocabulary."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

import xxhash

from mypt.errors import TokenizerError
from mypt.planning.coverage import OPTIMAL
from mypt.planning.scaling import TOKENS_PER_PARAMETER
from mypt.planning.step import VOCABULARY_MULTIPLE
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

    def write(self, file: IO[bytes]) -> None:
        """Write the examples for `merge`: each as its hash and its size, 8 and 4 bytes little-endian, and its bytes."""
        for key, example in self._heap:
            file.write((-key).to_bytes(8, "little") + len(example).to_bytes(4, "little") + example)

    def merge(self, written: bytes) -> None:
        """Take in what the sample of a part of the corpus wrote."""
        place = 0
        while place < len(written):
            key, size = (int.from_bytes(written[place + a : place + b], "little") for a, b in ((0, 8), (8, 12)))
            self.offer(key, written[place + 12 : place + 12 + size])
            place += 12 + size

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[str]:
        """The examples in the order of their hashes."""
        return (example.decode() for _, example in sorted(self._heap, reverse=True))


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """`train_bpe` as a tokenizer of transformers."""
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


class CharacterSet:
    """The different characters of a corpus; its methods are those of TextSample."""

    below = 2**64

    def __init__(self) -> None:
        self.characters: set[str] = set()

    def add(self, text: str) -> None:
        self.characters.update(text)

    def write(self, file: IO[bytes]) -> None:
        file.write("".join(sorted(self.characters)).encode())

    def merge(self, written: bytes) -> None:
        self.characters.update(written.decode())


def build_char_tokenizer(characters: Iterable[str]) -> PreTrainedTokenizerFast:
    """`build_char` as a tokenizer of transformers."""
    return wrap(build_char(characters))


def build_char(characters: Iterable[str]) -> Tokenizer:
    """A tokenizer with the ids 0 (EOS), 1-256 (the bytes `<0x00>` to `<0xFF>`), then `characters` by code point.

    It is a BPE model without merges: byte fallback spells a character outside the vocabulary in its UTF-8 bytes.
    """
    from tokenizers import Tokenizer, decoders, models

    tokens = [EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(set(characters))]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


BYTES_PER_TOKEN = 4.0  # of English text and a vocabulary of this order


class VocabSize(NamedTuple):
    """A vocabulary size (ids) and one sentence for each step that led to it."""

    size: int
    reasons: list[str]


def optimal_vocab_size(non_vocabulary_parameters: float, hidden_size: float) -> float:
    """V of V x d = 3.146M x (N_nv / 33M)^0.835, with N_nv the parameters outside the embeddings and d their width."""
    return 3.146e6 * (non_vocabulary_parameters / 33e6) ** 0.835 / hidden_size


def choose_vocab_size(text_bytes: int, minimum: int = 5000, maximum: int = 50_000) -> VocabSize:
    """The vocabulary for a corpus of `text_bytes` UTF-8 bytes and a model as large as this corpus can feed.

    The bounds win over every other reason. Raises TokenizerError if they contradict each other.
    """
    if not 0 < minimum <= maximum:
        raise TokenizerError(
            f"min_vocab_size {minimum} and max_vocab_size {maximum} leave no room; give 0 < minimum <= maximum"
        )
    tokens = text_bytes / BYTES_PER_TOKEN
    parameters = max(OPTIMAL * tokens / TOKENS_PER_PARAMETER, 1.0)
    # Layers of 12 d^2 parameters and a depth of d / 64, the shape of the presets: N_nv = 12 d^3 / 64.
    hidden_size = (parameters * 64 / 12) ** (1 / 3)
    size = optimal_vocab_size(parameters, hidden_size)
    reasons = [
        f"{text_bytes:,} bytes are about {tokens:,.0f} tokens; seen {OPTIMAL:g} times they feed a model of about "
        f"{parameters:,.0f} parameters, width {hidden_size:.0f} ({TOKENS_PER_PARAMETER} tokens per parameter)",
        f"the optimal vocabulary of such a model is {size:,.0f} (Tao 2024)",
    ]
    size = round(size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if size < minimum:
        reasons.append(f"raised to the lower bound of {minimum:,}")
    elif size > maximum:
        reasons.append(f"lowered to the upper bound of {maximum:,}")
    else:
        reasons.append(f"rounded to {size:,}, a multiple of {VOCABULARY_MULTIPLE}")
    size = min(max(size, minimum), maximum)
    reasons.append(f"an id is used about {tokens / size:,.0f} times on average")
    return VocabSize(size, reasons)


class TrainingSettings(Protocol):
    """The settings that decide a trained tokenizer; `PrepareSettings` has them."""

    vocab_size: int | str
    min_vocab_size: int
    max_vocab_size: int
    tokenizer_train_examples: int
    seed: int


class Kind(NamedTuple):
    """The functions that make tokenizers of one kind from a text."""

    collect: Callable[[TrainingSettings, int], TextSample | CharacterSet]  # settings, `TextSample.below`
    # make(collected, UTF-8 bytes of the text, settings, say)
    make: Callable[[TextSample | CharacterSet, int, TrainingSettings, Callable[[str], object]], Tokenizer]
    settings: tuple[str, ...]  # names of those that decide it


def _make_bpe(
    sample: TextSample, text_bytes: int, settings: TrainingSettings, say: Callable[[str], object]
) -> Tokenizer:
    size = settings.vocab_size
    if size == "auto":
        size, reasons = choose_vocab_size(text_bytes, settings.min_vocab_size, settings.max_vocab_size)
        say(f"vocabulary of {size:,} ids: {'; '.join(reasons)}")
    backend = train_bpe(sample, size)
    say(f"trained a byte-level BPE of {backend.get_vocab_size():,} ids on {len(sample):,} examples")
    return backend


def _make_char(
    found: CharacterSet, text_bytes: int, settings: TrainingSettings, say: Callable[[str], object]
) -> Tokenizer:
    backend = build_char(found.characters)
    ids = backend.get_vocab_size()
    say(f"{len(found.characters):,} characters; with the 256 bytes and EOS a vocabulary of {ids:,} ids")
    return backend


# The tokenizers that are made of the text; any other name is loaded (`load_data_tokenizer`).
TRAINED = {
    "bpe": Kind(
        lambda settings, below: TextSample(settings.tokenizer_train_examples, settings.seed, below),
        _make_bpe,
        ("vocab_size", "min_vocab_size", "max_vocab_size", "tokenizer_train_examples", "seed"),
    ),
    "char": Kind(lambda settings, below: CharacterSet(), _make_char, ()),
}
