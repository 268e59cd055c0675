"""One vector per step: its sums, and the order in which a late one tells."""

import math

import pytest
import torch

from mypt.training.stability.step_monitor import Pulse


def about(step: int) -> dict:
    return {"step": step, "samples": (step * 4, step * 4 + 3), "batches": []}


def test_a_step_is_the_sum_of_its_micro_batches():
    pulse = Pulse(1, late=False)
    for share in (0.5, 1.25):
        pulse.add(torch.tensor(share, dtype=torch.bfloat16))
    beat = pulse.beat(torch.tensor(2.0), stop=False, **about(1))
    assert (beat.loss, beat.grad_norm, beat.stop, beat.finite, beat.samples) == (1.75, 2.0, False, True, (4, 7))
    pulse.add(torch.tensor(3.0))
    beat = pulse.beat(None, stop=True, **about(2))
    assert (beat.loss, beat.grad_norm, beat.stop) == (3.0, 0.0, True), "nothing is left of the step before"
    assert pulse.flush() is None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_either_one_makes_a_step_unsound(loss, norm):
    pulse = Pulse(1, late=False)
    pulse.add(torch.tensor(loss))
    assert not pulse.beat(torch.tensor(norm), stop=False, **about(1)).finite


def test_a_late_one_tells_of_the_step_before_and_the_last_when_asked():
    pulse, told = Pulse(1, late=True), []
    for step in (1, 2, 3):
        pulse.add(torch.tensor(float(step)))
        told.append(pulse.beat(torch.tensor(0.0), stop=False, **about(step)))
    assert told[0] is None and [(beat.step, beat.loss) for beat in told[1:]] == [(1, 1.0), (2, 2.0)]
    assert pulse.flush().step == 3 and pulse.flush() is None
    pulse.add(torch.tensor(math.nan))
    pulse.beat(torch.tensor(0.0), stop=False, **about(4))
    pulse.forget()
    assert pulse.flush() is None
