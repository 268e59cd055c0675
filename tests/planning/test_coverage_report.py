"""The curve of a plan: through the run's own figures, and drawn with its bands."""

import pytest

from mypt.planning.coverage_report import coverage_curve, draw_coverage
from mypt.planning.scaling import effective_tokens
from mypt.planning.verdict import DataSource, assess


@pytest.mark.parametrize("start", [0, 400])
def test_the_curve_passes_through_the_run(start):
    sources = [DataSource("law", 100_000, 3, tokens_seen=200_000 if start else 0), DataSource("web", 10**7, 1)]
    seen = assess(sources, 1_000, 2_400, start)
    curve = coverage_curve(seen)
    at = next(index for index, steps in enumerate(curve.steps) if steps >= 2_400)
    assert curve.steps[0] == 0 and curve.steps[-1] == 3_600
    between = curve.coverage[at - 1], curve.coverage[at]
    assert between[0] <= seen.coverage <= between[1]
    for coverage, effective in zip(curve.coverage, curve.effective, strict=True):
        assert effective <= coverage
        assert coverage <= 1 or effective == pytest.approx(effective_tokens(coverage * 10**5, 10**5) / 10**5)


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    assert draw_coverage(assess([DataSource("law $1", 100_000)], 1_000, 2_000), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
