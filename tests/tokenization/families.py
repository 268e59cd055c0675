"""Tiny tokenizers of each family, made in the test."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mypt.tokenization.train import train_bpe_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz</>[]|_."
TEXT = "the cat sat on the mat and the dog ate the cat food, then the cat and the dog sat"


def wrapped(backend, eos, **roles):
    backend.add_special_tokens([token for token in (eos, *roles.values()) if backend.token_to_id(token) is not None])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **roles)


def unigram():
    """Its special tokens are in its vocabulary with the best score, as in a converted T5."""
    words = [("the", -3.0), ("▁the", -3.0), ("▁", -2.5), ("cat", -4.0)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, *((letter, -6.0) for letter in LETTERS)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return wrapped(backend, "</s>", pad_token="<pad>", unk_token="<unk>")


def wordlevel():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "cat": 3, "<s>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(backend, "</s>", bos_token="<s>", unk_token="<unk>")


def wordpiece():
    pieces = ["[UNK]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat"]
    backend = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(backend, "[SEP]", unk_token="[UNK]")


def eos_is_a_newline():
    return wrapped(byte_level(), "Ċ")


def eos_is_unknown():
    """A BPE of letters that gives EOS for any other character."""
    vocabulary = {"<eos>": 0, **{letter: id for id, letter in enumerate(LETTERS + " ", 1)}}
    return wrapped(Tokenizer(models.BPE(vocabulary, [], unk_token="<eos>")), "<eos>")


def eos_ignores_merges():
    """A BPE that takes a whole word from its vocabulary, and no merge leads to that word."""
    content = json.loads(byte_level().to_str())
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["Ġend"] = len(content["model"]["vocab"])
    return wrapped(Tokenizer.from_str(json.dumps(content)), "Ġend")


def eos_from_the_normalizer():
    tokenizer = unigram()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("§", "</s>")
    return tokenizer


def llama():
    """Blanks become part of words, and no pre-tokenizer cuts the text."""
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "▁"), ("x", "x")]
    alphabet = [*(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, "▁"]
    tokens = ["<unk>", "<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(
        models.BPE({token: id for id, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, "</s>", bos_token="<s>", unk_token="<unk>")


def byte_level():
    return train_bpe_tokenizer([TEXT] * 2, 300).backend_tokenizer


def plain_bpe():
    return train_bpe_tokenizer([TEXT] * 2, 300)


INJECTED = (
    unigram,
    wordlevel,
    wordpiece,
    eos_is_a_newline,
    eos_is_unknown,
    eos_ignores_merges,
    eos_from_the_normalizer,
)
FAMILIES = (*INJECTED, llama, plain_bpe)
