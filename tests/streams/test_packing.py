"""Documents end to end, by hand: windows of 4 + 1 ids, EOS 0, and the place at which each next one begins."""

import numpy as np
import pytest

from mypt.streams.lane import Place
from mypt.streams.packing import pack


def encode(texts):
    return np.array([ord(c) - 96 for text in texts for c in text], np.uint32), np.array([len(text) for text in texts])


def packed(texts, stride=4, skip=0):
    documents = ((Place(drawn=number), text) for number, text in enumerate(texts))
    windows = pack(documents, encode, eos_token_id=0, block_size=4, stride=stride, skip=skip)
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
        rest = [(window, drawn + document, at) for window, drawn, at in packed(texts[document:], stride, skip=token)]
        assert rest == whole[index + 1 :]
