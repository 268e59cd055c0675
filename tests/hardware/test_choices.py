"""Each choice from the facts that it depends on, and a reason in words for every one."""

import pytest

from mypt.hardware.choices import (
    EAGER_UP_TO,
    autocast_dtype,
    choose_attention,
    choose_compile,
    choose_dtype,
    choose_liger,
)
from mypt.hardware.machine import Machine

CPU = Machine("cpu", 2**34, "bfloat16", "it can")
AMPERE, VOLTA = Machine("gpu", 2**34, "bfloat16", "new"), Machine("gpu", 2**34, "float16", "old")


def test_autocast_is_what_the_machine_multiplies_unless_the_weights_forbid_it():
    assert choose_dtype(CPU) == ("bfloat16", "it can") and choose_dtype(VOLTA) == ("float16", "old")
    assert choose_dtype(VOLTA, "bfloat16").value == "float32", "a scaler needs float32 gradients"
    assert choose_dtype(AMPERE, "bfloat16").value == "bfloat16"


@pytest.mark.parametrize(
    ("training", "dtype"),
    [({}, None), ({"fp16": False}, None), ({"bf16": True}, "bfloat16"), ({"bf16": False}, "float32"),
     ({"fp16": True, "bf16": False}, "float16")],
)  # fmt: skip
def test_what_a_recipe_says_of_the_dtype(training, dtype):
    assert autocast_dtype(training) == dtype


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_short_sequences_take_plain_products_on_a_cpu(compute):
    limit = EAGER_UP_TO[compute]
    assert [c.value for c in choose_attention(CPU, limit, compute)] == ["eager", "sdpa"]
    assert [c.value for c in choose_attention(CPU, limit + 1, compute)] == ["sdpa", "eager"]


def test_on_a_gpu_documents_and_packages_decide():
    def first(**facts):
        return choose_attention(AMPERE, 1024, **({"compute": "bfloat16"} | facts))[0].value

    assert first() == "sdpa"
    assert first(flash=True) == "flash_attention_2"
    assert first(flash=True, compute="float32") == "sdpa", "its kernels take 16 bits"
    assert first(document_mask=True, flash=True) == "flex_attention", "flash attention does not see documents"


def test_compiling_is_for_long_runs_and_says_why_not():
    def choose(steps=4_000, machine=CPU, **facts):
        return choose_compile(machine, steps, **({"curriculum": False, "special": None, "obstacle": None} | facts))

    assert choose().value is choose(steps=1_000, machine=AMPERE).value is True
    refused = [choose(steps=10), choose(obstacle="no g++"), choose(curriculum=True), choose(special="adapters")]
    assert not any(choice.value for choice in refused)
    for choice, word in zip(refused, ("10 steps", "g++", "curriculum", "adapters"), strict=True):
        assert word in choice.reason


def test_liger_is_taken_where_it_has_kernels_for_the_model():
    known = frozenset({"llama"})
    assert choose_liger(AMPERE, "llama", known).value is True
    for choice, word in (
        (choose_liger(AMPERE, "mypt", known), "type mypt"),
        (choose_liger(AMPERE, "llama", None), "not installed"),
        (choose_liger(CPU, "llama", known), "GPUs"),
    ):
        assert choice.value is False and word in choice.reason
