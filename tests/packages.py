"""Packages that only some tests need: skipped by name where they are not, and imported by the tests alone."""

from importlib.util import find_spec

import pytest


def needs(package: str, reason: str) -> pytest.MarkDecorator:
    """A mark of tests that import `package` themselves: each process collects every file and would import it, too."""
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)
