"""Memory that the system grants this process: limits of control groups and of the shell count."""

import subprocess
import sys

import pytest

from mypt.hardware.main_memory import _group_limits, main_memory

MIB = 2**20


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.mark.parametrize("path", ["/job/step", "/job", "/"])
def test_version_2_counts_the_limits_above_and_gives_the_cache_back(tmp_path, path):
    groups, membership = tmp_path / "cgroup", tmp_path / "membership"
    group(groups / "job", memory__max=800 * MIB, memory__current=500 * MIB, memory__stat=f"anon 1\ninactive_file {MIB}")
    group(groups / "job" / "step", memory__max="max", memory__current=300 * MIB)
    membership.write_text(f"0::{path}\n")
    expected = [(800 * MIB, 499 * MIB)] if path != "/" else []
    assert _group_limits(membership, groups) == expected


def test_version_1_has_a_folder_of_its_own(tmp_path):
    groups, membership = tmp_path / "cgroup", tmp_path / "membership"
    group(groups / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=MIB)
    group(groups / "memory" / "a", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=16 * MIB)
    membership.write_text("5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n")
    assert _group_limits(membership, groups) == [(64 * MIB, 16 * MIB)]
    assert _group_limits(tmp_path / "none", groups) == []


def test_a_limit_of_the_shell_is_what_is_free():
    """`ulimit -v`: the address space that is left, in a process of its own."""
    lines = (
        "import resource, os",
        "from mypt.hardware.main_memory import main_memory",
        "used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')",
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)",
        "print(main_memory()[1])",
    )
    printed = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert 90 * MIB < int(printed.stdout) <= 100 * MIB < main_memory()[1]
