"""Cut a stream of T tokens into windows of B inputs and B targets: how many, and where each sample's begins."""

from collections.abc import Iterator

import numpy as np

from mypt.errors import DataError
from mypt.shards.fetching import BLOCK_TOKENS, POOL_BLOCKS
from mypt.streams.permutation import derive_key, permute


def window_count(tokens: int, block_size: int) -> int:
    """Training windows per epoch: (T - B) // B at any phase, one if only one fits.

    Raises DataError if the stream is shorter than one window of block_size + 1 tokens.
    """
    if tokens < block_size + 1:
        raise DataError(
            f"block_size {block_size} needs at least {block_size + 1} tokens, the split has {tokens}; "
            f"lower data.block_size to at most {max(1, tokens - 1)} or prepare more text"
        )
    return max(1, (tokens - block_size) // block_size)


def window_starts(
    samples: np.ndarray, tokens: int, block_size: int, seed: int, order: str = "full", first_epoch: int = 0
) -> np.ndarray:
    """First token of the window of each sample number; int64 (k,) -> int64 (k,).

    Sample g is position g % n of epoch first_epoch + g // n. Each epoch has its own permutation and its own phase (0 in
    epoch 0), so that no target comes twice in an epoch and another few tokens at the ends are left out each time.

    order: `full`, any window may follow any other; or `blocks`, for media that cannot seek: blocks of neighbouring
    windows in a permuted order, and windows shuffled within pools of POOL_BLOCKS of them (docs/reading.md).
    """
    if order not in ("full", "blocks"):
        raise DataError(f"order {order!r} is none of full, blocks")
    n = window_count(tokens, block_size)
    starts = np.empty(len(samples), np.int64)
    for epoch, rows in _groups(samples // n):
        positions = samples[rows] - epoch * n
        epoch += first_epoch
        key = derive_key(seed, epoch)
        windows = permute(positions, n, key) if order == "full" else _by_blocks(positions, n, block_size, key)
        starts[rows] = windows * block_size + phase(epoch, tokens, block_size, seed)
    return starts


def _by_blocks(positions: np.ndarray, n: int, block_size: int, key: int) -> np.ndarray:
    """The windows left over after the last whole block are shuffled into the last pool."""
    per_block = max(1, BLOCK_TOKENS // block_size)
    per_pool, whole_blocks = per_block * POOL_BLOCKS, n // per_block
    windows = np.empty_like(positions)
    for pool, rows in _groups(positions // per_pool):
        size = min(per_pool, n - pool * per_pool)
        place = pool * per_pool + permute(positions[rows] - pool * per_pool, size, derive_key(key, 0, pool))
        whole = (place < whole_blocks * per_block).nonzero()[0]
        block, inside = np.divmod(place[whole], per_block)
        place[whole] = permute(block, whole_blocks, key) * per_block + inside
        windows[rows] = place
    return windows


def _groups(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray | slice]]:
    """Each number that occurs, and the rows that have it; numbers: int64 (k,)."""
    if len(numbers) and numbers.min() == numbers.max():
        yield int(numbers[0]), slice(None)
        return
    for number in np.unique(numbers).tolist():
        yield number, (numbers == number).nonzero()[0]


def phase(epoch: int, tokens: int, block_size: int, seed: int) -> int:
    """Tokens skipped at the front in this epoch: 0 in the first, then keyed in range(min(B, T - B))."""
    if epoch == 0:
        return 0
    return derive_key(seed, epoch, 1) % min(block_size, tokens - block_size)


def evaluation_starts(tokens: int, block_size: int) -> np.ndarray:
    """First token of every evaluation window, int64 (n,): each token but the first is a target exactly once.

    The last window has fewer targets when T - 1 is no multiple of B.
    """
    if tokens < 2:
        raise DataError(f"an evaluation split needs at least 2 tokens, it has {tokens}; prepare more text")
    return np.arange(0, tokens - 1, block_size, dtype=np.int64)


def document_positions(inputs: np.ndarray, eos_token_id: int | np.ndarray) -> np.ndarray:
    """Positions that start at 0 again after each end-of-text token; (n, B) -> int64 (n, B). An id per row: (n, 1)."""
    index = np.arange(inputs.shape[1])
    begins = np.zeros(inputs.shape, bool)
    begins[:, 1:] = inputs[:, :-1] == eos_token_id
    return index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
