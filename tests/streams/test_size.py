"""A counted epoch is the one that a stream gives; of a large source a part is counted and the rest worked out."""

import json

import pytest

from mypt.errors import DataError
from mypt.streams.document_reader import is_held_out
from mypt.streams.size import count_epoch, guess_tokens
from mypt.text.sources import find_units
from tests.streams.test_jit_stream import TOKENIZER


@pytest.fixture
def texts(tmp_path):
    """Twelve files of documents that become longer and longer, and some that cleaning drops."""
    texts = [f"document {number} " + "words " * (number // 20) for number in range(240)]
    for index in range(12):
        lines = [json.dumps({"text": text}) for text in [*texts[20 * index : 20 * index + 20], " \x00 "]]
        (tmp_path / f"{index:02d}.jsonl").write_text("\n".join(lines))
    return [text.strip() for text in texts]


@pytest.fixture
def units(texts, tmp_path):
    return [unit for index in range(12) for unit in find_units([tmp_path / f"{index:02d}.jsonl"])]


@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.3}, {"max_examples": 50}])
def test_a_small_source_is_counted_exactly(texts, units, options):
    chosen = texts[:48] if options.get("max_examples") else texts  # 50 with the two that are dropped
    kept = [text for text in chosen if not is_held_out(text, options.get("val_fraction", 0.0))]
    size = count_epoch(units, TOKENIZER, **options)
    assert size.exact and size.documents == len(kept)
    assert size.tokens == sum(len(text) + 1 for text in kept)


def test_of_a_large_source_a_part_is_counted(texts, units):
    whole, part = count_epoch(units, TOKENIZER), count_epoch(units, TOKENIZER, limit=whole_characters(texts) // 2)
    assert not part.exact and part == count_epoch(units, TOKENIZER, limit=whole_characters(texts) // 2)
    assert part.documents == pytest.approx(240, rel=0.2) and part.tokens == pytest.approx(whole.tokens, rel=0.1)


def whole_characters(texts):
    return sum(map(len, texts))


def test_a_source_without_documents_is_refused(tmp_path):
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n' * 3)
    with pytest.raises(DataError, match=r"blank\.jsonl: no document to train on"):
        count_epoch(find_units([tmp_path / "blank.jsonl"]), TOKENIZER)


def test_a_guess_needs_no_tokenizer(texts, units):
    expected = sum(len(text.encode()) / 4 + 1 for text in texts)
    assert guess_tokens(units) == pytest.approx(expected, rel=0.25)
    assert guess_tokens(units, val_fraction=0.5) == pytest.approx(expected / 2, rel=0.25)
    assert guess_tokens(units, max_examples=24) == pytest.approx(expected / 10, rel=0.25)
