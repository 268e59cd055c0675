"""All ways of fetching give the same windows, with few open files and without reading what is not needed."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.shards.fetching import BLOCK_TOKENS, InMemory, Mapped, Pread
from mypt.streams.windows import window_count, window_starts


def write(folder, tokens: np.ndarray, sizes: list[int]):
    """The arguments of every fetcher for tokens cut into files of these sizes."""
    paths = []
    for index, part in enumerate(np.split(tokens, np.cumsum(sizes)[:-1])):
        paths.append(folder / f"{index}.bin")
        part.tofile(paths[-1])
    return paths, sizes, tokens.dtype


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("trial", range(6))
def test_every_fetcher_gives_slices_of_the_stream(tmp_path, dtype, trial):
    rng = np.random.default_rng(trial)
    sizes = rng.integers(1, 10 ** rng.integers(1, 5), rng.integers(1, 12)).tolist()
    tokens = rng.integers(0, 60_000, sum(sizes)).astype(dtype)
    layout = write(tmp_path, tokens, sizes)
    for fetch in (InMemory(*layout), Mapped(*layout), Pread(*layout), Pread(*layout, blocks=True)):
        for length in {1, 2, min(1_025, len(tokens)), len(tokens)} - ({1} if getattr(fetch, "blocks", 0) else set()):
            starts = rng.integers(0, len(tokens) - length + 1, 40)
            fetch.prefetch(starts, length)
            expected = np.stack([tokens[start : start + length] for start in starts])
            assert np.array_equal(fetch.windows(starts, length), expected), (fetch, length)


@pytest.mark.parametrize(("block_size", "epoch"), [(1_024, 0), (1_024, 3), (1_000, 1), (256, 2), (70_000, 1)])
def test_in_the_order_of_blocks_pread_reads_each_byte_once(tmp_path, block_size, epoch):
    tokens = np.arange(150 * BLOCK_TOKENS + 12_345, dtype="<u4").astype("<u2")
    fetch = Pread(*write(tmp_path, tokens, [4_000_000, 3_000_001, len(tokens) - 7_000_001]), blocks=True)
    n = window_count(len(tokens), block_size)
    starts = window_starts(np.arange(n), len(tokens), block_size, seed=1, order="blocks", first_epoch=epoch)
    for row in range(0, n, 32):
        fetch.windows(starts[row : row + 32], block_size + 1)
    useful = n * block_size * 2
    assert useful < fetch.bytes_read < 1.001 * useful


def test_a_full_order_reads_no_more_than_the_windows(tmp_path):
    tokens = np.arange(60_000, dtype="<u2")
    fetch = Pread(*write(tmp_path, tokens, [25_000, 35_000]))
    fetch.windows(np.arange(0, 50_000, 500), 101)
    assert fetch.bytes_read == 100 * 101 * 2


def test_what_is_mapped_outlives_its_file(tmp_path):
    tokens = np.arange(5_000, dtype="<u2")
    fetch = Mapped(*write(tmp_path, tokens, [2_000, 3_000]))
    (tmp_path / "1.bin").unlink()  # as when a dataset is prepared again while it is trained on
    fetch.prefetch(np.array([100, 3_000]), 65)
    assert np.array_equal(fetch.windows(np.array([3_000]), 65)[0], tokens[3_000:3_065])


def test_with_pread_a_file_replaced_later_is_an_error_that_names_it(tmp_path):
    tokens = np.arange(5_000, dtype="<u2")
    fetch = Pread(*write(tmp_path, tokens, [2_000, 3_000]))
    tokens[::-1][:3_000].tofile(tmp_path / "other.bin")
    os.utime(tmp_path / "other.bin", (1, 1))
    os.replace(tmp_path / "other.bin", tmp_path / "1.bin")
    assert np.array_equal(fetch.windows(np.array([1_000]), 65)[0], tokens[1_000:1_065])
    with pytest.raises(DataError, match=r"1\.bin was replaced"):
        fetch.windows(np.array([3_000]), 65)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files are POSIX")
@pytest.mark.parametrize("fetcher", ["Mapped", "Pread"])
def test_more_shards_than_open_files_are_allowed(tmp_path, fetcher):
    script = f"""
import resource
from pathlib import Path
import numpy as np
from mypt.shards.fetching import {fetcher}
paths = [Path({str(tmp_path)!r}) / f"{{index}}.bin" for index in range(300)]
for path in paths:
    np.arange(10, dtype="<u2").tofile(path)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
fetch = {fetcher}(paths, [10] * 300, np.dtype("<u2"))
fetch.prefetch(np.arange(2_990), 11)
assert (fetch.windows(np.arange(2_990), 11) == (np.arange(2_990)[:, None] + np.arange(11)) % 10).all()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_many_readers_share_few_open_files(tmp_path):
    """20 sources of thousands of shards each, in a process that may open 1,024 files."""
    tokens = np.arange(70 * 4, dtype="<u2")
    readers = []
    for number in range(4):
        (folder := tmp_path / str(number)).mkdir()
        readers.append(Pread(*write(folder, tokens + number, [4] * 70)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, hard))
    try:
        for number, reader in enumerate(readers):
            assert np.array_equal(reader.windows(np.arange(0, 278), 2)[:, 0], tokens[:278] + number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
