"""What people read: the figures of the plan in words, and nothing that contradicts them."""

import json
import math

import pytest

from mypt.formatting import duration, times
from mypt.models.presets import preset_dimensions
from mypt.planning.coverage import calculate_dataset_coverage
from mypt.planning.coverage_report import coverage_lines
from mypt.planning.plan import PlannedRun, plan
from mypt.planning.plan_report import plan_tables
from mypt.planning.verdict import DataSource, assess


def report(tokens, steps, *, sources=None, batch=32, start_step=0, parameters=None, **more):
    layout = {"batch": batch, "block": 256} | more
    sources = sources or [DataSource("data", tokens)]
    return "\n".join(coverage_lines(assess(sources, math.prod(layout.values()), steps, start_step, parameters), layout))


def test_full_passes_above_one_pass():
    text = report(1_000_000, 500)
    for part in ("1,000,000 tokens", "8,192 (32 batch x 256 block)", "4.10x", "4x + 9.6% of dataset", "good"):
        assert part in text, part
    for name, steps in (("Minimum (2x)", "245"), ("Optimal (3.5x)", "428"), ("Maximum (5x)", "611")):
        assert next(line for line in text.splitlines() if name in line).split()[-1] == steps
    assert "Suggestion" not in text


def test_a_progress_bar_below_one_pass():
    text = report(1_000_000, 100)
    bar = next(line for line in text.splitlines() if "Progress" in line)
    assert (bar.count("#"), bar.count("-"), "81.9%" in bar) == (40, 10, True)
    assert "0.82x" in text
    assert "warning" in text
    assert "at least 367 for 3x (now 100)" in text
    assert "56%" in text  # 1 - exp(-0.82), what drawing with replacement would reach


def test_the_product_names_every_factor_of_a_step():
    text = report(10**8, 10_000, accumulation=4, processes=2)
    assert "65,536 (32 batch x 256 block x 4 accumulation x 2 processes)" in text


def test_a_resume_says_where_it_starts_and_what_is_left():
    sources = [DataSource("data", 1_000_000, tokens_seen=4_096_000)]
    text = report(0, 1_000, sources=sources, start_step=500)
    assert "1,000 (from step 500: 500 left)" in text
    assert "4,096,000 more, 8,192,000 in all" in text
    assert "8.19x in all" in text
    assert "245 (already passed)" in text


def test_what_the_start_model_saw_is_told_beside_this_run():
    words = " ".join(report(0, 250, sources=[DataSource("data", 1_024_000, seen_before=3_584_000)]).split())
    assert "Coverage: 2.00x, and 3.50x before by the start model: 5.50x in all" in words
    assert "5.63M tokens (3.58M of them before this run) with repetition" in words
    assert "Minimum (2x): 0 (already passed)" in words and "Maximum (5x): 188" in words
    assert "high (note)" in words
    mixture = [DataSource("law", 1_000_000, 0.9), DataSource("wiki", 9_000_000, 0.1, seen_before=9_000_000)]
    (row,) = (line.split() for line in report(0, 500, sources=mixture).splitlines() if line.split()[:1] == ["wiki"])
    assert row[3:6] == ["0.05x", "+", "1.00x"] and row[-2:] == ["below", "optimal"], row


def test_a_mixture_has_one_row_per_source():
    sources = [
        DataSource("law", 1_000_000, weight=0.9),
        DataSource("wiki", 9_000_000, weight=0.1),
    ]
    text = report(0, 500, sources=sources)
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["source", "samples"])
    law, wiki = (line.split() for line in lines[start + 1 : start + 3])
    assert law[:4] == ["law", "90.0%", "1,000,000", "3.69x"] and law[-1] == "good"
    assert wiki[:4] == ["wiki", "10.0%", "9,000,000", "0.05x"] and wiki[-2:] == ["very", "low"]
    assert law[4:7] == ["3.47M", "fresh", "(94%)"]  # 1 + 15.39 (1 - exp(-2.686 / 15.39)) = 3.466 passes
    assert "3.69x of law" in text


def test_an_estimated_size_is_marked():
    text = report(0, 500, sources=[DataSource("data", 1_000_000, estimated=True)])
    assert "about 1,000,000 tokens (estimate)" in text
    assert "about 4.10x" in text


def test_a_step_larger_than_the_dataset_is_said():
    assert "one step views the data 1.64 times" in report(5_000, 10)


def test_a_loss_worse_than_guessing_is_not_shown():
    assert "Predicted loss" not in report(100_000, 50, parameters={"total": 10**9, "non_embedding": 9 * 10**8})
    assert "Predicted loss" in report(10**9, 10**5, parameters={"total": 10**8, "non_embedding": 9 * 10**7})


def test_a_name_makes_no_line():
    sources = [DataSource(name, 1_000_000, 0.5) for name in ("law\nVerdict: good", "wiki")]
    lines = report(0, 500, sources=sources).splitlines()
    assert not [line for line in lines if line.startswith("Verdict")]
    assert [line for line in lines if line.startswith(r"    law\nVerdict: good  ")]


def test_every_line_is_one_line_of_plain_text():
    lines = report(1_000_000_000, 130_000, parameters={"total": 11_000_000, "non_embedding": 9_000_000}).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize(
    ("coverage", "text"), [(4.096, "4.10x"), (0.9999, "0.99x"), (1.0, "1.00x"), (0.16384, "0.16x"), (0.00123, "0.001x")]
)
def test_coverage_is_never_rounded_up_to_a_pass(coverage, text):
    assert times(coverage) == text


def test_a_plan_joins_all_figures_and_is_json():
    result = plan(
        PlannedRun(
            batch_size=8,
            block_size=1024,
            accumulation=2,
            processes=2,
            steps=1_000,
            sources=[DataSource("data", 10_000_000)],
            dimensions=preset_dimensions("modern-tiny"),
            available=2**35,
            tokens_per_second=32_768,
        )
    )
    assert json.loads(json.dumps(result.as_dict())) == result.as_dict()
    cov = calculate_dataset_coverage(1_000, 32, 1024, 10_000_000)
    assert result.coverage.coverage == cov["coverage_ratio"]
    assert result.time.parts["steps"] == 1_000
    assert result.compute.flops == result.compute.flops_per_token * cov["total_tokens_viewed"]
    assert [title for title, _, _ in plan_tables(result)] == [
        "Parameters",
        "Memory to train (estimate)",
        "Memory to generate (estimate)",
        "Compute",
        "Time",
    ]
    for _, columns, rows in plan_tables(result):
        assert {len(row) for row in rows} == {len(columns)}


def test_a_plan_of_a_model_alone_says_how_much_data_it_wants():
    result = plan(PlannedRun(batch_size=8, block_size=1024, parameters=124_000_000))
    assert result.training.compute_optimal_tokens == 2_480_000_000
    assert {name for name, section in result.as_dict().items() if section} == {"training", "parameters", "checks"}


def test_durations_have_two_units():
    assert [duration(s) for s in (45, 200, 18_720, 792_000)] == ["45 s", "3 min 20 s", "5 h 12 min", "9 d 4 h"]


def test_a_plan_with_adapters_leaves_out_what_is_about_training_from_scratch():
    sources = [DataSource("data", 10**7)]
    given = {"batch_size": 8, "block_size": 256, "steps": 1_000, "sources": sources, "available": 2**34}
    dimensions = preset_dimensions("modern-nano")
    whole, lora = (plan(PlannedRun(dimensions=dimensions, **given, settings={"lora_r": r})) for r in (0, 8))
    adapters = lora.parameters["adapters"]
    assert lora.parameters["trained"] == adapters and lora.parameters["frozen"] == whole.parameters["total"]
    assert lora.coverage.adapters == adapters
    assert whole.coverage.scaling.tokens_per_parameter and whole.training.compute_optimal_tokens
    for name in ("tokens_per_parameter", "predicted_loss", "compute_optimal_tokens"):
        assert name in str(whole.as_dict()) and name not in str(lora.as_dict())
    assert lora.compute.flops < whole.compute.flops
    words = report(0, 1_000, sources=sources, batch=8, parameters=lora.parameters)
    assert "parameters of adapters are trained, " in words and "Tokens per parameter" not in words
