"""Express a tokenizer in the fields of a GGUF file; refuse one that llama.cpp would apply otherwise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from mypt.errors import TokenizerError
from mypt.tokenization.load import largest_id
from mypt.tokenization.token_bytes import is_byte_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# gguf.TokenType
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
BLANK = "\u2581"  # what llama.cpp's SentencePiece writes for a blank

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> tuple:
    return ("Split", pattern, "Isolated", False), ("ByteLevel", False, False)


# The steps of a pre-tokenizer, and whether whole words of the vocabulary skip the merges -> llama.cpp's name.
PRE_TOKENIZERS = {
    ((("ByteLevel", False, True),), False): "gpt-2",
    (_split(_GPT2), False): "gpt-2",
    (_split(f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_REST}"), False): "qwen2",
    (_split(f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}"), True): "llama-bpe",
    ((("Digits", True), ("ByteLevel", False, True)), False): "smollm",
}


class Vocabulary(NamedTuple):
    """A tokenizer in the fields of a GGUF file.

    Attributes:
        model: llama.cpp's kind of tokenizer: `gpt2` (byte-level BPE) or `llama` (SentencePiece with bytes).
        pre: Its name of the pre-tokenizer; None: the kind has none.
        tokens: The text of each id from 0 to the last that the tokenizer has.
        types: The type of each id.
        merges: Pairs, a blank between them.
        add_bos, add_eos: Whether a text begins or ends with this token.
        notes: Where llama.cpp reads a text otherwise.
    """

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    merges: list[str]
    add_bos: bool
    add_eos: bool
    notes: list[str]


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """Return the tokenizer in llama.cpp's terms. Raises TokenizerError that names what llama.cpp does not have."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, notes = content["model"], []
    if model["type"] != "BPE":
        raise _refused(f"a {model['type']} model")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refused(f"{name} {model[name]!r}")
    normalizer = content["normalizer"]
    if normalizer and normalizer["type"] != "NFC":
        raise _refused(f"the normalizer {normalizer['type']}")
    if normalizer:
        notes.append("llama.cpp does not compose characters (NFC): decomposed accents get other ids there")
    steps = tuple(_steps(content["pre_tokenizer"]))
    by_character = not steps and not model["merges"] and model.get("byte_fallback")
    pre = PRE_TOKENIZERS.get((steps, bool(model.get("ignore_merges"))))
    if not (by_character or pre):
        names = " and ".join(str(step[0]) for step in steps) or "none"
        raise _refused(f"this pre-tokenizer ({names}); it knows those of gpt2, qwen2, llama3 and smollm")
    for token in content["added_tokens"]:
        if found := [name for name in ("lstrip", "rstrip", "single_word") if token[name]]:
            raise _refused(f"{found[0]} of the added token {token['content']!r}")
    tokens, types = _tokens(tokenizer, content, by_character)
    if by_character:
        notes.append(f"llama.cpp reads the character {BLANK} (U+2581) in a text as a blank")
    add_bos, add_eos = _ends(tokenizer)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary("llama" if by_character else "gpt2", pre, tokens, types, merges, add_bos, add_eos, notes)


def _tokens(tokenizer: PreTrainedTokenizerFast, content: dict, by_character: bool) -> tuple[list[str], list[int]]:
    size = largest_id(tokenizer) + 1
    tokens, types = [f"[UNUSED_{id}]" for id in range(size)], [UNUSED] * size
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    known = tokenizer.get_vocab()
    if by_character and (BLANK in known or " " not in known):
        raise _refused(f"characters with {BLANK} (U+2581), or without the blank, for which it writes that")
    for token, id in known.items():
        tokens[id] = token.replace(" ", BLANK) if by_character and id not in special else token
        if id in special:
            types[id] = CONTROL if special[id] else USER_DEFINED
        else:
            types[id] = BYTE if by_character and is_byte_token(token) else NORMAL
    return tokens, types


def _ends(tokenizer: PreTrainedTokenizerFast) -> tuple[bool, bool]:
    """Whether the tokenizer begins a text with its BOS token, and ends it with its EOS token."""
    plain, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if whole == [tokenizer.bos_token_id] * before + plain + [tokenizer.eos_token_id] * after:
            return before, after
    raise _refused("special tokens around every text that are not one BOS and one EOS")


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[tuple]:
    """The steps in order, with the settings that decide how text is split."""
    if pre_tokenizer is None:
        return []
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]
    if kind == "Split":
        pattern = pre_tokenizer["pattern"]
        return [(kind, pattern.get("Regex"), pre_tokenizer["behavior"], pre_tokenizer["invert"])]
    if kind == "ByteLevel":
        return [(kind, pre_tokenizer["add_prefix_space"], pre_tokenizer.get("use_regex", True))]
    return [(kind, pre_tokenizer.get("individual_digits"))]


def _refused(what: str) -> TokenizerError:
    return TokenizerError(
        f"gguf cannot express the tokenizer: llama.cpp does not have {what}; --format safetensors can"
    )
