"""Cut a stream of T tokens into windows of B inputs and B targets: how many, and where each sample's begins."""

import numpy as np

from mypt.errors import DataError
from mypt.streams.permutation import derive_key, permute


def window_count(tokens: int, block_size: int) -> int:
    """Training windows per epoch: (T - B) // B at any phase, one if only one fits.

    Raises DataError if the stream is shorter than one window of block_size + 1 tokens.
    """
    if tokens < block_size + 1:
        raise DataError(
            f"block_size {block_size} needs at least {block_size + 1} tokens, the split has {tokens}; "
            "lower data.block_size or prepare more text"
        )
    return max(1, (tokens - block_size) // block_size)


def window_starts(samples: np.ndarray, tokens: int, block_size: int, seed: int) -> np.ndarray:
    """First token of the window of each sample number; int64 (k,) -> int64 (k,).

    Sample g is position g % n of epoch g // n. Each epoch has its own permutation and its own phase (0 in epoch 0),
    so that no target comes twice in an epoch and another few tokens at the ends are left out each time.
    """
    n = window_count(tokens, block_size)
    epochs, positions = np.divmod(samples, n)
    starts = np.empty(len(samples), np.int64)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        order = permute(positions[rows], n, derive_key(seed, epoch))
        starts[rows] = order * block_size + phase(epoch, tokens, block_size, seed)
    return starts


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
