"""A text in parts, or in windows, has the ids of the whole, whatever the tokenizer."""

import random

import numpy as np
import pytest

from mypt.errors import TokenizerError
from mypt.tokenization import encode, fast, long_text
from mypt.tokenization.fast import Encoder, choose_engine
from mypt.tokenization.long_text import LongText, plain_text
from tests.tokenization.families import FAMILIES, TEXT, llama, plain_bpe


def long_texts():
    draw = random.Random(0)
    letters = "".join(draw.choices("thecat", k=4_000))
    yield " ".join(draw.choices(TEXT.split(), k=1_500))
    yield letters
    yield "x" * 4_001
    yield " " * 3_000 + "a" + "\n" * 2_000
    yield "".join(draw.choices([" the", "cat", "é", "日本", "\n", "  ", "</s>", "😀", "1"], k=2_000))
    yield letters[:1_500] + " the cat\n" * 200 + letters[:2_500] + " " + letters[:900]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(long_text, "WINDOW", 500)
    monkeypatch.setattr(long_text, "OVERLAPS", (80, 200))
    monkeypatch.setattr(encode, "LONG", 1_000)
    monkeypatch.setattr(fast, "LONG", 1_000)


def whole(tokenizer, text):
    with plain_text(tokenizer.backend_tokenizer):
        return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def parts(text, size):
    return [(text[start : start + size], start + size >= len(text)) for start in range(0, len(text), size)]


@pytest.mark.parametrize("make", FAMILIES)
def test_windows_give_the_ids_of_the_whole(make):
    tokenizer = make()
    for text in long_texts():
        encoder, expected = LongText(tokenizer.backend_tokenizer), whole(tokenizer, text)
        for size in (len(text), 700):
            assert np.concatenate([encoder.add(*part) for part in parts(text, size)]).tolist() == expected


@pytest.mark.parametrize("make", [llama, plain_bpe])
def test_a_document_in_parts_has_the_ids_of_the_whole(make):
    tokenizer = make()
    backend = tokenizer.backend_tokenizer
    for engine in dict.fromkeys(("tokenizers", choose_engine(backend, [TEXT], lambda line: None))):
        encoder = Encoder(backend, engine, tokenizer.eos_token_id)
        for text in long_texts():
            expected = whole(tokenizer, text)
            assert encoder([text])[0].tolist() == expected
            for size in (300, 1_700):
                add = encoder.document()
                assert np.concatenate([add(*part) for part in parts(text, size)]).tolist() == expected


def test_memory_is_that_of_a_few_windows(monkeypatch):
    longest = []
    encoded = LongText._encoded
    monkeypatch.setattr(
        LongText, "_encoded", lambda self, start, stop: longest.append(stop - start) or encoded(self, start, stop)
    )
    encoder = LongText(llama().backend_tokenizer)
    for part in parts("x" * 50_000, 1_000):
        encoder.add(*part)
        assert len(encoder._text) <= 4 * long_text.WINDOW
    assert len(longest) >= 100 and max(longest) <= 2 * long_text.WINDOW


def test_a_text_that_no_window_can_show_is_refused():
    """Any text behind changes what stands before: here a token is drawn by the length of the text."""

    class Unstable(LongText):
        def _encoded(self, start, stop):
            ids = np.arange(start, stop) * 0 + stop - start
            places = np.arange(0, stop - start, 7) + (stop - start) % 7
            return long_text._Tokens(ids[: len(places)].astype(np.uint32), places, places + 7)

    encoder = Unstable(llama().backend_tokenizer)
    encoder._at_start = False
    with pytest.raises(TokenizerError, match="split the document"):
        encoder.add("x" * 5_003)
