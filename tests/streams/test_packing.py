"""Documents end to end, by hand: windows of 4 + 1 ids, EOS 0, and the place at which each next one begins."""

import numpy as np
import pytest

from mypt.streams.document_reader import START, Cursor, pack


def encode(texts):
    return np.array([ord(c) - 96 for text in texts for c in text], np.uint32), np.array([len(text) for text in texts])


def packed(texts, stride=4, start=START):
    documents = ((Cursor(drawn=number), text) for number, text in enumerate(texts))
    windows = pack(documents, encode, eos_token_id=0, block_size=4, stride=stride, start=start)
    return [(window.tolist(), place.drawn, place.token) for window, place in windows]


def test_windows_and_places_by_hand():
    # 1 2 3 0 | 4 5 0 | 6 7 8 9 0
    assert packed(["abc", "de", "fghi"]) == [([1, 2, 3, 0, 4], 1, 0), ([4, 5, 0, 6, 7], 2, 1)]
    assert packed(["abc", "de", "fghi"], stride=3) == [
        ([1, 2, 3, 0, 4], 0, 3),
        ([0, 4, 5, 0, 6], 1, 2),
        ([0, 6, 7, 8, 9], 2, 2),
    ]
    assert packed(["abc"]) == []


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_from_any_place_on_it_gives_the_rest(stride):
    texts = ["abc", "d", "efghijklm", "no", "pqrstu"] * 14  # more than one group of documents
    whole = packed(texts, stride)
    for index, (_, document, token) in enumerate(whole[:-1]):
        rest = [
            (window, drawn + document, at)
            for window, drawn, at in packed(texts[document:], stride, Cursor(token=token))
        ]
        assert rest == whole[index + 1 :]


def test_places_count_tokens_and_those_of_the_first_epoch():
    """Two epochs of "abc", "de" (7 tokens with EOS), and half of the third; from any place on the counts go on."""
    given = [(Cursor(epoch=epoch, documents=2 * epoch + number), text)
             for epoch in range(3) for number, text in enumerate(["abc", "de"])]  # fmt: skip
    whole = list(pack(given, encode, 0, block_size=2, stride=2))
    for index, (_, place) in enumerate(whole):
        assert place.tokens + place.token == 2 * (index + 1)
        assert place.tokens == 7 * place.epoch + 4 * (place.documents % 2)
        assert place.first_tokens == (7 if place.epoch else 0)
        rest = pack(given[place.documents :], encode, 0, block_size=2, stride=2, start=place)
        assert [after for _, after in rest] == [after for _, after in whole[index + 1 :]]
    assert len(whole) == 10
