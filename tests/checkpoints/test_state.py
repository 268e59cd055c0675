"""A damaged JSON file of a dataset or a run is one line, never a traceback; a run resumes from what its state says."""

import copy
import json
import os
import random
import shutil

import pytest

from mypt.checkpoints.complete import last_complete_checkpoint
from mypt.checkpoints.state import read_forgetting, read_ledger, read_state
from mypt.cli.main import main
from mypt.errors import CheckpointError, MyPTError
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.training.run_folder import recorded_identity

VALUES = (
    None, True, False, 0, -1, 1.5, "512", "", "a\0b", "\ud800", "../../x", "\x1b[31m", "x" * 5_000, [], {}, [[]],
    [1, 2], {"a": 1}, float("nan"), float("inf"), 10**12, 2**63, 10**30, 1e308,
)  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy with one fault: of its bytes, or of one of its values."""
    if rng.random() < 0.15:
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        whole = (b"", b"null", b"12", b"[" + content + b"]", b"\xef\xbb\xbf" + content, DEEP.encode())
        return rng.choice([*whole, bytes(flipped), content[: rng.randrange(len(content))]])
    value = json.loads(content)
    inside, place = value, next(iter(value))
    while isinstance(inside, dict | list) and inside:
        parent, place = inside, rng.choice([*inside] if isinstance(inside, dict) else range(len(inside)))
        inside = parent[place]
        if rng.random() < 0.15:
            break
    how = rng.choice(("value", "value", "value", "delete", "twice", "deep", "number"))
    if how == "delete":
        del parent[place]
    elif how == "twice" and isinstance(parent, list):
        parent.insert(place, copy.deepcopy(inside))
    elif how == "number" and type(inside) in (int, float):
        parent[place] = rng.choice((-inside, inside + 1, inside * 10**6, str(inside), [inside]))
    else:
        parent[place] = "DEEP" if how == "deep" else rng.choice(VALUES)
    return json.dumps(value).replace('"DEEP"', DEEP).encode()


@pytest.mark.parametrize("command", ["verify", "inspect", "subset"])
def test_damaged_metadata_is_one_line_or_changes_nothing(corpora, tmp_path, capsys, command):
    directory = shutil.copytree(corpora / "domain", tmp_path / "data")
    path, rng = directory / METADATA_NAME, random.Random(command)
    original, manifest = path.read_bytes(), read_manifest(directory)
    moment, out = path.stat().st_mtime_ns, tmp_path / "out"
    arguments = [command, str(directory), *(["--out", str(out), "--samples", "3"] if command == "subset" else [])]
    assert main(arguments) == 0
    capsys.readouterr()
    for _ in range(60):
        shutil.rmtree(out, ignore_errors=True)
        content = damaged(original, rng)
        path.write_bytes(content)
        os.utime(path, ns=(moment, moment))
        code = main(arguments)
        printed = capsys.readouterr()
        if code == 0:  # then nothing that decides anything is another
            found = read_manifest(directory)
            assert (found.dtype, found.fingerprint("train")) == (manifest.dtype, manifest.fingerprint("train")), content
            if command != "inspect":
                for name in ("vocab_size", "eos_token_id", "tokenizer_hash"):
                    assert getattr(found, name) == getattr(manifest, name)
        elif printed.err:
            assert printed.err.startswith(f"mypt {command}: ") and printed.err.count("\n") == 1, printed.err[:500]
        else:
            assert "PROBLEM" in printed.out or "problem" in printed.out


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("checkpoint-4/trainer_state.json", lambda run: read_state(run / "checkpoint-4")),
        ("coverage.json", read_ledger),
        ("forgetting.json", read_forgetting),
        ("environment.json", recorded_identity),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(run_copy, capsys, name, read):
    path, rng = run_copy / name, random.Random(name)
    original, clear, whole = path.read_bytes(), 0, read(run_copy)
    assert whole
    for number in range(100):
        path.write_bytes(damaged(original, rng))
        try:
            read(run_copy)
        except MyPTError as error:
            clear += 1
            assert isinstance(error, CheckpointError) and str(path) in str(error) and "\n" not in str(error)
        if number % 5 == 0:
            assert main(["inspect", str(run_copy)]) in (0, 1, 2)
            printed = capsys.readouterr()
            assert printed.err.count("\n") <= 1 and "Traceback" not in printed.out
    assert clear > 20


STREAM = ("stateful_callbacks", "CoverageCallback", "attributes")
HISTORY = ("stateful_callbacks", "ForgettingCallback", "attributes", "history")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("global_step",), "4", r'at global_step: found "4", expected a whole number'),
        (("global_step",), 9, "next_sample: found 8, fewer than 9 steps take"),
        (("log_history", 0, "step"), None, r"at log_history\[0\]: found null"),
        (("stateful_callbacks",), None, "at stateful_callbacks: found null, expected an object"),
        ((*STREAM, "sources"), [], "sources: found no source"),
        ((*STREAM, "sources", 1, "weight"), float("nan"), r"sources\[1\].weight: found NaN"),
        ((*STREAM, "sources", 1, "weight"), -1, r"sources\[1\].weight: found -1, expected a number of 0 or more"),
        ((*STREAM, "weights"), [1.0], "weights: found 1 for 2 sources"),
        ((*STREAM, "events"), [{"sample": 99, "changes": {}}], r"events\[0\].sample: found 99, expected 0 to 8"),
        ((*STREAM, "events"), [{"sample": 4, "changes": {}}, {"sample": 2, "changes": {}}], "found 2, expected 4 to 8"),
        ((*STREAM, "events"), [{"sample": 4}], r"events\[0\]: expected an event"),
        ((*STREAM, "events"), [{"sample": 4, "weights": [1]}], r"events\[0\].weights: found 1 for 2"),
        ((*STREAM, "events"),
         [{"sample": 4, "appended": {"source": 2, "tokens": 9, "shards": 1, "fingerprint": ""}}],
         r"events\[0\].appended.source: found 2, and there are 2"),
        ((*STREAM, "curriculum"), [[5, 8], [0, 16]], "curriculum: found a list of 2, expected stages"),
        ((*HISTORY, 1, "step"), 0, r"history\[1\].step: found 0 after 0"),
        ((*HISTORY, 1, "sets"), {}, r"history\[1\].sets: found other sets"),
        ((*HISTORY, 1, "sets", "domain", "delta_error"), -1, "domain.delta_error: found -1"),
        ((*HISTORY, 1, "sets", "domain", "state"), "fine", 'domain.state: found "fine", expected "target" or'),
    ],
)  # fmt: skip
def test_a_state_that_nothing_can_resume_from_is_refused(run_copy, place, value, words):
    path = run_copy / "checkpoint-4" / "trainer_state.json"
    content = json.loads(path.read_text())
    inside = content
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=words):
        read_state(path.parent)
    assert last_complete_checkpoint(run_copy)[0].name == "checkpoint-2"
