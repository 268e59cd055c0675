"""MyPT passes transformers' own tests; the script that runs them counts right."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

import mixins  # noqa: E402

REPORT = """<testsuites><testsuite>
<testcase classname="mixins.LlamaTest" name="test_a"/>
<testcase classname="mixins.LlamaTest" name="test_b"/>
<testcase classname="mixins.LlamaTest" name="test_c"><skipped message="no GPU"/></testcase>
<testcase classname="mixins.RotaryTest" name="test_a"/>
<testcase classname="mixins.RotaryTest" name="test_b"><skipped message="says so"/></testcase>
<testcase classname="mixins.RotaryTest" name="test_b"><failure message="1 != 2&#10;more"/></testcase>
<testcase classname="mixins.RotaryTest" name="test_c"><skipped message="no GPU"/></testcase>
<testcase classname="mixins.GroupedTest" name="test_a"><skipped message="no reason"/></testcase>
<testcase classname="mixins.GroupedTest" name="test_b"/>
<testcase classname="mixins.LearnedTest" name="test_b"/>
</testsuite></testsuites>"""


def test_outcomes_are_counted_and_every_test_behind_llama_is_named():
    results = mixins.read(ElementTree.ElementTree(ElementTree.fromstring(REPORT)))
    counts = [line.split() for line in mixins.table(results)]
    assert counts[1:] == [
        ["Rotary", "1", "1", "1"],
        ["Grouped", "1", "1", "0"],
        ["Learned", "1", "0", "0"],
        ["Llama", "2", "1", "0"],
    ]
    assert [" ".join(line.split()) for line in mixins.differences(results)] == [
        "skipped Grouped test_a: no reason",
        "lacking Learned test_a: the test class has no such test",
        "failed Rotary test_b: 1 != 2",
    ]


@pytest.mark.slow
def test_mypt_passes_the_tests_of_transformers():
    checkout = os.environ.get("TRANSFORMERS_TESTS")
    if not checkout:
        pytest.skip("TRANSFORMERS_TESTS names no checkout of transformers; docs/model.md says how to get one")
    done = subprocess.run([sys.executable, ROOT / "scripts/mixins.py", checkout], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
