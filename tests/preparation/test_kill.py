"""kill -9 at any moment: the same command finishes the work with the same bytes, and no worker is left behind."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time

import pytest

from mypt.errors import TokenizerError
from mypt.preparation.prepare import prepare_dataset
from mypt.preparation.train_tokenizer import train_tokenizer
from mypt.shards.publishing import STAGING, UNITS
from tests.datasets import output
from tests.processes import Command

FILES = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight files with duplicates across them."""
    root = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 8))) for _ in range(2_000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 80))) for _ in range(2_000)]
    for number in range(FILES):
        rows = draw.sample(texts, 500)
        (root / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return root


def options(corpus, workers=1):
    sources = [f"{corpus}/{number}.jsonl" for number in range(FILES)]  # a source is a unit at least
    return {"sources": sources, "tokenizer": "bpe", "vocab_size": 400, "tokens_per_shard": 17_000,
            "workers": workers, "progress": False}  # fmt: skip


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare_dataset(out=out, **options(corpus))
    return output(out)


def start(corpus, out, workers=1, kill=""):
    """Prepare in another process; `kill`: "module:function:n", the call at whose begin it kills itself."""
    code = f"""
import importlib, os, signal
from mypt.errors import TokenizerError
from mypt.preparation.prepare import prepare_dataset
if __name__ == "__main__":
    if kill := {kill!r}:
        path, names, left = kill.split(":")
        *owners, name = names.split(".")
        owner = importlib.import_module(path)
        for attribute in owners:
            owner = getattr(owner, attribute)
        original, calls = getattr(owner, name), []
        def function(*args, **options):
            calls.append(1)
            if len(calls) == int(left):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)
        setattr(owner, name, function)
    prepare_dataset(out={str(out)!r}, **{options(corpus, workers)!r})
"""
    script = out.with_suffix(".py")
    script.write_text(code)
    return Command([], script=script)


MOMENTS = [
    "mypt.preparation.prescan:prescan_unit:4",
    "mypt.tokenization.train:train_bpe:1",
    "mypt.preparation.encoding:encode_unit:4",
    "mypt.preparation.encoding:BatchEncoder.encode:3",
    "mypt.preparation.units:replace_text:2",
    "mypt.preparation.prepare:assign:1",
    "mypt.shards.writer:ShardWriter._finish:2",
    "mypt.shards.publishing:write_manifest:1",
    *(f"mypt.shards.publishing:os.replace:{call}" for call in (1, 4, 8)),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(corpus, whole, tmp_path, moment):
    out = tmp_path / "out"
    assert start(corpus, out, kill=moment).wait() == -signal.SIGKILL
    prepare_dataset(out=out, **options(corpus))
    assert output(out) == whole


def test_killed_at_random_moments_with_workers(corpus, whole, tmp_path):
    out = tmp_path / "out"
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    for units in sorted(draw.sample(range(FILES), 2)):
        process = start(corpus, out, workers=2)
        while process.poll() is None and len([*(out / STAGING / UNITS).glob("0000?.json")]) < units:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):  # the last units can be done within that time
            os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must follow by themselves
        process.wait()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and _alive(process.pid):
            time.sleep(0.1)
        assert not _alive(process.pid)
    prepare_dataset(out=out, **options(corpus, workers=2))
    assert output(out) == whole


def test_a_restart_does_not_repeat_finished_units_but_those_that_were_damaged(corpus, whole, tmp_path):
    out = tmp_path / "out"
    folder = out / STAGING / UNITS
    start(corpus, out, kill="mypt.preparation.encoding:encode_unit:6").wait()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("0000?.json")}
    assert len(before) == 5
    start(corpus, out, kill="mypt.preparation.prepare:assign:1").wait()
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("0000?.json")}
    assert len(after) == FILES and before.items() <= after.items()
    ids = bytearray((folder / "00000.ids").read_bytes())
    ids[11] ^= 1
    (folder / "00000.ids").write_bytes(ids)
    (folder / "00001.npy").write_bytes(b"")
    os.truncate(folder / "00002.ids", 11)
    os.truncate(folder / "00003.sample", 100)
    (folder / "tokenizer.key").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="was not made by mypt tokenizer"):  # it would take its place
        train_tokenizer([corpus / "0.jsonl"], out)
    prepare_dataset(out=out, **options(corpus))
    assert output(out) == whole


def _alive(group: int) -> bool:
    """Whether a process of the group is left (a zombie that nobody waits for is none)."""
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in states)
