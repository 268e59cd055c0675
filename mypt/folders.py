"""Folders that commands write: locked by one process, never a folder of others, published whole or not at all."""

import ctypes
import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mypt.errors import FolderInUse, MyPTError
from mypt.files import file_system, is_network, system_errors
from mypt.terminal import say

try:
    import fcntl
except ImportError:  # Windows: folders are not locked
    fcntl = None

# The lock is in the folder, so that every process sees it, whatever path, mount or host it comes by.
LOCK_NAME = ".mypt.lock"
BEAT = 5.0  # seconds between two updates of the lock file by its holder
SILENCE = 60.0  # seconds without an update, after which a holder on another host counts as ended
SETTLE = 1.0  # seconds to wait without system locks, until two processes that took the lock at once see who has it
_REFUSED = 100  # times that a folder may disappear during one `acquire`
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2


class WriterLock:
    """The lock of a folder: `acquire` makes the folder if it is absent, `release` removes its file.

    It is the system's lock (flock) on the file `LOCK_NAME`, which ends with the process, even with a killed one. The
    file names its holder and is touched every `BEAT` seconds. This shows whether the holder still runs where a file
    system has no locks, or where its locks do not reach other hosts.
    """

    def __init__(self, folder: str | Path):
        self.name = str(folder)
        self.folder = Path(folder).resolve()
        self._file = self._directory = None  # descriptors: the folder may be renamed while it is held
        self._made = False
        self._token = ""

    def acquire(self) -> None:
        """Raises FolderInUse if another process holds it, MyPTError for a file, OSError if it cannot be written."""
        if fcntl is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        taken, refused = False, 0
        while not taken:  # a folder or a file that another process removed is made again
            try:
                self._open()
                taken = self._take()
            except FileNotFoundError:
                refused += 1
                if refused == _REFUSED:  # nothing can be made there, as in /proc
                    raise
            finally:
                if not taken:
                    self.forget()
        _held.add(self)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Remove the lock file, and the folder if `acquire` made it and it is empty. Without the lock: do nothing."""
        if self._file is None:
            return
        self._ended.set()
        self._thread.join(SETTLE)
        with suppress(OSError):
            if self._is_there() and self._holder().get("token") == self._token:
                os.ftruncate(self._file, 0)
                os.unlink(LOCK_NAME, dir_fd=self._directory)
        self.forget()
        if self._made:
            with suppress(OSError):
                self.folder.rmdir()

    def forget(self) -> None:
        """Close the descriptors. The lock ends with them, unless this is a forked process that does not hold it."""
        _held.discard(self)
        for descriptor in (self._file, self._directory):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._directory = None

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise MyPTError(f"{self.name} is a file; give a directory")
        self._made |= not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._directory = os.open(self.folder, os.O_RDONLY)
        self._file = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=self._directory)
        with suppress(OSError):  # whoever may write in the folder may take over a file that a killed process left
            os.fchmod(self._file, os.fstat(self._directory).st_mode & 0o666)

    def _take(self) -> bool:
        granted = _flock(self._file)
        holder = self._holder()
        if granted is False:
            for _ in range(20):  # it may not have written its name yet
                if not holder:
                    time.sleep(0.05)
                    holder = self._holder()
            raise self._in_use(holder)
        if not os.path.samestat(os.stat(self.folder), os.fstat(self._directory)):  # renamed into its place meanwhile
            if self._is_there():
                os.unlink(LOCK_NAME, dir_fd=self._directory)
            return False
        if not self._is_there() or (holder and not self._is_gone(holder, granted)):
            return False
        self._token = uuid.uuid4().hex
        content = json.dumps(this_process() | {"token": self._token, "file": self._number()}).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, content, 0)
        if granted is None or is_network(file_system(self.folder)):
            time.sleep(SETTLE)
            return self._is_there() and self._sign()[1] == content
        return True

    def _is_gone(self, holder: dict, granted: bool | None) -> bool:
        """Whether the holder has ended; False: it released the lock just now. Raises FolderInUse if it is alive."""
        here = this_process()
        local = not is_network(file_system(self.folder))
        copied = holder.get("file") != self._number()
        # FUSE, 9p and some SMB mounts number a file differently on each host; only the waiting below decides there.
        if copied and local:
            return True
        if all(holder.get(name) == here[name] for name in ("host", "boot")):
            if holder.get("pid_namespace") == here["pid_namespace"]:
                # Without a start time the pid may belong to another process; then the lock decides.
                known = bool(here["process_started"]) or not granted
                if not copied and known and is_alive(holder.get("pid"), holder.get("process_started")):
                    raise self._in_use(holder)
                return True
            if granted:  # a container on this machine, whose locks are kept by the same kernel
                return True
        who = _describe(holder)
        say(f"{self.name} is held by {who}: watching it for {SILENCE:.0f} s", error=True)
        first, end = self._sign(), time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(BEAT / 5)
            now = self._sign()
            if now is None:
                return False
            if now != first:
                raise self._in_use(holder)
        say(f"{self.name}: {who} gave no sign of life, so the lock is taken over", error=True)
        return True

    def _sign(self) -> tuple[int, bytes] | None:
        """Time and content of the lock file. Opening it again makes a network file system ask its server."""
        try:
            file = os.open(LOCK_NAME, os.O_RDONLY, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(file).st_mtime_ns, os.pread(file, 1 << 16, 0)
        finally:
            os.close(file)

    def _number(self) -> int:
        """The lock file's inode number, which differs for a copy and, on some network mounts, between hosts."""
        return os.fstat(self._file).st_ino

    def _is_there(self) -> bool:
        """Whether the opened file is still the folder's lock file."""
        try:
            return os.path.samestat(os.stat(LOCK_NAME, dir_fd=self._directory), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _holder(self) -> dict:
        with suppress(ValueError, RecursionError):
            found = json.loads(os.pread(self._file, 1 << 16, 0))
            return found if isinstance(found, dict) else {}
        return {}

    def _in_use(self, holder: dict) -> FolderInUse:
        who = f": {_describe(holder)}" if holder else ""
        return FolderInUse(f"another process is writing {self.name}{who}; wait until it ends, or choose another folder")

    def _keep_alive(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError, TypeError):  # TypeError: released meanwhile
                os.utime(self._file)


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)  # a DataLoader's worker may outlive the process that holds the lock


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Hold `folder` (made if it is absent) for one command. Raises as `WriterLock.acquire` does."""
    lock = WriterLock(folder)
    lock.acquire()
    try:
        with system_errors(folder):
            yield
    finally:
        lock.release()


def _flock(file: int) -> bool | None:
    """Whether the lock was granted; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def this_process() -> dict:
    """The content of a lock file: its holder. `host` and `boot` name the machine; a pid is valid in its namespace."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": _command(sys.argv),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else "",
        "process_started": _state(os.getpid())[1],
    }


def _command(words: list[str]) -> str:
    """`mypt train recipe.yaml`: the first words, without options, whose values may be secret."""
    name = Path(words[0]).name if words else ""
    name = "mypt" if name == "__main__.py" else name if name not in ("", "-c") else "python"
    plain = [word for word in words[1:3] if not word.startswith("-")]
    return " ".join([name, *plain])[:200]


def _describe(holder: dict) -> str:
    return "pid {pid} on {host} ({command}), since {since}".format_map(
        {name: holder.get(name, "?") for name in ("pid", "host", "command", "since")}
    )


def is_alive(pid: object, started: object) -> bool:
    """Whether the process `pid` that began at `started` runs; the pid may have been given to another process since."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    state, began = _state(int(pid))
    return state not in ("Z", "X") and (began == started or not began)


def _state(pid: int) -> tuple[str, str]:
    """State and start (ticks since boot) of a process; two empty strings where the system has no /proc."""
    words = _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (words[0], words[19]) if len(words) > 19 else ("", "")


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


# ---- the owner of a folder ----


def contents(folder: str | Path) -> list[str]:
    """The sorted names in a folder without the lock; empty if the folder is absent."""
    folder = Path(folder)
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME) if folder.is_dir() else []


def require_own(
    folder: str | Path, is_own: Callable[[Path], bool], made_by: str, error: type[MyPTError] = MyPTError
) -> None:
    """Raise `error` unless `folder` is absent or empty, or `is_own` recognizes it as made by the command `made_by`."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder} is a file; give a directory")
    if (found := contents(folder)) and not is_own(folder):
        raise error(
            f"{folder} holds {found[0]} and was not made by {made_by}, so nothing is written there; choose a new or an "
            "empty folder"
        )


def is_free(path: str | Path) -> bool:
    """Whether a folder can be made at `path`: nothing is there, or an empty folder that is not the current one."""
    path = Path(path)
    if not path.is_dir():
        return not path.exists()
    return not contents(path) and path.resolve() != Path.cwd()


def require_free(path: str | Path, error: type[MyPTError] = MyPTError) -> None:
    """Raise `error` unless `is_free`."""
    if not is_free(path):
        raise error(f"{path} exists and is not empty, or is the current folder; choose another")


# ---- a folder that appears as a whole ----


@contextmanager
def beside(path: Path, suffix: str, is_own: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """Lock the hidden folder `.NAME.SUFFIX` next to `path`, to be filled and then renamed to `path` (`take_place`).

    It may hold files that a killed process left. Raises FolderInUse if another process is making `path`, and MyPTError
    if `path` is not free, or if the hidden folder has no lock file and `is_own` does not recognize it.
    """
    temporary = path.with_name(f".{path.name}.{suffix}")
    require_own(temporary, lambda folder: (folder / LOCK_NAME).exists() or is_own(folder), "mypt")
    lock = WriterLock(temporary)
    try:
        lock.acquire()
    except FolderInUse as error:
        raise FolderInUse(str(error).replace(str(temporary), str(path))) from None
    try:
        require_free(path)
        with system_errors(path):
            yield temporary
    finally:
        lock.release()
        with suppress(OSError):
            temporary.rmdir()


def take_place(temporary: Path, path: Path) -> None:
    """Rename a folder to `path`, which must be free. Raises FolderInUse if another process writes there."""
    if path.is_dir():
        with only_writer(path):  # removes the lock of a killed process: a rename replaces empty folders only
            pass
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise MyPTError(f"{path} was filled by another process meanwhile; choose another folder") from None


def exchange(first: Path, second: Path) -> None:
    """Swap the names of two folders of one file system: in one step on Linux, elsewhere by three renames."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if swap and swap(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return
    code = ctypes.get_errno() if swap else errno.ENOSYS
    if code not in (errno.EINVAL, errno.ENOSYS):  # of a file system or a kernel that cannot swap
        raise OSError(code, os.strerror(code), str(second))
    between = first.with_name(f"{first.name}.exchange")
    second.rename(between)
    first.rename(second)
    between.rename(first)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder that becomes `path` when the block ends, and is removed when it fails. Raises as `beside`."""
    path = Path(path).resolve()
    with beside(path, "tmp") as temporary:
        empty(temporary)
        try:
            yield temporary
            take_place(temporary, path)
        except BaseException:
            empty(temporary)
            raise


def empty(folder: Path) -> None:
    """Remove everything in a folder of our own except its lock."""
    for name in contents(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_others(folder: Path, names: Collection[str], *kept: str) -> None:
    """Remove all that is in a folder of our own, except the files `names` (paths inside it), its lock, and what is
    `kept` at its top."""
    for path in sorted(folder.rglob("*"), reverse=True):
        inside = path.relative_to(folder)
        name = inside.as_posix()
        if inside.parts[0] in (LOCK_NAME, *kept):
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(one.startswith(f"{name}/") for one in names):
                shutil.rmtree(path)
        elif name not in names:
            path.unlink(missing_ok=True)
