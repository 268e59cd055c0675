"""Replace a file in one step, flush it to the disk, find its file system, refuse what cannot be read."""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "lustre", "ceph", "gpfs", "beegfs", "9p", "afs", "glusterfs",
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The messages for a full disk of numpy (OSError without a number) and of torch.save (RuntimeError).
_NUMPY_FULL = re.compile(r"\d+ requested and \d+ written")
_TORCH_FULL = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|iostream error")
_SYSTEM_NUMBER = re.compile(r"\(os error (\d+)\)")  # in messages of libraries in Rust


def free_for(folder: str | Path) -> int:
    """Bytes that `folder` may come to: what is free on its disk, and what it holds now."""
    folder = Path(folder)
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return held + shutil.disk_usage(there).free


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system, numpy or torch means that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL if error.errno is not None else bool(_NUMPY_FULL.search(str(error)))
    return isinstance(error, RuntimeError) and bool(_TORCH_FULL.search(str(error)))


@contextmanager
def system_errors(path: str | Path) -> Iterator[None]:
    """Turn every system error of the block, which writes below `path`, into an OSError that names a file or `path`.

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
    """Raise OSError for a FIFO, a socket or a device, whose reading may never end.

    Standard input and open pipes (/dev/stdin, or /dev/fd/63 of a shell's `<(command)`) are accepted.
    """
    mode = os.stat(path).st_mode
    opened = str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")) or str(path) == os.devnull
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or opened):
        raise OSError(errno.EINVAL, "it is a FIFO, a socket or a device, not a file", str(path))


def is_inner_path(name: str) -> bool:
    """Whether a path leads to a file inside the folder that it is relative to, and nowhere else."""
    place = PurePosixPath(name)
    inside = bool(place.parts) and not place.is_absolute() and ".." not in place.parts
    return inside and name.isprintable() and not PureWindowsPath(name).drive and "\\" not in name


def what_to_do_with_gguf(path: str | Path) -> str:
    """The message for a GGUF file, or a folder that holds one in place of a model; empty for anything else."""
    path = Path(path)
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else [path]
    if not (files and files[0].suffix == ".gguf" and files[0].is_file()):
        return ""
    return (
        f"{files[0]} is a GGUF file, which MyPT does not read: write it as safetensors with transformers and name that "
        "folder; docs/domain_adaptation.md (section A GGUF file) has the five lines"
    )


def xxh3_128(path: str | Path) -> str:
    """The checksum of a file's content, in hex digits. Raises OSError."""
    import xxhash

    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def replace_text(path: str | Path, text: str) -> None:
    r"""Replace the content of `path` by `text`. A reader sees the old file or the new one, even after a kill -9.

    A lone surrogate, with which Python spells a byte of a file's name that is not UTF-8, is written as `\udce9`,
    which JSON reads as the same text.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def flush_folder(folder: str | Path) -> None:
    """Flush a folder and every file below it, so that they survive a power cut. Raises OSError."""
    folders = []
    for root, _, names in os.walk(folder):
        folders.append(root)
        for name in names:
            _flush(os.path.join(root, name))
    for path in reversed(folders):
        flush_names(path)


def flush_names(folder: str | Path) -> None:
    """Flush the names in a folder (new, renamed and removed files), if its file system can."""
    with suppress(OSError):  # some network file systems, and Windows, cannot flush a folder
        _flush(folder)


def _flush(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_system(path: str | Path) -> str:
    """The type of file system that a path is on, such as ext4; "an unknown file system" without /proc."""
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
