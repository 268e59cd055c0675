"""Cleaning changes only what it says, counts everything, and leaves code alone."""

import inspect
import random
from collections import Counter

import pytest

from mypt.text import clean
from mypt.text.clean import Cleaner, drop_reason, line_drop_reason, normalize, repair
from mypt.text.plain import Document, whole_documents


def cleaned(cleaner: Cleaner, *texts: str) -> list[str]:
    return [document.text for document in cleaner(whole_documents(texts))]


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
    assert cleaned(Cleaner(), text) == [normal]


def test_normalize_is_idempotent():
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices(" \t\r\ne\u0301\u1100\u1161x\u0327", k=30))
        assert normalize(normalize(text)) == normalize(text)


def test_drop_reasons():
    texts = ("", " \n\t", "yes", "}", "\x1b[1mbold\x1b[0m")
    assert list(map(drop_reason, texts)) == ["empty", "empty", None, None, None]
    assert drop_reason("x" * 90 + "\x00" * 10) is None
    assert drop_reason("x" * 89 + "\x00" * 11) == "not_text"
    assert drop_reason("plain words".encode("utf-16-le").decode()) == "not_text"


def test_line_drop_reasons():
    kept = ("", "   ", "yes", " y e s ", "\t(a)", "äöü")
    assert list(map(line_drop_reason, kept)) == [None] * len(kept)
    assert list(map(line_drop_reason, ("}", " a   b ", "\xa0x", "\x00ab", "ab"))) == ["short"] * 3 + [
        "not_text",
        "short",
    ]


def test_source_code_passes_unchanged():
    code = inspect.getsource(clean)
    assert cleaned(Cleaner(), code) == [code]


def test_cleaner_counts():
    cleaner = Cleaner(lowercase=True)
    assert cleaned(cleaner, "A\udcff bcdefghijkl", "B \n", "", "\x00\x00", "ok") == ["a\ufffd bcdefghijkl", "b\n", "ok"]
    assert dict(cleaner.counts) == {"documents": 5, "invalid_utf8": 1, "normalized": 1}
    assert dict(cleaner.dropped) == {"empty": 1, "not_text": 1}
    assert not cleaner.dropped_lines


def test_without_rules_only_no_text_at_all_is_dropped():
    cleaner = Cleaner(normalize=False, filter=None)
    assert cleaned(cleaner, "a \r\n", " ", "\x00", "", "}\nx\n") == ["a \r\n", " ", "\x00", "}\nx\n"]
    assert dict(cleaner.dropped) == {"empty": 1}


def test_lines_are_dropped_where_they_stand():
    cleaner = Cleaner(filter="line")
    assert cleaned(cleaner, "def f():\n  }\n\n    go on\n]", "\x00\x01\x02word\nfine", "x", "all of it stays\n") == [
        "def f():\n\n    go on",
        "fine",
        "all of it stays\n",
    ]
    assert dict(cleaner.dropped_lines) == {"short": 3, "not_text": 1}
    assert dict(cleaner.dropped) == {"empty": 1}
    assert cleaner.examples == {"short": ["  }", "]", "x"], "not_text": [r"\x00\x01\x02word"], "empty": [""]}


def test_examples_are_few_short_and_show_control_characters():
    cleaner = Cleaner()
    cleaned(cleaner, *(f"\x00\n\u2028{n}\x1b" for n in range(5)), "\x00" * 1000)
    assert cleaner.dropped["not_text"] == 6
    assert cleaner.examples == {"not_text": [rf"\x00\n\u2028{n}\x1b" for n in range(3)]}
    cleaner = Cleaner()
    cleaned(cleaner, "\x00" * 1000, "\n" * 1000)
    assert {reason: [len(text) for text in texts] for reason, texts in cleaner.examples.items()} == {
        "not_text": [200],
        "empty": [200],
    }


@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("rule", ["document", "line", None])
def test_documents_cleaned_together_or_one_by_one_are_the_same(normal, rule):
    """Batches are looked at as a whole first; what is found must be what the plain functions find."""
    draw = random.Random(4)
    pieces = [
        "word",
        " ",
        "\n",
        "a longer line\n",
        "\r\n",
        " \n",
        "é",
        "e\u0301",
        "\x00",
        "\ufffd",
        "\udc80",
        "\x7f",
        "\t",
    ]
    for _ in range(60):
        weights = [draw.choice([0, 0, 1, 30]) + 0.01 for _ in pieces]
        texts = ["".join(draw.choices(pieces, weights, k=draw.randrange(12))) for _ in range(300)]
        settings = {"normalize": normal, "lowercase": draw.random() < 0.3, "filter": rule}
        together = Cleaner(**settings)
        kept, counts, dropped = [], Counter(documents=300, invalid_utf8=0, normalized=0), Counter()
        for text in texts:
            text, invalid = repair(text)
            text = text.lower() if settings["lowercase"] else text
            if normal and normalize(text) != text:
                text = normalize(text)
                counts["normalized"] += 1
            if rule == "line":
                lost = sum(line.count("\ufffd") for line in text.split("\n") if line_drop_reason(line))
                invalid = max(0, invalid - lost)
                text = "\n".join(line for line in text.split("\n") if not line_drop_reason(line))
            reason = drop_reason(text) if rule else None if text else "empty"
            dropped.update([reason] if reason else [])
            counts["invalid_utf8"] += 0 if reason else invalid  # of what is kept
            kept += [] if reason else [text]
        assert cleaned(together, *texts) == kept
        assert (together.counts, together.dropped) == (counts, dropped)


def test_a_document_in_parts_is_one_document():
    parts = [Document("first \n", False), Document("\x00\x00\x00", False), Document("\nmore \n", False), Document("")]
    cleaner = Cleaner()
    whole = [Document("before"), *parts, Document("after")]
    assert list(cleaner(whole)) == [
        Document("before"),
        Document("first\n", False),
        Document("\x00\x00\x00", False),
        Document("\nmore\n", False),
        Document(""),
        Document("after"),
    ]
    assert dict(cleaner.counts) == {"documents": 3, "invalid_utf8": 0, "normalized": 1}
    assert not cleaner.dropped


@pytest.mark.parametrize("before", [0, 1, 5, 400])
def test_a_document_whose_first_part_is_no_text_is_dropped_with_all_its_parts(before):
    cleaner = Cleaner()
    some = [Document(f"text {n}") for n in range(before)]
    parts = [Document("\x00\x00\x00", False), Document("words", False), Document("more words")]
    assert list(cleaner([*some, *parts, *some])) == [*some, *some]
    assert cleaner.counts["documents"] == 2 * before + 1
    assert dict(cleaner.dropped) == {"not_text": 1}


def test_cleaning_streams():
    """A reader without end, such as training on text as it comes, gets documents at once and few ahead."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield Document("some text of a few words")

    stream = Cleaner()(endless())
    next(stream)
    assert len(taken) == 1
    for _ in range(2000):
        next(stream)
    assert len(taken) < 2001 + 256
