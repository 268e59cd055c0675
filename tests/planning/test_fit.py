"""The largest micro-batch that fits, and the advice where a step does not fit."""

from dataclasses import replace

import pytest

from mypt.formatting import gibibytes
from mypt.models.presets import preset_dimensions
from mypt.planning.fit import divisors, knobs, largest_micro_batch, plan_memory
from mypt.planning.memory import evaluation_memory, training_memory
from mypt.planning.step import Step


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
        return plan_memory(dimensions, step, gibibytes * 2**30).advice

    assert advice(400).startswith("fits")
    assert (
        "batch size to 1: --training.per_device_train_batch_size=1 --training.gradient_accumulation_steps=8"
        in advice(17)
    )
    assert "--training.activation_checkpointing=true" in advice(17)
    assert "batch size" not in advice(13) and "checkpointing" in advice(13)
    assert "lora" in advice(8) and "over 2 devices (FSDP)" in advice(8)
    assert advice(1).endswith("; take a smaller model")


@pytest.mark.parametrize(("gibibytes", "ways"), [(1, 0), (2, 1), (3, 2), (8, 2)])
def test_what_is_advised_fits_and_keeps_the_global_batch(gibibytes, ways):
    dimensions = preset_dimensions("modern-small")
    step = Step(micro_batch_size=24, accumulation=2, block_size=1024, optimizer="adamw", compute_dtype="bfloat16")
    available, advised = gibibytes * 2**30, 0
    for words in knobs(dimensions, step, available):
        flags = dict(word.removeprefix("--training.").split("=") for word in words.split() if word.startswith("--"))
        if not flags:
            continue
        advised += 1
        sizes = int(flags["per_device_train_batch_size"]), int(flags["gradient_accumulation_steps"])
        assert sizes[0] * sizes[1] == 48 and flags.get("activation_checkpointing", "true") == "true"
        changed = replace(step, micro_batch_size=sizes[0], accumulation=sizes[1],
                          checkpointing="activation_checkpointing" in flags)  # fmt: skip
        assert training_memory(dimensions, changed)["total"] <= available
    assert advised == ways


def test_divisors():
    assert divisors(1) == [1] and divisors(13) == [1, 13]
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]


def test_gibibytes_in_three_digits():
    assert [gibibytes(size * 2**30 // 1000) for size in (12, 1530, 24_040)] == ["0.012", "1.53", "24.0"]


def test_a_model_with_frozen_layers_gets_advice_too():
    step = Step(micro_batch_size=1, block_size=128, optimizer="muon", freeze_layers=2, freeze_embeddings=True)
    assert knobs(preset_dimensions("modern-small"), step, 2**20) == ["take a smaller model"]
    assert "train adapters" in knobs(preset_dimensions("modern-small"), replace(step, freeze_layers=0), 2**30)[0]


def test_divisors_of_a_huge_number_up_to_what_fits():
    assert divisors(2**62, 16) == [1, 2, 4, 8, 16] and divisors(10**18 + 9, 1_000) == [1]
    huge = Step(micro_batch_size=2**62, block_size=1024)
    assert "lower the per-device batch size" in knobs(preset_dimensions("modern-nano"), huge, 2**34)[0]


@pytest.mark.parametrize(("compute", "numbers"), [("float32", 8), ("bfloat16", 10)])
def test_an_evaluation_has_no_gradients_and_the_logits_of_its_own_batch(compute, numbers):
    dimensions = preset_dimensions("modern-tiny")
    step = Step(micro_batch_size=1, block_size=1024, compute_dtype=compute, device="gpu")
    found = evaluation_memory(dimensions, step, 8)
    between = training_memory(dimensions, step)["phases"]["update"]
    assert (found["weights"], found["optimizer"]) == (between["weights"], between["optimizer"])
    assert found["logits"] == numbers * 8 * 1024 * dimensions["vocab_size"]
    assert found["allocator"] == 0 < evaluation_memory(dimensions, replace(step, device="cpu"), 8)["allocator"]
    assert found["total"] == sum(size for name, size in found.items() if name != "total")
    assert found["total"] > training_memory(dimensions, step)["total"], "8 windows beside a step of one"


def test_an_evaluation_that_does_not_fit_is_advised_a_smaller_batch():
    dimensions = preset_dimensions("modern-tiny")
    step = Step(micro_batch_size=1, block_size=1024, device="gpu")
    available = evaluation_memory(dimensions, step, 5)["total"]
    found = plan_memory(dimensions, step, available, evaluated=8)
    assert found.fits and "--training.per_device_eval_batch_size=5" in found.advice
    assert "per_device_eval_batch_size" not in plan_memory(dimensions, step, available, evaluated=5).advice
    assert plan_memory(dimensions, step, available).evaluation is None
