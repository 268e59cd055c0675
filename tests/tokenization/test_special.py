"""No text brings a special id into a document: it is spelled in other ids, or dropped and counted."""

import random

import numpy as np
import pytest

from mypt.tokenization.encode import SpecialIds, encode_documents, encode_flat
from mypt.tokenization.fast import Encoder, choose_engine
from tests.tokenization.families import FAMILIES, INJECTED, eos_is_unknown, plain_bpe, unigram, wordlevel

PARTS = [
    "the cat",
    "</s>",
    " </s> ",
    "<eos>",
    " end",
    "[SEP]",
    " [SEP] ",
    "\n",
    "§",
    "<s>",
    "<pad>",
    "<unk>",
    "é",
    "a<b",
]


def texts():
    draw = random.Random(0)
    return ["".join(draw.choices(PARTS, k=draw.randint(0, 8))) for _ in range(200)]


@pytest.mark.parametrize("make", FAMILIES)
def test_eos_is_never_inside(make):
    tokenizer = make()
    encoder = Encoder(tokenizer.backend_tokenizer, eos_token_id=tokenizer.eos_token_id)
    ids, counts = encoder(texts())
    raw, raw_counts = encode_flat(tokenizer.backend_tokenizer, texts())
    assert (make in INJECTED) == (tokenizer.eos_token_id in raw)
    assert tokenizer.eos_token_id not in ids
    assert (counts.sum(), len(counts)) == (len(ids), len(raw_counts))
    # Document by document the same: nothing leaks from one into another, and what has no special id keeps its ids.
    one_by_one = [encoder([text])[0].tolist() for text in texts()]
    assert [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])] == one_by_one
    assert [part.tolist() for part in encode_documents(tokenizer, texts())] == one_by_one
    special = set(tokenizer.all_special_ids)
    for own, part in zip(one_by_one, np.split(raw, np.cumsum(raw_counts)[:-1]), strict=True):
        if not special & set(part.tolist()):
            assert own == part.tolist()


def test_a_special_token_is_spelled_where_the_vocabulary_can():
    tokenizer = unigram()
    backend = tokenizer.backend_tokenizer
    encoder = Encoder(backend, eos_token_id=tokenizer.eos_token_id)
    ids, counts = encoder(["the</s>", "", "<pad>"])
    assert [backend.id_to_token(id) for id in ids] == ["▁the", "<", "/", "s", ">", "▁", "<", "p", "a", "d", ">"]
    assert (counts.tolist(), encoder.special.dropped) == ([5, 0, 6], 0)
    assert backend.decode(ids[:5].tolist()) == "the</s>"


def test_what_cannot_be_spelled_is_dropped_and_counted():
    tokenizer = wordlevel()
    encoder = Encoder(tokenizer.backend_tokenizer, eos_token_id=tokenizer.eos_token_id)
    ids, counts = encoder(["the </s> cat", "</s>", "<s> dog"])
    assert (ids.tolist(), counts.tolist()) == ([2, 3, 0], [2, 0, 1])  # the cat, nothing, unknown
    assert (encoder.special.dropped, encoder.special.unknown) == (3, 1)
    tokenizer = eos_is_unknown()
    encoder = Encoder(tokenizer.backend_tokenizer, eos_token_id=tokenizer.eos_token_id)
    ids, _ = encoder(["aéb"])
    assert tokenizer.backend_tokenizer.decode(ids.tolist()).replace(" ", "") == "ab"
    assert encoder.special.dropped == 1


def test_every_engine_is_guarded():
    tokenizer = plain_bpe()
    backend = tokenizer.backend_tokenizer
    engine = choose_engine(backend, ["the cat"], lambda line: None)
    newline = backend.token_to_id("Ċ")
    ids, counts = Encoder(backend, engine, eos_token_id=newline)(["a\nb\n", "c"])
    assert newline not in ids and counts.tolist() == [2, 1]


def test_special_ids_at_the_edges_of_empty_documents():
    special = SpecialIds(wordlevel().backend_tokenizer, 1)
    ids, counts = special(np.array([1, 2, 1, 1, 3], np.uint32), np.array([0, 1, 0, 2, 1, 0, 1], np.int64))
    assert (ids.tolist(), counts.tolist()) == ([2, 3], [0, 0, 0, 1, 0, 0, 1])
    assert special.dropped == 3
