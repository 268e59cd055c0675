"""The settings of a preparation: checked, comparable, and kept in the metadata of what they made."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from mypt.errors import DataError
from mypt.text.sources import UNITS
from mypt.tokenization.bpe import SMALLEST_VOCABULARY

_BPE_ONLY = ("vocab_size", "min_vocab_size", "max_vocab_size", "tokenizer_train_examples", "seed")
_SPLITTING = ("tokens_per_shard", "val_fraction", "val_split")


@dataclass(frozen=True)
class PrepareSettings:
    """All that decides the bytes of a dataset beside the contents of its sources."""

    tokenizer: str  # bpe, char, gpt2, or the hash of any other
    vocab_size: int | str
    min_vocab_size: int
    max_vocab_size: int
    tokenizer_train_examples: int
    seed: int
    text_column: str
    document: str | None
    normalize: bool
    filter: bool
    dedup: bool
    lowercase: bool
    max_documents: int | None
    tokens_per_shard: int
    val_fraction: float
    val_split: str

    def check(self) -> None:
        """Raise DataError for the first value that is out of range, naming the range."""
        numbers = ("tokenizer_train_examples", "tokens_per_shard", "max_documents")
        wrong = {
            f"{name}": "1 or more" for name in numbers if getattr(self, name) is not None and getattr(self, name) < 1
        }
        if not 0 <= self.val_fraction < 1:
            wrong["val_fraction"] = "0 (no val split) or more, and below 1"
        if self.val_split not in ("hash", "tail"):
            wrong["val_split"] = "hash or tail"
        if self.document not in (None, *UNITS):
            wrong["document"] = ", ".join(UNITS)
        if self.vocab_size != "auto" and not (
            isinstance(self.vocab_size, int) and self.vocab_size >= SMALLEST_VOCABULARY
        ):
            wrong["vocab_size"] = f"auto or {SMALLEST_VOCABULARY} or more (256 bytes and EOS)"
        elif self.vocab_size != "auto" and self.tokenizer != "bpe":
            wrong["vocab_size"] = "left out: only --tokenizer bpe is trained to a size"
        if not SMALLEST_VOCABULARY <= self.min_vocab_size <= self.max_vocab_size:
            wrong["min_vocab_size"] = f"from {SMALLEST_VOCABULARY} to max_vocab_size ({self.max_vocab_size})"
        for name, expected in wrong.items():
            raise DataError(f"{name} is {getattr(self, name)!r}; it must be {expected}")

    def deciding(self) -> dict[str, Any]:
        """Names and values, without those of a tokenizer that is not trained."""
        return {name: value for name, value in asdict(self).items() if self.tokenizer == "bpe" or name not in _BPE_ONLY}

    def training_key(self, fingerprints: list[str]) -> str:
        """xxh3-128 of what decides a trained tokenizer: equal keys, equal tokenizers."""
        content = {name: value for name, value in self.deciding().items() if name not in _SPLITTING}
        return xxhash.xxh3_128_hexdigest(json.dumps([content, fingerprints], sort_keys=True).encode())
