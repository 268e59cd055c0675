"""scripts/parity.py finds both directions equal up to rounding, whatever is fed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "parity.py"


@pytest.mark.slow
def test_every_figure_is_rounding():
    done = subprocess.run([sys.executable, SCRIPT, "--no-compile", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["models"]
    assert {row["way"].split()[0] for row in rows} == {"import", "export"}
    assert len({row["model"] for row in rows}) == 6
    for row in rows:
        figures = [row[column] for column in ("forward", "left-padded", "chunked", "eager")]
        assert max(figures) <= 1e-5 * row["largest"], row
