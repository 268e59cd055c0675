"""The laws against the papers' own numbers and their limits."""

import math

import pytest

from mypt.models.presets import preset_dimensions
from mypt.planning.parameters import count_parameters
from mypt.planning.scaling import (
    dataset_hint,
    effective_parameters,
    effective_tokens,
    flops_per_token,
    model_hint,
    predicted_loss,
)


@pytest.mark.parametrize(("epochs", "worth"), [(0.3, 100), (1, 100), (4, 93), (10, 78), (40, 38)])
def test_repeated_tokens_are_worth_less(epochs, worth):
    assert round(100 * effective_tokens(epochs * 1e6, 1e6) / (epochs * 1e6)) == worth


def test_repetition_never_gives_more_than_sixteen_datasets():
    assert effective_tokens(1e15, 1e6) == pytest.approx(16.39e6)


def test_about_twenty_tokens_per_parameter_are_optimal_in_the_law_itself():
    """The split of a compute budget 6 N D that minimises the law, found by search, is where N' starts to fall short."""
    budget = 6e18

    def loss(parameters):
        tokens = budget / (6 * parameters)
        return 520.6 / parameters**0.3527 + 1487.7 / tokens**0.3527

    best = min((10 ** (6 + i / 2_000) for i in range(6_000)), key=loss)
    tokens = budget / (6 * best)
    assert tokens / best == pytest.approx(19.6, rel=0.01)
    assert effective_parameters(0.98 * best, tokens) == 0.98 * best
    assert effective_parameters(1.1 * best, tokens) < 1.1 * best


def test_one_pass_of_a_small_enough_model_is_the_plain_law():
    parameters, tokens = 1e8, 1e10
    plain = math.exp(0.6255) + math.exp(6.255) / parameters**0.3527 + math.exp(7.305) / tokens**0.3527
    assert predicted_loss(parameters, tokens, 10 * tokens) == pytest.approx(plain)


def test_parameters_beyond_the_data_are_worth_at_most_six_times_the_optimum():
    """One parameter per (B / A)^(1 / 0.3527) = e^(1.05 / 0.3527) = 19.63 tokens, and 1 + 5.31 times as many at most."""
    assert effective_parameters(1e15, 19.63e9) == pytest.approx(6.31e9, rel=1e-3)
    limit = math.exp(0.6255) + math.exp(6.255) / 6.31e9**0.3527 + math.exp(7.305) / 19.63e9**0.3527
    assert predicted_loss(1e15, 19.63e9, 19.63e9) == pytest.approx(limit, rel=1e-4)


def test_fresh_data_is_never_worse_than_repeated():
    losses = [predicted_loss(1e9, 1e11, 1e11 / epochs) for epochs in (1, 2, 4, 16, 64)]
    assert losses == sorted(losses)
    assert len(set(losses)) == 5


def test_flops_by_hand():
    dimensions = preset_dimensions("150M_1024")
    multiplying = count_parameters(dimensions)["non_embedding"] + 50_304 * 768
    assert flops_per_token(dimensions, 1_024) == 6 * multiplying + 12 * 16 * 768 * 1_024
    untied = dimensions | {"tie_word_embeddings": False}
    assert flops_per_token(untied, 1_024) == flops_per_token(dimensions, 1_024)


def test_size_hints_of_the_guide():
    sizes = (9_999_999, 10_000_000, 99_999_999, 100_000_000)
    assert [dataset_hint(size) for size in sizes] == [(3, 5), (2, 4), (2, 4), (1, 3)]
    assert [model_hint(size) for size in (11e6, 40e6, 150e6, 1e9)] == [(3, 5), (2, 4), (1, 3), (1, 3)]
