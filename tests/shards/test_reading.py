"""The reading policy follows from size, file system and order, and says why."""

import os
import shutil
import subprocess

import pytest

from mypt.errors import DataError
from mypt.shards import fetching
from mypt.shards.fetching import RAM_LIMIT, available_memory, choose_reading, file_system

LARGE = 20_000_000_000


def test_a_small_split_is_read_into_memory_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "file_system", lambda path: "nfs4")
    assert choose_reading(tmp_path, 2_500_000) == ("ram", "2.5 MB on nfs4, read into memory, checksums verified")


@pytest.mark.parametrize(
    ("system", "blocks", "chosen", "how"),
    [
        ("ext4", False, "readahead", "20.0 GB on ext4, read ahead (random advice)"),
        ("xfs", True, "pread", "20.0 GB on xfs, read in whole blocks"),
        ("nfs4", False, "pread", "20.0 GB on nfs4, read call by call"),
        ("fuse.sshfs", False, "pread", "20.0 GB on fuse.sshfs, read call by call"),
        ("fuseblk", False, "readahead", "20.0 GB on fuseblk, read ahead (random advice)"),
        ("an unknown file system", False, "readahead", "20.0 GB on an unknown file system, read ahead (random advice)"),
    ],
)
def test_a_large_one_by_its_file_system_and_order(tmp_path, monkeypatch, system, blocks, chosen, how):
    monkeypatch.setattr(fetching, "file_system", lambda path: system)
    assert choose_reading(tmp_path, LARGE, blocks=blocks) == (chosen, how)


def test_memory_bounds_what_is_read_into_it(tmp_path, monkeypatch):
    assert choose_reading(tmp_path, RAM_LIMIT + 1)[0] != "ram"
    monkeypatch.setattr(fetching, "available_memory", lambda: 16_000)
    assert choose_reading(tmp_path, 1_000)[0] == "ram"
    assert choose_reading(tmp_path, 1_001)[0] != "ram"


@pytest.mark.parametrize("asked", ["ram", "readahead", "pread"])
def test_what_is_asked_for_is_taken(tmp_path, asked):
    chosen, why = choose_reading(tmp_path, 10, asked)
    assert chosen == asked and why.startswith("10 bytes on ") and why.endswith(", as asked")


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(DataError, match="reading 'mmap' is none of auto, ram, readahead, pread"):
        choose_reading(tmp_path, 10, "mmap")


@pytest.mark.skipif(not shutil.which("findmnt"), reason="needs findmnt, of util-linux")
def test_file_systems_as_the_system_itself_names_them(tmp_path):
    for path in ("/proc/self", tmp_path):
        known = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", path], capture_output=True, text=True).stdout.strip()
        assert file_system(path) == known
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert file_system(link) == "proc"


def test_memory_is_a_part_of_what_the_machine_has():
    assert 0 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_more_files_than_a_process_may_map_are_read_call_by_call(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "file_system", lambda path: "ext4")
    assert choose_reading(tmp_path, LARGE, files=5_000)[0] == "readahead"
    assert choose_reading(tmp_path, LARGE, files=10**9)[0] == "pread"
    assert choose_reading(tmp_path, LARGE, "readahead", files=10**9)[0] == "readahead"  # as asked
