"""Write a file in one step, make it survive a power cut, and tell which file system it is on."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "lustre", "ceph", "gpfs", "beegfs", "9p", "afs", "glusterfs",
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)
# A full disk in the words of numpy's writers (OSError without a number) and of torch.save (RuntimeError).
_NUMPY_FULL = re.compile(r"\d+ requested and \d+ written")
_TORCH_FULL = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|iostream error")
_SYSTEM_NUMBER = re.compile(r"\(os error (\d+)\)")  # in the words of libraries in Rust


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system, numpy or torch means that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL if error.errno is not None else bool(_NUMPY_FULL.search(str(error)))
    return isinstance(error, RuntimeError) and bool(_TORCH_FULL.search(str(error)))


@contextmanager
def system_errors(path: str | Path) -> Iterator[None]:
    """Around what writes below `path`: where the system refuses, OSError with the name of a file, or else of `path`.

    Libraries in Rust (tokenizers, safetensors) and torch.save raise errors of other types, numpy's writers give no
    number, Python's no name.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if is_disk_full(error):
                error.filename = error.filename or str(path)
            raise
        in_rust = type(error) is Exception or type(error).__name__ == "SafetensorError"  # tokenizers raises Exception
        number = _SYSTEM_NUMBER.search(str(error)) if in_rust else None
        code = int(number[1]) if number else errno.ENOSPC if is_disk_full(error) else None
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def require_file(path: str | Path) -> None:
    """Raise OSError for a FIFO, a socket or a device: a read may wait for ever, or never end.

    What the system calls standard input or an open pipe (/dev/stdin, /dev/fd/63 of a shell's `<(command)`) passes.
    """
    mode = os.stat(path).st_mode
    opened = str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")) or str(path) == os.devnull
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or opened):
        raise OSError(errno.EINVAL, "it is a FIFO, a socket or a device, not a file", str(path))


def replace_text(path: str | Path, text: str) -> None:
    r"""Write `text` to `path` so that a reader, or a kill -9, meets the old file or the new one, never half of it.

    A lone surrogate, which is how Python spells a byte of a file's name that is not UTF-8, becomes `\udce9` and the
    like: in JSON the same text again.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def flush_folder(folder: str | Path) -> None:
    """Wait until every file below `folder`, and the folder itself, would survive a power cut. Raises OSError."""
    folders = []
    for root, _, names in os.walk(folder):
        folders.append(root)
        for name in names:
            _flush(os.path.join(root, name))
    for path in reversed(folders):
        flush_names(path)


def flush_names(folder: str | Path) -> None:
    """Make the names in a folder (new, renamed, removed files) survive a power cut, where its file system can."""
    with suppress(OSError):  # some network file systems, and Windows, cannot flush a folder
        _flush(folder)


def _flush(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_system(path: str | Path) -> str:
    """The type of file system that a path is on, such as ext4; "an unknown file system" where Linux does not tell."""
    with suppress(OSError):
        found, place = "", "an unknown file system"
        real = os.path.realpath(path)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            escaped = left.split()[4].encode().decode("unicode_escape")  # a blank is written \040
            mount = escaped.encode("latin-1").decode("utf-8", "surrogateescape")
            if len(mount) >= len(found) and os.path.commonpath([mount, real]) == mount:
                found, place = mount, right.split()[0]
        return place
    return "an unknown file system"


def is_network(system: str) -> bool:
    """Whether a `file_system` is reached through a network, where calls fail and other hosts may write."""
    return system in _NETWORK or system.startswith("fuse.")
