"""A folder has one writer, whoever is killed; it appears whole or not at all; what is not ours is not touched."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mypt import folders
from mypt.errors import FolderInUse, MyPTError
from mypt.folders import (
    LOCK_NAME,
    WriterLock,
    contents,
    exchange,
    is_free,
    new_folder,
    only_writer,
    remove_others,
    require_own,
)

HOLD = """
import sys, time
from mypt.folders import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    """start(CODE, *ARGUMENTS): another process, which has printed its first line."""
    started = []

    def begin(code: str, *arguments) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        started[-1].stdout.readline()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, and short times."""

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", refuse)
    for name, seconds in (("BEAT", 0.05), ("SILENCE", 0.4), ("SETTLE", 0.02)):
        monkeypatch.setattr(folders, name, seconds)


def leave(folder: Path, **changes) -> None:
    """A lock file as a holder leaves it that was killed; `changes`: what it says of that one."""
    folder.mkdir(exist_ok=True)
    file = folder / LOCK_NAME
    file.touch()
    file.write_text(json.dumps(folders.this_process() | {"token": "x", "file": file.stat().st_ino} | changes))


def test_the_second_is_told_host_and_process_of_the_first_and_a_kill_leaves_nothing_in_the_way(tmp_path, start):
    first = start(HOLD, tmp_path / "out")
    with pytest.raises(FolderInUse) as refused, only_writer(tmp_path / "out"):
        pass
    host = folders.socket.gethostname()
    assert str(refused.value).startswith(f"another process is writing {tmp_path}/out: pid {first.pid} on {host} (")
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(FolderInUse, match=f"link: pid {first.pid}"), only_writer(tmp_path / "link"):
        pass  # by whatever name
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    with only_writer(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "out").iterdir()) == []


def test_no_lock_stays_and_a_folder_that_was_made_for_nothing_goes(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "absent"):
        with only_writer(tmp_path / name), pytest.raises(FolderInUse), only_writer(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(MyPTError, match="file is a file"), only_writer(tmp_path / "file"):
        pass


def test_a_forked_process_neither_holds_nor_ends_the_lock(tmp_path):
    lock = WriterLock(tmp_path / "out")
    lock.acquire()
    go_on, told = os.pipe()
    child = os.fork()
    if not child:
        lock.release()
        os.close(told)
        os.read(go_on, 1)
        os._exit(0)
    time.sleep(0.1)
    with pytest.raises(FolderInUse), only_writer(tmp_path / "out"):
        pass
    lock.release()
    with only_writer(tmp_path / "out"):  # though the child is there
        pass
    os.close(told)
    os.waitpid(child, 0)


def test_without_locks_a_living_process_is_refused_and_a_dead_one_is_not(tmp_path, no_locks, start, capsys):
    living = start("import time; print(); time.sleep(60)")
    leave(tmp_path / "a", pid=living.pid, process_started=folders._state(living.pid)[1])
    with pytest.raises(FolderInUse, match=f"pid {living.pid} on"), only_writer(tmp_path / "a"):
        pass
    leave(tmp_path / "b", pid=living.pid, process_started="1")  # another process has its number
    living.kill()  # not reaped yet
    while folders._state(living.pid)[0] != "Z":
        time.sleep(0.01)
    for name in ("a", "b"):
        again = pytest.raises(FolderInUse, match=f"pid {os.getpid()} on")
        with only_writer(tmp_path / name), again, only_writer(tmp_path / name):
            pass
        assert contents(tmp_path / name) == [] and not (tmp_path / name / LOCK_NAME).exists()
    assert capsys.readouterr().err == ""


def test_a_copy_of_a_held_folder_is_free(tmp_path):
    with only_writer(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert (tmp_path / "copy" / LOCK_NAME).stat().st_size
        with only_writer(tmp_path / "copy"), pytest.raises(FolderInUse), only_writer(tmp_path / "run"):
            pass


@pytest.mark.parametrize("locks", ["refused", "of this host alone"])
def test_a_holder_on_another_host_is_watched_and_taken_over_when_it_is_silent(
    tmp_path, no_locks, start, capsys, monkeypatch, locks
):
    if locks == "of this host alone":
        monkeypatch.setattr(folders.fcntl, "flock", lambda file, operation: None)
    out = tmp_path / "out"
    leave(out, host="elsewhere", boot="another", pid=7)
    with only_writer(out):
        pass
    printed = capsys.readouterr().err
    assert "is held by pid 7 on elsewhere" in printed and "gave no sign of life, so the lock is taken over" in printed
    leave(out, host="elsewhere", boot="another", pid=7)
    beat = "import sys, os, time\nprint(flush=True)\nwhile True: os.utime(sys.argv[1]); time.sleep(0.03)"
    living = start(beat, out / LOCK_NAME)
    for number in ((out / LOCK_NAME).stat().st_ino, 1):  # some network mounts number a file on each host anew
        leave(out, host="elsewhere", boot="another", pid=7, file=number)
        monkeypatch.setattr(folders, "file_system", lambda path: "fuse.sshfs")
        with pytest.raises(FolderInUse, match="pid 7 on elsewhere"), only_writer(out):
            pass
    living.kill()
    living.wait()
    assert json.loads((out / LOCK_NAME).read_text())["host"] == "elsewhere", "a refused process changes nothing"


def test_the_holder_gives_signs_of_life(tmp_path, no_locks):
    with only_writer(tmp_path):
        before = (tmp_path / LOCK_NAME).stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while (tmp_path / LOCK_NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_lock_names_no_value_of_an_option():
    assert folders._command(["/x/mypt/__main__.py", "train", "a.yaml", "--training.hub_token=s"]) == "mypt train a.yaml"
    assert folders._command(["mypt", "train", "--training.hub_token=s"]) == "mypt train"


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["file"]
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "failed") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


MAKE = """
import sys
from mypt.folders import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "a").write_text(sys.argv[2])
    print("held", flush=True)
    sys.stdin.readline()
    (folder / "b").write_text(sys.argv[2])
"""


def test_of_two_that_make_one_folder_the_second_is_refused_and_the_first_is_whole(tmp_path):
    command = [sys.executable, "-c", MAKE, str(tmp_path / "made"), "first"]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first.stdout.readline()
    with pytest.raises(FolderInUse, match=f"writing {tmp_path}/made: pid {first.pid}"), new_folder(tmp_path / "made"):
        pass
    first.communicate("\n")
    assert first.returncode == 0
    assert {path.name: path.read_text() for path in (tmp_path / "made").iterdir()} == {"a": "first", "b": "first"}
    with pytest.raises(MyPTError, match="is not empty"), new_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    leave(tmp_path / ".made.tmp", pid=1, process_started="1")
    (tmp_path / ".made.tmp" / "half").write_text("x")
    (tmp_path / "made").mkdir()
    leave(tmp_path / "made", pid=1, process_started="1")
    assert is_free(tmp_path / "made")
    with new_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["made", "made/file"]


def test_folders_of_the_user_with_like_names_stay(tmp_path):
    for name in ("made.tmp", ".other.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    with new_folder(tmp_path / "made"):
        pass
    with pytest.raises(MyPTError, match=r"\.other\.tmp holds mine"), new_folder(tmp_path / "other"):
        pass
    assert (tmp_path / "made.tmp" / "mine").exists() and (tmp_path / ".other.tmp" / "mine").exists()


def test_free_is_what_is_not_there_or_empty_and_not_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "file").write_text("x")
    assert all(map(is_free, [tmp_path / "absent", tmp_path / "empty", tmp_path / "link"]))
    assert not is_free(tmp_path) and not is_free(tmp_path / "file")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "empty" / "file").exists() and (tmp_path / "link").is_symlink()
    (tmp_path / "stand").mkdir()
    monkeypatch.chdir(tmp_path / "stand")
    assert not is_free(".") and not is_free(tmp_path / "stand")


def test_own_is_what_is_absent_or_empty_or_holds_what_the_command_leaves(tmp_path):
    def is_own(folder: Path) -> bool:
        return (folder / "mark").exists()

    require_own(tmp_path / "absent", is_own, "mypt x")
    require_own(tmp_path, is_own, "mypt x")
    (tmp_path / "file").write_text("x")
    (tmp_path.parent / "link").unlink(missing_ok=True)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path.parent / "link"):
        with pytest.raises(MyPTError, match="holds file and was not made by mypt x"):
            require_own(folder, is_own, "mypt x")
    with pytest.raises(MyPTError, match="is a file"):
        require_own(tmp_path / "file", is_own, "mypt x")
    (tmp_path / "mark").touch()
    require_own(tmp_path, is_own, "mypt x")


@pytest.mark.parametrize("swaps", [True, False])
def test_two_folders_exchange_their_names(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr("sys.platform", "other")
    numbers = {}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        numbers[name] = (tmp_path / name).stat().st_ino
    exchange(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first" / "file").read_text() == "second"
    assert (tmp_path / "second").stat().st_ino == numbers["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    with pytest.raises(OSError, match="second"):
        exchange(tmp_path / "first", tmp_path / "none" / "second")


def test_others_go_and_the_named_files_the_lock_and_what_is_kept_stay(tmp_path):
    for name in ("a", "b", "in/a", "in/b", "in/deep/c", "other/a", ".mypt.lock", "notes/a", "in/notes/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    remove_others(tmp_path, ["a", "in/b"], "notes")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == [".mypt.lock", "a", "in", "in/b", "notes", "notes/a"]
