"""Pages that one step frees are there for the next one."""

import os

import pytest

from mypt.hardware.main_memory import keep_freed
from tests.processes import Command

# Page faults of 20 steps that each take and free 64 MiB in blocks of 1 MiB, after two to warm up. At first all that is
# freed goes back: what glibc does by itself depends on what lies at the end of its heap.
STEPS = """
import ctypes, resource, sys, torch
from mypt.hardware.main_memory import keep_freed
torch.set_num_threads(1)
ctypes.CDLL(None).mallopt(-3, 2**17)
kept = sys.argv[1] == "kept" and keep_freed()

def step():
    blocks = [torch.ones(2**18) for _ in range(64)]

step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def faults(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)

    def count(how: str, **environment) -> tuple[str, int]:
        process = Command([how], script=tmp_path / "steps.py", env=environment)
        assert process.wait() == 0, process.output()
        kept, number = process.output().split()
        return kept, int(number)

    return count


@pytest.mark.skipif(not keep_freed(), reason="this C library is not glibc, or its allocator is already set")
def test_the_steps_after_the_first_map_no_new_pages(faults):
    plain, kept = faults("plain"), faults("kept")
    pages = 20 * 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert plain[0] == "False" and plain[1] > 0.9 * pages
    assert kept[0] == "True" and kept[1] < pages / 100


def test_what_the_environment_says_counts(faults):
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
