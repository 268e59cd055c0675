"""Documents to windows: end to end, each closed by EOS, cut at a stride; and the place where each window leaves off."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mypt.streams.lane import START, Place

GROUP = 64  # documents tokenised at once


def pack(
    documents: Iterable[tuple[Place, str]],
    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
    eos_token_id: int,
    block_size: int,
    stride: int,
    start: Place = START,
) -> Iterator[tuple[np.ndarray, Place]]:
    """Windows uint32 (block_size + 1,), each with the place at which the next one begins, `stride` tokens further on.

    encode: texts to their ids, flat, and how many each has. start: the place of the first document, of which
    `start.token` tokens are done; the tokens that the places count go on from there.
    """
    documents = iter(documents)
    tokens = np.empty(0, np.uint32)  # from the first of the next window on
    skip, given = start.token, start.tokens  # given: tokens of all documents before the next one
    first_tokens = start.first_tokens if start.epoch else None  # None: epoch 0 is not over
    starts, places = np.empty(0, np.int64), []  # of the documents in `tokens`: the first token of each, its place
    while group := list(itertools.islice(documents, GROUP)):
        ids, counts = encode([text for _, text in group])
        ends = np.cumsum(counts)
        begins = ends - counts + np.arange(len(group))  # an EOS behind each document before
        starts = np.concatenate([starts, begins + len(tokens) - skip])
        for (place, _), count in zip(group, counts.tolist(), strict=True):
            if first_tokens is None and place.epoch:
                first_tokens = given
            places.append(place._replace(tokens=given, first_tokens=first_tokens or 0))
            given += count + 1
        tokens = np.concatenate([tokens, np.insert(ids, ends, eos_token_id)[skip:]])
        skip = done = 0
        while len(tokens) - done > block_size:
            window = tokens[done : done + block_size + 1]
            done += stride
            document = _document_at(done, starts)
            yield window, places[document]._replace(token=int(done - starts[document]))
        document = _document_at(done, starts)
        tokens, starts, places = tokens[done:], starts[document:] - done, places[document:]


def _document_at(token: int, starts: np.ndarray) -> int:
    return int(np.searchsorted(starts, token, side="right")) - 1
