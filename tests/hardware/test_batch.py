"""A global batch in tokens: the same one on any number of processes, in passes that fit."""

import pytest

from mypt.errors import RecipeError
from mypt.hardware.batch import ENOUGH, divide_batch
from mypt.planning.fit import divisors


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("most", [1, 3, 5, 64])
def test_the_global_batch_is_the_same_for_every_layout(processes, most):
    batch = divide_batch(65_536, 512, processes, fits=lambda size, passes: size <= most)
    assert batch.micro_batch_size * batch.accumulation * processes * 512 == 65_536
    share = 128 // processes
    useful = [size for size in divisors(share) if size <= most and size * 512 <= ENOUGH["cpu"]]
    assert batch.micro_batch_size == max(useful), "the largest divisor that fits and is of use"


def test_the_nearest_number_of_sequences_is_said():
    batch = divide_batch(1_000, 64, fits=lambda size, passes: True)
    assert batch.micro_batch_size * batch.accumulation == 16  # 1000 / 64 = 15.6
    assert batch.words == "1,024 tokens per step, the nearest to 1,000, = 16 sequences of 64 x 1 pass"
    exact = divide_batch(1_024, 64, 2)  # of a model of unknown memory at most 8 sequences
    assert exact.words == "1,024 tokens per step = 8 sequences of 64 x 1 pass x 2 processes"
    assert divide_batch(10, 64)[:2] == (1, 1), "at least one"


def test_a_smaller_size_is_checked_itself():
    """The memory model is not monotone: 8 may fit and 4 not."""
    assert divide_batch(1_024, 64, fits=lambda size, passes: size in (1, 2, 8)).micro_batch_size == 8
    assert divide_batch(1_024, 64, fits=lambda size, passes: passes >= 8).micro_batch_size == 2


def test_given_sizes_win_and_the_rest_follows():
    assert divide_batch(4_096, 64, micro_batch_size=4)[:2] == (4, 16)
    assert divide_batch(4_096, 64, accumulation=4)[:2] == (16, 4)
    assert divide_batch(4_096, 64, 2, micro_batch_size=4, accumulation=8)[:2] == (4, 8)
    nothing_fits = divide_batch(4_096, 64, fits=lambda size, passes: False)
    assert nothing_fits[:2] == (1, 64) and "not even one" in nothing_fits.reason


@pytest.mark.parametrize(
    ("processes", "given", "words"),
    [
        (1, {"micro_batch_size": 3}, "per_device_train_batch_size 3 makes others"),
        (1, {"accumulation": 5}, "gradient_accumulation_steps 5 makes others"),
        (1, {"micro_batch_size": 4, "accumulation": 4}, "per_device_train_batch_size 4 and training.*4 make others"),
        (3, {}, "--data.tokens_per_step=4032 or --data.tokens_per_step=4224"),
        (128, {}, "give --data.tokens_per_step=8192, or"),
    ],
)
def test_a_contradiction_is_one_clear_error(processes, given, words):
    with pytest.raises(RecipeError, match=words):
        divide_batch(4_096, 64, processes, **given)


def test_more_than_enough_is_not_taken():
    sized = divide_batch(2**20, 64, fits=lambda size, passes: True)
    assert sized.micro_batch_size * 64 == ENOUGH["cpu"]
    assert divide_batch(2**20, 64, device="gpu", fits=lambda size, passes: True).micro_batch_size * 64 == ENOUGH["gpu"]
