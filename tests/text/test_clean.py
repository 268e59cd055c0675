"""Cleaning changes only what it says, counts everything, and leaves code alone."""

import inspect
import random

import pytest

from mypt.text import clean
from mypt.text.clean import Cleaner, drop_reason, normalize, repair
from mypt.text.document import Document


def test_repair_counts_each_bad_byte():
    assert repair("a\udcff\udcfeb\ud800") == ("a\ufffd\ufffdb\ufffd", 3)
    assert repair("fine \ufffd 😀") == ("fine \ufffd 😀", 0)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("a \t\n  b\t", "a\n  b"),
        ("a  \r\nb", "a\nb"),
        ("e\u0301", "\u00e9"),
        ("\u00a0a\u00a0\n", "\u00a0a\u00a0\n"),
        ("Tab\tinside \x0c stays\n\n\n", "Tab\tinside \x0c stays\n\n\n"),
    ],
)
def test_normalize(text, normal):
    assert normalize(text) == normal


def test_normalize_is_idempotent():
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices(" \t\r\ne\u0301\u1100\u1161x\u0327", k=30))
        assert normalize(normalize(text)) == normalize(text)


def test_drop_reasons():
    assert [drop_reason(text) for text in ("", " \n\t", "yes", "}", "\x1b[1mbold\x1b[0m")] == [
        "empty",
        "empty",
        None,
        None,
        None,
    ]
    assert drop_reason("x" * 90 + "\x00" * 10) is None
    assert drop_reason("x" * 89 + "\x00" * 11) == "not_text"
    assert drop_reason("plain words".encode("utf-16-le").decode()) == "not_text"


def test_source_code_passes_unchanged():
    code = inspect.getsource(clean)
    assert Cleaner()(Document(code, "", "")).text == code


def test_cleaner_counts():
    cleaner = Cleaner(lowercase=True)
    texts = ["A\udcff bcdefghijkl", "B \n", "", "\x00\x00", "ok"]
    kept = [cleaner(Document(text, str(i), "s")) for i, text in enumerate(texts)]
    assert [document and document.text for document in kept] == ["a\ufffd bcdefghijkl", "b\n", None, None, "ok"]
    assert dict(cleaner.counts) == {"documents": 5, "invalid_utf8": 1, "normalized": 1}
    assert dict(cleaner.dropped) == {"empty": 1, "not_text": 1}
    assert (kept[4].id, kept[4].source) == ("4", "s")


def test_without_rules_only_no_text_at_all_is_dropped():
    cleaner = Cleaner(normalize=False, filter=False)
    texts = ["a \r\n", " ", "\x00", ""]
    kept = [cleaner(Document(text, "", "")) for text in texts]
    assert [document and document.text for document in kept] == ["a \r\n", " ", "\x00", None]
