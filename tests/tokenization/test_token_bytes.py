"""The bytes of the ids of a text, joined, are the text."""

import numpy as np
import pytest

from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import EOS, wrap
from mypt.tokenization.token_bytes import TextOf, token_bytes
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

TEXTS = ["plain text, twice: plain text", "ünï 😀 \x00\x7f\xad\t\r\n", EOS + " <0x41>", "", "日本語" * 50]


def wordpiece():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"plain": 0, "text": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return wrap(backend)


@pytest.mark.parametrize("make", [lambda: build_char_tokenizer("plain text,"), lambda: train_bpe_tokenizer(TEXTS, 300)])
def test_bytes_and_their_numbers(make):
    tokenizer = make()
    text, eos = TextOf(tokenizer), np.uint32(tokenizer.eos_token_id)
    documents = [np.append(ids, eos) for ids in encode_documents(tokenizer, TEXTS)]
    assert [text(ids) for ids in documents] == [document.encode() for document in TEXTS]
    sizes = text.sizes(np.concatenate(documents), np.array([len(ids) for ids in documents]))
    assert sizes.tolist() == [len(document.encode()) for document in TEXTS]
    assert len(token_bytes(tokenizer)) == len(tokenizer)


def test_a_tokenizer_that_joins_with_blanks_is_decoded():
    tokenizer = wordpiece()
    assert token_bytes(tokenizer) is None
    ids = np.array([0, 1, tokenizer.eos_token_id, 1, tokenizer.eos_token_id])
    assert TextOf(tokenizer)(ids[:3]) == b"plain text"
    assert TextOf(tokenizer).sizes(ids, np.array([3, 2])).tolist() == [10, 4]
