"""Compressed files: the whole content or a clear error, never a part of it in silence."""

import gzip
import random
import subprocess
import sys

import pytest

from mypt.errors import DataError
from mypt.text.opening import open_bytes

CONTENT = random.Random(0).randbytes(300_000) + b"text " * 100_000


def read(path):
    with open_bytes(path) as file:
        return b"".join(iter(lambda: file.read(10_000), b""))


def compressed(suffix, data):
    return gzip.compress(data) if suffix == ".gz" else pytest.importorskip("zstandard").compress(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_whole_and_joined_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compressed(suffix, CONTENT))
    assert read(path) == CONTENT
    path.write_bytes(compressed(suffix, CONTENT) + compressed(suffix, b"") + compressed(suffix, b"more"))
    assert read(path) == CONTENT + b"more"
    path.write_bytes(compressed(suffix, b""))
    assert read(path) == b""


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_stops_or_is_none_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    data = compressed(suffix, CONTENT)
    for broken in (data[:-1], data[: len(data) // 2], data[:9], data + data[:20], b"plain text, no more", b"\0" + data):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"a\{suffix} is not a whole (gzip|zstd) file .*compress it again"):
            read(path)


def test_without_zstandard_it_says_what_to_install(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    code = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from mypt.text.opening import open_bytes\nfrom mypt.errors import DataError\n"
        "try:\n    open_bytes(sys.argv[1]).__enter__()\nexcept DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.jsonl.zst"], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/a.jsonl.zst needs zstandard: run `pip install mypt[zstd]`, or decompress it\n"


def test_a_missing_file_is_an_error_in_words(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none.txt: No such file"):
        read(tmp_path / "none.txt")
