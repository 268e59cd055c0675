"""Documents to windows: end to end, each closed by EOS, cut at a stride; and the place where each window leaves off."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mypt.streams.lane import Place

GROUP = 64  # documents tokenised at once


def pack(
    documents: Iterable[tuple[Place, str]],
    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]],
    eos_token_id: int,
    block_size: int,
    stride: int,
    skip: int = 0,
) -> Iterator[tuple[np.ndarray, Place]]:
    """Windows uint32 (block_size + 1,), each with the place at which the next one begins, `stride` tokens further on.

    encode: texts to their ids, flat, and how many each has. skip: tokens of the first document that are done.
    """
    documents = iter(documents)
    tokens = np.empty(0, np.uint32)  # from the first of the next window on
    starts, places = np.empty(0, np.int64), []  # of the documents in `tokens`: the first token of each, its place
    while group := list(itertools.islice(documents, GROUP)):
        ids, counts = encode([text for _, text in group])
        ends = np.cumsum(counts)
        begins = ends - counts + np.arange(len(group))  # an EOS behind each document before
        starts = np.concatenate([starts, begins + len(tokens) - skip])
        places += [place for place, _ in group]
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
