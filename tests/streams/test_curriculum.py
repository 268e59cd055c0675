"""Stages by hand; a cut micro-batch is the same tokens in the same order."""

import pytest
import torch

from mypt.errors import DataError
from mypt.streams.curriculum import cut, length_at, stages


def test_stages_by_hand():
    """128 -> 1024 is three doublings: 300 steps of 8 samples are 100 for each of 128, 256 and 512."""
    assert stages(128, 300, 1024, samples_per_step=8) == [(0, 128), (800, 256), (1600, 512), (2400, 1024)]
    assert stages(64, 1, 128, samples_per_step=4) == [(0, 64), (4, 128)]
    assert stages(16, 10, 128, samples_per_step=1) == [(0, 16), (3, 32), (6, 64), (10, 128)]


def test_the_length_of_a_sample():
    plan = stages(128, 300, 1024, samples_per_step=8)
    assert [length_at(plan, sample) for sample in (0, 799, 800, 2399, 2400, 10**9)] == [128, 128, 256, 512, 1024, 1024]


@pytest.mark.parametrize(
    ("start", "steps", "block", "words"),
    [
        (100, 300, 1024, "start_length is 100, expected block_size 1024 divided by 2, 4, 8"),
        (341, 300, 1023, "divided by 2, 4, 8"),
        (1024, 300, 1024, "divided by 2, 4, 8"),
        (2048, 300, 1024, "divided by 2, 4, 8"),
        (128, 2, 1024, "steps is 2, expected 3 or more"),
    ],
)
def test_what_makes_no_stages_is_refused(start, steps, block, words):
    with pytest.raises(DataError, match=words):
        stages(start, steps, block, samples_per_step=1)


def test_a_cut_keeps_tokens_and_order_and_begins_positions_anew():
    ids = torch.arange(16).view(2, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]])  # documents begin at 6 and at 2
    rows = cut({"input_ids": ids, "shift_labels": ids + 1, "position_ids": positions}, 4)
    assert rows["input_ids"].shape == (4, 4)
    assert torch.equal(rows["input_ids"].flatten(), ids.flatten())
    assert torch.equal(rows["shift_labels"], rows["input_ids"] + 1)
    assert rows["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 2, 3]]
