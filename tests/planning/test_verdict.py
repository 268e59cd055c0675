"""The joined verdict: size hints decide, tokens per parameter excuse, a mixture is judged by its main source."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest

from mypt.errors import MyPTError
from mypt.formatting import figure, short
from mypt.planning.coverage import calculate_dataset_coverage
from mypt.planning.verdict import DataSource, assess, judge, judge_data

STEP = 8_192


def one(tokens, **more):
    return [DataSource("data", tokens, **more)]


@pytest.mark.parametrize(
    ("tokens", "coverage", "parameters", "level", "says"),
    [
        (1_000_000, 4.0, None, "good", "3-5x"),
        (1_000_000, 0.8, None, "warning", "too few"),
        (1_000_000, 2.5, None, "note", "the band is good, but 3-5x"),
        (1_000_000, 8.0, None, "note", "too many"),
        (1_000_000, 40.0, None, "warning", "too many"),
        (1_000_000_000, 1.01, None, "good", "although the band is below optimal"),
        (1_000_000_000, 4.0, None, "note", "the band is good, but 1-3x"),
        (1_000_000_000, 0.1, 5_000_000, "good", "enough for this model"),
        (1_000_000_000, 0.1, 500_000_000, "warning", "too few"),
        (5_000_000, 1.5, 350_000_000, "note", "although the band is below optimal"),
        (50_000_000, 3.0, 350_000_000, "note", "large for this data"),
        (1_000_000_000, 4.5, 11_000_000, "good", "3-5x for 11M parameters"),
    ],
)
def test_verdicts(tokens, coverage, parameters, level, says):
    viewed = int(tokens * coverage)
    each = viewed / parameters if parameters else None
    verdict = judge(judge_data(viewed, tokens, STEP, parameters, each), each)
    assert (verdict.level, says in verdict.sentence) == (level, True), verdict


@pytest.mark.parametrize("tokens", [123_457, 10_000_001, 999_999_999])
def test_the_suggested_steps_earn_a_good_verdict_and_are_the_nearest(tokens):
    for steps, nearest in ((1, -1), (10**6, 1)):
        suggestion = assess(one(tokens), STEP, steps).suggestion
        suggested = next(int(word.replace(",", "")) for word in suggestion.split() if word.replace(",", "").isdigit())
        assert assess(one(tokens), STEP, suggested).verdict.level == "good"
        assert assess(one(tokens), STEP, suggested + nearest).verdict.level != "good"


def test_a_single_source_is_judged_as_the_calculator_does():
    for tokens, steps in ((1_000_000, 500), (1_234_567, 754), (500_000_000, 10_000), (5_000, 1)):
        seen = assess(one(tokens), STEP, steps)
        cov = calculate_dataset_coverage(steps, 32, 256, tokens)
        assert (seen.coverage, seen.band) == (cov["coverage_ratio"], cov["band"])
        names = ("min", "optimal", "max")
        assert list(seen.recommended_steps.values()) == [cov[f"recommended_{name}_iters"] for name in names]


def test_a_resume_with_the_same_settings_changes_no_figure():
    fresh = assess(one(1_000_000), STEP, 1_000)
    resumed = assess(one(1_000_000, tokens_seen=500 * STEP), STEP, 1_000, start_step=500)
    for name in ("coverage", "band", "recommended_steps", "verdict", "suggestion", "scaling"):
        assert getattr(resumed, name) == getattr(fresh, name), name


def test_a_resume_counts_what_was_really_seen():
    """Half as many tokens per step in the first half: the ledger knows, arithmetic on the new settings would not."""
    seen = assess(one(1_000_000, tokens_seen=500 * STEP // 2), STEP, 1_000, start_step=500)
    assert seen.coverage == pytest.approx((250 + 500) * STEP / 1_000_000)
    needed = Fraction(3_500_000 - 250 * STEP, STEP)
    assert seen.recommended_steps["3.5x"] == 500 + -(-needed.numerator // needed.denominator)


def test_what_the_start_model_saw_counts_in_the_verdict_and_not_in_the_coverage_of_this_run():
    """3x before and 2x now: the band, the worth, the steps and the verdict are those of 5x in one run."""
    tokens = 100 * STEP
    again, once = assess(one(tokens, seen_before=3 * tokens), STEP, 200), assess(one(tokens), STEP, 500)
    assert (again.coverage, again.tokens_viewed, again.sources[0].seen_before) == (2, 2 * tokens, 3 * tokens)
    assert (again.band, again.verdict, again.scaling) == (once.band, once.verdict, once.scaling)
    assert again.scaling.effective_tokens == round(tokens * (1 + 15.39 * -math.expm1(-4 / 15.39)))
    assert again.recommended_steps == {"2x": 0, "3.5x": 50, "5x": 200}
    assert "lower training.max_steps to 200 for 5x" in assess(one(tokens, seen_before=3 * tokens), STEP, 900).suggestion
    assert assess(one(tokens, seen_before=9 * tokens), STEP, 200).suggestion == "train on other data, or add some"


def test_other_sources_that_the_start_model_saw_leave_the_main_one_as_it_is():
    sources = [DataSource("law", 10**6, 3), DataSource("web", 10**6, 1)]
    before = assess([sources[0], replace(sources[1], seen_before=3 * 10**6)], STEP, 300)
    fresh = assess(sources, STEP, 300)
    assert (before.band, before.verdict, before.recommended_steps) == (
        fresh.band,
        fresh.verdict,
        fresh.recommended_steps,
    )
    assert before.sources[1].band != fresh.sources[1].band
    assert before.scaling.tokens_viewed == fresh.scaling.tokens_viewed + 3 * 10**6


def test_a_mixture_counts_each_source_by_its_share():
    sources = [DataSource("general", 4_000_000, weight=1), DataSource("law", 500_000, weight=3)]
    seen = assess(sources, 1_000, 2_000)
    assert [source.tokens_viewed for source in seen.sources] == [500_000, 1_500_000]
    assert [source.coverage for source in seen.sources] == [0.125, 3.0]
    assert (seen.main, seen.coverage, seen.verdict.level) == ("law", 3.0, "good")
    assert seen.recommended_steps["2x"] == 1_334  # 1,000,000 tokens of law at 750 a step
    assert seen.scaling.effective_tokens < seen.scaling.tokens_viewed == 2_000_000


def test_only_tokens_that_are_seen_count_as_unique():
    def loss(size_of_the_rest):
        sources = [DataSource("law", 10**8, weight=3), DataSource("web", size_of_the_rest, weight=1)]
        return assess(sources, 10**5, 4_000, parameters={"total": 10**9}).scaling.predicted_loss

    assert loss(10**8) == loss(10**11) != loss(10**7)


def test_bad_input_is_refused():
    for arguments in (([], STEP, 10), (one(0), STEP, 10), (one(10), STEP, 0), (one(10), STEP, 10, 11)):
        with pytest.raises(MyPTError):
            assess(*arguments)


def test_counts_in_words():
    assert [short(n) for n in (950, 12_345, 999_999, 1_000_000_000, 1.234e9)] == ["950", "12.3k", "1M", "1B", "1.23B"]
    assert [figure(n) for n in (0.01234, 19.96, 123.4, 12_345.6)] == ["0.0123", "20", "123", "12,346"]
