"""Every text survives a char tokenizer, whatever characters it was built from."""

import random

import pytest
from transformers import AutoTokenizer

from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import EOS, save_tokenizer
from mypt.tokenization.train import build_char_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("char")
    save_tokenizer(build_char_tokenizer("abc é<|>\n endoftx"), directory)
    return AutoTokenizer.from_pretrained(directory)


def test_vocabulary(tokenizer):
    assert len(build_char_tokenizer("hello")) == 1 + 256 + 4
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert build_char_tokenizer("ba").convert_ids_to_tokens([0, 1, 256, 257, 258]) == [
        EOS,
        "<0x00>",
        "<0xFF>",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "text", ["", "\r\n", "\x00", "😀👩‍👩‍👧", "<0x41>", EOS, "e\u0301", "\ufffd\ufeff", "  lead and trail  "]
)
def test_round_trip(tokenizer, text):
    [ids] = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.eos_token_id not in ids


def test_round_trip_of_random_unicode(tokenizer):
    draw = random.Random(7)
    planes = [range(0x80), range(0x80, 0x800), range(0x800, 0xD800), range(0xE000, 0x110000)]
    texts = ["".join(chr(draw.choice(draw.choice(planes))) for _ in range(draw.randrange(200))) for _ in range(200)]
    for text, ids in zip(texts, encode_documents(tokenizer, texts), strict=True):
        assert tokenizer.decode(ids.tolist()) == text


def test_one_id_per_known_character_and_per_byte_of_others(tokenizer):
    lengths = [len(ids) for ids in encode_documents(tokenizer, ["abc é", "Ä", "😀", "a😀b"])]
    assert lengths == [5, 2, 4, 6]
