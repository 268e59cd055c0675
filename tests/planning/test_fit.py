"""The largest micro-batch that fits, and the advice where a step does not fit."""

from dataclasses import replace

import pytest

from mypt.models.presets import preset_dimensions
from mypt.planning.fit import gibibytes, largest_micro_batch, plan_memory
from mypt.planning.memory import Step, training_memory


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_largest_micro_batch_fits_and_one_more_does_not(checkpointing, device):
    dimensions = preset_dimensions("modern-small")
    step = Step(micro_batch_size=1, block_size=1024, optimizer="muon", checkpointing=checkpointing,
                compute_dtype="bfloat16", device=device)  # fmt: skip
    for available in (2**32, 2**33, 2**35 + 1):
        largest = largest_micro_batch(dimensions, available, step)
        assert largest >= 1
        assert training_memory(dimensions, replace(step, micro_batch_size=largest))["total"] <= available
        assert training_memory(dimensions, replace(step, micro_batch_size=largest + 1))["total"] > available
    assert largest_micro_batch(dimensions, 10**6, step) == 0


def test_advice_names_the_knob_that_helps():
    dimensions = preset_dimensions("750M_1024")
    step = Step(micro_batch_size=8, block_size=1024, device="gpu")

    def advice(gibibytes):
        return plan_memory(dimensions, step, gibibytes * 2**30)["advice"]

    assert advice(400).startswith("fits")
    assert "batch size to 1" in advice(15)
    assert "checkpointing" in advice(13)
    assert "FSDP" in advice(8)


def test_gibibytes_in_three_digits():
    assert [gibibytes(size * 2**30 // 1000) for size in (12, 1530, 24_040)] == ["0.012", "1.53", "24.0"]
