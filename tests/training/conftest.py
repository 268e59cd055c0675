"""Tests of training draw no curves, unless they are marked `plots`."""

import sys

import pytest


@pytest.fixture(autouse=True)
def without_plots(request, monkeypatch):
    """As without the `plots` extra, unless a test is marked `plots`: curves are a third of a tiny run."""
    if not request.node.get_closest_marker("plots"):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
