"""The cache of fetched folders: each fetched once, below its limit, never one that is in use."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mypt.errors import DataError
from mypt.remote import cache
from mypt.remote.cache import cached_folder, use_cache


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_held", {})
    use_cache(str(tmp_path / "cache"), 10_000 / 1e9)
    yield tmp_path / "cache"
    use_cache(None)


def fetch(digest: str, size: int, calls: list | None = None) -> Path:
    def fill(folder: Path) -> None:
        if calls is not None:
            calls.append(digest)
        (folder / "shard").write_bytes(bytes(size))

    return cached_folder("s3://b/data", "data", digest, size, fill)


def let_go() -> None:
    """As if the process had ended."""
    for lock in cache._held.values():
        lock.close()
    cache._held.clear()


def test_a_folder_is_fetched_once(root):
    calls = []
    assert fetch("aa", 100, calls) == root / "aa" / "data" == fetch("aa", 100, calls)
    let_go()
    assert (fetch("aa", 100, calls) / "shard").stat().st_size == 100 and calls == ["aa"]


def test_the_longest_unused_makes_room(root):
    for digest in ("aa", "bb", "cc"):
        fetch(digest, 3_000)
        time.sleep(0.01)
    let_go()
    fetch("aa", 3_000)  # used again
    let_go()
    fetch("dd", 5_000)
    assert sorted(path.parent.name for path in root.glob("*/data")) == ["aa", "dd"]


def test_what_is_in_use_stays_and_too_much_is_refused(root):
    fetch("aa", 8_000)
    with pytest.raises(DataError, match="other runs use 8e-06; raise --cache-limit"):
        fetch("bb", 3_000)
    with pytest.raises(DataError, match="and the cache may hold 1e-05 GB; raise --cache-limit"):
        fetch("cc", 10_001)
    assert [path.parent.name for path in root.glob("*/data")] == ["aa"]
    other = (
        "import sys; from pathlib import Path; from mypt.remote.cache import *; use_cache(sys.argv[1], 1e-5)\n"
        "cached_folder('s3://b/x', 'data', 'bb', 3000, lambda folder: None)"
    )
    done = subprocess.run([sys.executable, "-c", other, str(root)], capture_output=True, text=True)
    assert done.returncode != 0 and "other runs use" in done.stderr  # of another process, too
    let_go()
    assert subprocess.run([sys.executable, "-c", other, str(root)]).returncode == 0
    assert [path.parent.name for path in root.glob("*/data")] == ["bb"]


def test_an_entry_whose_removal_was_killed_is_fetched_again(root, monkeypatch):
    fetch("aa", 8_000)
    let_go()
    with monkeypatch.context() as patch:  # killed before the first file goes
        patch.setattr(cache.shutil, "rmtree", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch("bb", 3_000)
    let_go()
    calls = []
    assert (fetch("aa", 8_000, calls) / "shard").stat().st_size == 8_000 and calls == ["aa"]


def test_a_fetch_that_fails_leaves_no_entry_and_its_files_for_the_next(root):
    def fails(folder: Path) -> None:
        (folder / "first").write_bytes(b"here")
        raise DataError("no way")

    with pytest.raises(DataError, match="no way"):
        cached_folder("s3://b/x", "data", "aa", 10, fails)
    assert not (root / "aa" / "data").exists()
    seen = []
    cached_folder("s3://b/x", "data", "aa", 10, lambda folder: seen.extend(path.name for path in folder.iterdir()))
    assert seen == ["first"]


def test_a_second_process_gets_what_the_first_has_fetched_and_still_uses(root):
    body = (
        "import sys, time; from pathlib import Path; from mypt.remote.cache import *; use_cache(sys.argv[1], 1e-5)\n"
        "cached_folder('s3://b/x', 'data', 'aa', 1, lambda folder: (print('fetching', flush=True), time.sleep(1)))\n"
        "print('has it', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", body, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "fetching\n"
        try:
            second = subprocess.run(command, input="", capture_output=True, text=True, timeout=300)
            assert second.stdout.splitlines()[-1] == "has it" and "fetching\n" not in second.stdout
            assert first.poll() is None
        finally:
            first.kill()
