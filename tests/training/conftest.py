"""Tests of training draw no curves and write no report, unless they are marked `plots`."""

import pytest

from tests.processes import leave_out_pictures


@pytest.fixture(autouse=True)
def without_plots(request, monkeypatch):
    """As without the `plots` extra, unless a test is marked `plots`: curves are a third of a tiny run."""
    if not request.node.get_closest_marker("plots"):
        leave_out_pictures(monkeypatch)
