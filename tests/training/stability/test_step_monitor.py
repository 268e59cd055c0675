"""One vector per step: its sums, and the order in which a late one tells."""

import math

import pytest
import torch

from mypt.training.stability.step_monitor import StepMonitor


def about(step: int) -> dict:
    return {"step": step, "samples": (step * 4, step * 4 + 3), "batches": []}


def test_a_step_is_the_sum_of_its_micro_batches():
    monitor = StepMonitor(1, late=False)
    for share in (0.5, 1.25):
        monitor.add(torch.tensor(share, dtype=torch.bfloat16))
    stats = monitor.step(torch.tensor(2.0), stop=False, **about(1))
    assert (stats.loss, stats.grad_norm, stats.stop, stats.finite, stats.samples) == (1.75, 2.0, False, True, (4, 7))
    monitor.add(torch.tensor(3.0))
    stats = monitor.step(None, stop=True, **about(2))
    assert (stats.loss, stats.grad_norm, stats.stop) == (3.0, 0.0, True), "nothing is left of the step before"
    assert monitor.flush() is None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_either_one_makes_a_step_unsound(loss, norm):
    monitor = StepMonitor(1, late=False)
    monitor.add(torch.tensor(loss))
    assert not monitor.step(torch.tensor(norm), stop=False, **about(1)).finite


def test_a_late_one_tells_of_the_step_before_and_the_last_when_asked():
    monitor, told = StepMonitor(1, late=True), []
    for step in (1, 2, 3):
        monitor.add(torch.tensor(float(step)))
        told.append(monitor.step(torch.tensor(0.0), stop=False, **about(step)))
    assert told[0] is None and [(stats.step, stats.loss) for stats in told[1:]] == [(1, 1.0), (2, 2.0)]
    assert monitor.flush().step == 3 and monitor.flush() is None
    monitor.add(torch.tensor(math.nan))
    monitor.step(torch.tensor(0.0), stop=False, **about(4))
    monitor.forget()
    assert monitor.flush() is None
