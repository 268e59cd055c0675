"""What the system refuses is an OSError with a name, whoever writes; what is no file is not read."""

import errno
import os
import resource
import socket

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mypt.errors import DataError
from mypt.files import is_disk_full, require_file, system_errors
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.train import build_char_tokenizer


def full(path):
    """A file of which the system says, at the first write, that the disk is full."""
    path.symlink_to("/dev/full")
    return path


@pytest.mark.parametrize(
    "save",
    [
        lambda path: path.write_bytes(b"1" * 100_000),
        lambda path: torch.save({"a": torch.zeros(100_000)}, path),
        lambda path: np.zeros(100_000).tofile(path),
        lambda path: build_char_tokenizer("abc").backend_tokenizer.save(str(path)),
    ],
    ids=["python", "torch", "numpy", "tokenizers"],
)
def test_a_full_disk_is_an_os_error_that_names_a_file(tmp_path, save):
    file = full(tmp_path / "file")
    with pytest.raises(OSError) as caught, system_errors(file):
        save(file)
    assert is_disk_full(caught.value) and caught.value.filename == str(file)


def test_a_library_that_gives_the_number_of_the_error_only(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught, system_errors(tmp_path / "file"):
            save_file({"a": np.zeros(100_000)}, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "file"))


def test_a_message_that_quotes_such_words_is_no_full_disk(tmp_path):
    """Names of files are part of messages: only what the libraries themselves raise is read."""
    for error in (DataError("a 1 requested and 0 written.jsonl"), ValueError("x (os error 13).jsonl"),
                  NotADirectoryError(20, "Not a directory", "a 1 requested and 0 written")):  # fmt: skip
        assert not is_disk_full(error)
        with pytest.raises(type(error)) as caught, system_errors(tmp_path):
            raise error
        assert caught.value is error


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), system_errors("x"):
        1 / 0  # noqa: B018
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_a_tokenizer_on_a_full_disk(tmp_path):
    full(tmp_path / "tokenizer.json")
    with pytest.raises(OSError, match="No space left") as caught:
        save_tokenizer(build_char_tokenizer("abc"), tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_what_may_never_end_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.close()
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("fifo", "socket", "zeros"):
        with pytest.raises(OSError, match="FIFO, a socket or a device"):
            require_file(tmp_path / name)
    (tmp_path / "file").touch()
    read, written = os.pipe()
    for path in (tmp_path / "file", tmp_path, "/dev/null", f"/dev/fd/{read}"):
        require_file(path)
    os.close(read)
    os.close(written)
