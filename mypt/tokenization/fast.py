"""Encode many texts by the fastest engine that gives the tokenizer's own ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mypt.text.plain import beginning
from mypt.tokenization.encode import LONG, SpecialIds, cut_pattern, encode_flat, last_cut
from mypt.tokenization.load import parsed
from mypt.tokenization.long_text import LongText

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Flat = tuple[np.ndarray, np.ndarray]  # ids, uint32 (tokens,), and how many each text has, int64 (texts,)

# characters: a table of this module's, for tokenizers without merges; fastokens: a package; tokenizers: always there.
ENGINES = ("characters", "fastokens", "tokenizers")

SAMPLE_CHARACTERS = 100_000
_SLICE = 1 << 16  # characters or ids that are looked up at once: as many as stay in the processor's cache
CHECK_SHARE, CHECK_CHARACTERS = 1 / 2000, 500  # of a call's characters; at most so many of one text

# Where engines differ if they do: what is a space, a letter or a digit (in old and new Unicode), and special tokens.
HARD = (
    "", "<|endoftext|>", "a<|endoftext|>b", " ", " " * 300 + "a", "x\r\ny\r\n\r\n  z\n", "\t\t\n\n\t x  \n",
    "a\x00b\x00", "\ufeffa\u200b\u2028b\x85c\xa0d\u3000e\x1cf\x0bg\u180eh", "it's IT'S we'll'Ll '\u017f ' s",
    "12345 \xbd\xb2 \u0663\u0664 1a2", "caf\xe9 cafe\u0301 \ufb01 \u0130\xdf \u6c49\u5b57\u3068\ud55c",
    "\U0001f600\U0001f468\u200d\U0001f469 \U0010fffd\ufffd",
    "a\u0897b a\u088fb a\ua7dab a\ua7ceb a\U00016ec0b a\U0001fae9b", "<s></s><unk><0x41>[CLS]\u2581x",
)  # fmt: skip


def choose_engine(tokenizer: Tokenizer, sample: Iterable[str], say: Callable[[str], object]) -> str:
    """The first of ENGINES that is installed, and gives the tokenizer's own ids for real text and for hard strings.

    `sample` is text that is to be encoded; its first 100,000 characters are used. An engine that is installed and
    fails is reported to `say`.
    """
    texts = [*HARD, *beginning(sample, SAMPLE_CHARACTERS)]
    expected, content = encode_flat(tokenizer, texts), tokenizer.to_str()
    for engine, load in _LOADERS.items():
        try:
            encode = load(content)
            if encode is None:
                continue
            if all(map(np.array_equal, encode(texts), expected)):
                return engine
            reason = "gives other ids than the tokenizer"
        except ImportError:
            continue
        except Exception as error:
            reason = f"cannot use this tokenizer ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        say(f"{engine} {reason}: not used")
    return "tokenizers"


class Encoder:
    """Texts to ids by one of ENGINES. Special tokens are plain text (`SpecialIds`), no BOS or EOS is added.

    `tokenizer` may be a `tokenizer.json` or its directory: neither transformers nor torch is imported. `eos_token_id`
    is the id that the ids of a text never hold. The ids of a faster engine are checked: all by the number of bytes that
    they stand for, and one character in 2,000 against the tokenizer itself, which encodes the whole call again, with a
    warning, if there is any difference.
    """

    def __init__(
        self, tokenizer: Tokenizer | Path, engine: str = "tokenizers", eos_token_id: int | None = None
    ) -> None:
        if isinstance(tokenizer, Path):
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer))
        self.tokenizer, self.engine = tokenizer, engine
        self.special = SpecialIds(tokenizer, eos_token_id)
        if engine != "tokenizers":
            content = tokenizer.to_str()
            self._lengths, self._encode = _byte_lengths(content), _LOADERS[engine](content)

    def __call__(self, texts: Sequence[str], sizes: Sequence[int] | None = None) -> Flat:
        """The ids of all texts, uint32 (tokens,), and how many each text has, int64 (len(texts),).

        `sizes`: the UTF-8 bytes of each text, if they are known.
        """
        return self.special(*self._raw(texts, sizes))

    def document(self) -> Callable[[str, bool], np.ndarray]:
        """A function `add(part, ended)` for one document in parts, which gives the certain ids, uint32 (tokens,)."""
        cut, held, windows = cut_pattern(self.tokenizer), "", LongText(self.tokenizer)
        in_windows = cut is None

        def add(part: str, ended: bool) -> np.ndarray:
            nonlocal held, in_windows
            found, text = [], held + part
            if in_windows:
                match = cut.search(text) if cut else None
                place = match.start() if match else len(text)
                in_windows = match is None
                found.append(self._checked(windows.add(text[:place], ended=ended or not in_windows)))
                text = text[place:]
            place = len(text) if ended else last_cut(text, cut) if text else 0
            held = text[place:]
            if place:
                found.append(self([text[:place]])[0])
            if len(held) > LONG:  # no place to cut yet
                found.append(self._checked(windows.add(held, ended=False)))
                held, in_windows = "", True
            return np.concatenate([np.empty(0, np.uint32), *found])

        return add

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        return self.special(ids, np.array([len(ids)], np.int64))[0]

    def _raw(self, texts: Sequence[str], sizes: Sequence[int] | None) -> Flat:
        if self.engine == "tokenizers" or not texts:
            return encode_flat(self.tokenizer, texts)
        if self.engine == "fastokens" and max(map(len, texts)) > LONG:
            return self._long(texts)
        try:
            ids, counts = self._encode(texts)
            if self._adds_up(texts, sizes, ids, counts) and self._agrees(texts, ids, counts):
                return ids, counts
            reason = "gave other ids than the tokenizer"
        except Exception as error:
            reason = f"failed ({type(error).__name__}: {error})"
        warnings.warn(
            f"{self.engine} {reason}; {len(texts)} texts are encoded by the tokenizer itself. Please report it, and to "
            f"be sure of all other texts too, uninstall {self.engine} and prepare the data again",
            stacklevel=3,
        )
        return encode_flat(self.tokenizer, texts)

    def _long(self, texts: Sequence[str]) -> Flat:
        """As `_raw` where some texts are long: they are cut where that changes no id, as memory grows with a call."""
        cut, found = cut_pattern(self.tokenizer), []
        for text in texts:
            parts = []
            while len(text) > LONG:
                place = last_cut(text[:LONG], cut) if cut else 0
                if not place:  # no place to cut: in windows, by the tokenizer itself
                    place = match.start() if cut and (match := cut.search(text, LONG)) else len(text)
                    parts.append(encode_flat(self.tokenizer, [text[:place]])[0])
                else:
                    parts.append(self._raw([text[:place]], None)[0])
                text = text[place:]
            found.append(np.concatenate([*parts, self._raw([text], None)[0]]))
        return np.concatenate(found), np.array(list(map(len, found)), np.int64)

    def _adds_up(self, texts: Sequence[str], sizes: Sequence[int] | None, ids: np.ndarray, counts: np.ndarray) -> bool:
        """Whether the ids of each text stand for as many bytes as the text has, where ids stand for bytes at all."""
        if len(counts) != len(texts) or counts.sum() != len(ids):
            return False
        if self._lengths is None:
            return True
        if len(ids) and ids.max() >= len(self._lengths):
            return False
        some, found = counts > 0, np.zeros(len(texts), dtype=np.int64)
        lengths = np.empty(len(ids), self._lengths.dtype)
        for start in range(0, len(ids), _SLICE):
            np.take(self._lengths, ids[start : start + _SLICE], out=lengths[start : start + _SLICE], mode="clip")
        found[some] = np.add.reduceat(lengths, (np.cumsum(counts) - counts)[some], dtype=np.int64)
        return np.array_equal(found, [len(text.encode()) for text in texts] if sizes is None else sizes)

    def _agrees(self, texts: Sequence[str], ids: np.ndarray, counts: np.ndarray) -> bool:
        """Whether some texts' beginnings have the tokenizer's ids; which ones depends on the call alone."""
        stops, left = np.cumsum(counts), max(1, CHECK_SHARE * sum(map(len, texts)))
        for i in range(len(texts)):
            i = (i + len(ids)) % len(texts)
            own = ids[stops[i] - counts[i] : stops[i]]
            if not self._begins(texts[i], own):
                return False
            left -= min(len(texts[i]), CHECK_CHARACTERS)
            if left <= 0:
                break
        return True

    def _begins(self, text: str, ids: np.ndarray) -> bool:
        if len(text) > CHECK_CHARACTERS:
            # The last ids of a part need not be those of the whole, in some tokenizers all: then the whole decides.
            expected, _ = encode_flat(self.tokenizer, [text[:CHECK_CHARACTERS]])
            if np.array_equal(ids[: len(expected) // 2], expected[: len(expected) // 2]):
                return True
        return np.array_equal(ids, encode_flat(self.tokenizer, [text])[0])


def _byte_lengths(tokenizer_json: str) -> np.ndarray | None:
    """The bytes of text that each id stands for, uint16 (ids,), in a byte-level tokenizer; None for any other."""
    content = parsed(tokenizer_json)
    rule = content["pre_tokenizer"] or {}
    *splits, last = rule.get("pretokenizers", [rule])
    if (
        content["normalizer"]
        or last.get("type") != "ByteLevel"
        or last["add_prefix_space"]
        or any((split["type"], split.get("behavior")) != ("Split", "Isolated") for split in splits)
        or not all(token["special"] for token in content["added_tokens"])
    ):
        return None
    vocabulary = content["model"]["vocab"]
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.uint16)
    for token, id in vocabulary.items():
        lengths[id] = len(token)
    return lengths


@lru_cache(maxsize=1)  # choosing an engine and using it take one loading
def _fastokens(tokenizer_json: str) -> Callable[[Sequence[str]], Flat]:
    import fastokens

    backend = fastokens.Tokenizer.from_json_str(tokenizer_json)
    backend.no_truncation()

    def encode(texts: Sequence[str]) -> Flat:
        ids, offsets = backend.encode_batch_flat(list(texts), split_special_tokens=True)
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64))

    return encode


@lru_cache(maxsize=1)
def _characters(tokenizer_json: str) -> Callable[[Sequence[str]], Flat] | None:
    """A table from code points to ids, if the tokenizer gives each character an id and any other one its bytes'."""
    content = parsed(tokenizer_json)
    model = content["model"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if (
        (model["type"], model.get("merges"), model.get("byte_fallback")) != ("BPE", [], True)
        or content["normalizer"]
        or content["pre_tokenizer"]
        or not all(token["special"] for token in content["added_tokens"])
        or not set(fallback) <= model["vocab"].keys()
    ):
        return None
    unknown = np.uint32(2**32 - 1)
    table = np.full(0x110000, unknown)
    for token, id in model["vocab"].items():
        if len(token) == 1:
            table[ord(token)] = id
    byte_ids = np.array([model["vocab"][token] for token in fallback], dtype=np.uint32)

    def encode(texts: Sequence[str]) -> Flat:
        counts = np.fromiter(map(len, texts), np.int64, len(texts))
        points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
        ids = np.empty(len(points), dtype=np.uint32)
        for start in range(0, len(ids), _SLICE):
            np.take(table, points[start : start + _SLICE], out=ids[start : start + _SLICE], mode="clip")
        places = np.flatnonzero(ids == unknown)
        if not len(places):
            return ids, counts
        spelled = "".join(map(chr, points[places].tolist()))
        spelling = byte_ids[np.frombuffer(spelled.encode(), np.uint8)]
        sizes = np.fromiter((len(character.encode()) for character in spelled), np.int64, len(places))
        firsts = np.cumsum(sizes) - sizes  # the first byte takes the character's place, the others follow
        ids[places] = spelling[firsts]
        np.add.at(counts, np.searchsorted(np.cumsum(counts), places, side="right"), sizes - 1)
        return np.insert(ids, np.repeat(places + 1, sizes - 1), np.delete(spelling, firsts)), counts

    return encode


_LOADERS = {"characters": _characters, "fastokens": _fastokens}
