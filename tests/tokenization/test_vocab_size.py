"""The automatic vocabulary against the paper's law and the bounds."""

import pytest

from mypt.errors import TokenizerError
from mypt.tokenization.train import choose_vocab_size, optimal_vocab_size


def test_the_law_by_hand():
    assert optimal_vocab_size(33e6, 512) == pytest.approx(3.146e6 / 512)
    # ten times the parameters: 10^0.835 = 6.839 times V x d
    assert optimal_vocab_size(330e6, 1024) == pytest.approx(6.8391 * 3.146e6 / 1024, rel=1e-4)


def test_a_gigabyte_by_hand():
    # 250M tokens x 3.5 / 20 = 43.75M parameters; width (43.75M x 64 / 12)^(1/3) = 615.7; V = 3.146M x 1.2655 / 615.7
    choice = choose_vocab_size(10**9)
    assert choice.size == 6464
    assert choice.size % 64 == 0
    assert "used about 38,676 times" in choice.reasons[-1]  # 250M / 6464


@pytest.mark.parametrize(("text_bytes", "size"), [(0, 5000), (10**6, 5000), (10**14, 50_000)])
def test_bounds_win(text_bytes, size):
    choice = choose_vocab_size(text_bytes)
    assert choice.size == size
    assert f"bound of {size:,}" in choice.reasons[-2]


def test_contradicting_bounds():
    with pytest.raises(TokenizerError, match="min_vocab_size 10 and max_vocab_size 5"):
        choose_vocab_size(1, 10, 5)
