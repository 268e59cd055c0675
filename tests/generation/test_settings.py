"""Values out of range are refused by name; samples differ in their seed alone."""

import math

import pytest

from mypt.errors import MyPTError
from mypt.generation.settings import PRESETS, GenerationSettings, preset_settings, sample_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("num_beams", 0),
        ("length_penalty", math.inf),
        ("min_new_tokens", -1),
        ("min_new_tokens", 201),
        ("stop", ("a", "")),
        ("overflow", "wrap"),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(MyPTError, match=f"{name} is .*; it must be"):
        GenerationSettings(**{name: value})


def test_values_at_the_edge_are_taken():
    GenerationSettings(max_new_tokens=1, temperature=1e-3, top_k=1, top_p=1.0, seed=0)


def test_without_a_seed_each_settings_has_its_own():
    assert len({GenerationSettings().seed for _ in range(20)}) == 20


def test_samples_count_up_from_the_seed():
    settings = GenerationSettings(temperature=0.5, seed=7)
    samples = sample_settings(settings, 3)
    assert samples[0] == settings
    assert [sample.seed for sample in samples] == [7, 8, 9]
    assert {sample.temperature for sample in samples} == {0.5}


def test_no_sample_and_equal_samples_are_refused():
    with pytest.raises(MyPTError, match="num_samples is 0"):
        sample_settings(GenerationSettings(), 0)
    with pytest.raises(MyPTError, match="would all be the same"):
        sample_settings(GenerationSettings(greedy=True), 2)
    assert len(sample_settings(GenerationSettings(greedy=True), 1)) == 1
    with pytest.raises(MyPTError, match="2 samples by beam search"):
        sample_settings(GenerationSettings(num_beams=2), 2)


def test_beams_do_not_slide():
    with pytest.raises(MyPTError, match="overflow is slide and num_beams above 1"):
        GenerationSettings(num_beams=2, overflow="slide")


def test_what_is_chosen_wins_over_the_preset():
    for name, values in PRESETS.items():
        settings = preset_settings(name, seed=1, max_new_tokens=5)
        assert {field: getattr(settings, field) for field in values} == values
        assert settings.max_new_tokens == 5
    assert preset_settings("code", temperature=1.5).temperature == 1.5
    assert preset_settings("code", temperature=1.5).top_p == PRESETS["code"]["top_p"]
    assert preset_settings(None, seed=1) == GenerationSettings(seed=1)
    with pytest.raises(MyPTError, match="no preset 'poem'; presets: creative, factual, code"):
        preset_settings("poem")
