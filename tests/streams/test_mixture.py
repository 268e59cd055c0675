"""Weights become exact counts, evenly spread, and every source's own samples run on without gap or repeat."""

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.streams.mixture import PERIOD, Mixture


def test_counts_are_exact_in_every_period():
    source, _ = Mixture([0.9, 0.1]).locate(np.arange(100_000))
    assert np.bincount(source).tolist() == [90_000, 10_000]


@pytest.mark.parametrize("weights", [[0.9, 0.1], [3, 1], [1.0], [0.333, 0.667], [5, 3, 2], [1, 1, 1, 1]])
def test_local_samples_are_contiguous_and_distinct(weights):
    mixture = Mixture(weights)
    source, local = mixture.locate(np.arange(3 * PERIOD + 123))
    for index in range(len(weights)):
        mine = local[source == index]
        assert np.array_equal(mine, np.arange(len(mine)))
        assert mixture.drawn(3 * PERIOD + 123)[index] == len(mine)


@pytest.mark.parametrize("weights", [[0.9, 0.1], [0.7, 0.3], [0.501, 0.499]])
def test_every_prefix_is_within_half_a_sample_of_its_share(weights):
    mixture = Mixture(weights)
    source, _ = mixture.locate(np.arange(PERIOD))
    given = np.cumsum(source == 1)
    assert np.abs(given - mixture.shares[1] * np.arange(1, PERIOD + 1)).max() <= 0.5 + 1e-9


def test_the_scale_of_the_weights_does_not_matter():
    samples = np.arange(2_000)
    for left, right in zip(Mixture([9, 1]).locate(samples), Mixture([0.9, 0.1]).locate(samples), strict=True):
        assert np.array_equal(left, right)


def test_a_weight_that_rounds_to_nothing_is_refused():
    with pytest.raises(DataError, match="source number 2"):
        Mixture([1.0, 0.0001])


def test_drawn_counts_agree_with_locate_at_any_sample():
    mixture = Mixture([5, 3, 2])
    source, _ = mixture.locate(np.arange(2_500))
    for sample in (0, 1, 999, 1_000, 1_001, 2_499):
        assert mixture.drawn(sample) == np.bincount(source[:sample], minlength=3).tolist()
