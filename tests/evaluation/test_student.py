"""Quantiles and probabilities of Student's t are those of printed tables."""

import pytest

from mypt.evaluation.student import student_probability, student_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "t"),
    [
        (0.975, 1, 12.7062),
        (0.975, 4, 2.77645),
        (0.975, 9, 2.26216),
        (0.975, 10, 2.22814),
        (0.975, 19, 2.09302),
        (0.995, 30, 2.75000),
        (0.975, 99, 1.98422),
        (0.975, 10_000, 1.96020),
        (0.975, 1_000_000, 1.95997),
        (0.5, 3, 0.0),
    ],
)
def test_they_are_those_of_printed_tables(probability, degrees, t):
    assert student_quantile(probability, degrees) == pytest.approx(t, rel=3e-5, abs=5e-5)
    assert student_probability(t, degrees) == pytest.approx(probability, abs=1e-5)
