"""Shorter sequences early in training: a micro-batch cut into more, shorter rows of the same tokens in the same order.

After Li, Zhang & He 2022 (2108.06084): short sequences first are cheaper and steadier.
"""

from bisect import bisect_right

import torch

from mypt.errors import DataError


def stages(start_length: int, steps: int, block_size: int, samples_per_step: int) -> list[tuple[int, int]]:
    """[(first sample, sequence length), ...]: doubled in equal stages over `steps` optimizer steps, then block_size.

    Raises DataError unless start_length is block_size divided by 2, 4, 8, ... and there is a step for every stage.
    """
    times, rest = divmod(block_size, start_length)
    doublings = times.bit_length() - 1
    if rest or times < 2 or times != 2**doublings:
        raise DataError(
            f"data.curriculum.start_length is {start_length}, expected block_size {block_size} divided by 2, 4, 8, ..."
        )
    if steps < doublings:
        raise DataError(
            f"data.curriculum.steps is {steps}, expected {doublings} or more: one for each length from {start_length} "
            f"to {block_size // 2}"
        )
    firsts = [index * steps // doublings * samples_per_step for index in range(doublings + 1)]
    return [(first, start_length << index) for index, first in enumerate(firsts)]


def length_at(stages: list[tuple[int, int]], sample: int) -> int:
    """The sequence length of a micro-batch that begins with this sample."""
    return stages[bisect_right(stages, sample, key=lambda stage: stage[0]) - 1][1]


def cut(batch: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """(m, B) -> (m * B / length, length): the same tokens in the same order; positions start at 0 in each row."""
    rows = {name: tensor.view(-1, length) for name, tensor in batch.items()}
    if "position_ids" in rows:
        rows["position_ids"] = rows["position_ids"].minimum(torch.arange(length))
    return rows
