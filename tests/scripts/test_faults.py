"""Damaged, absurd and hostile input gives one clear line or a right result; what is stopped can be done again."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.processes import Command

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import faults


def campaign(*arguments: str, fresh: bool = False) -> list[dict]:
    """The outcomes of a campaign in which nothing was a fault."""
    process = Command([*arguments, "--json"], script=faults.__file__, apart=True, fresh=fresh)
    code = process.wait()
    outcomes = [json.loads(line) for line in process.output().splitlines()]
    assert [one for one in outcomes if one["verdict"] in faults.FAULTS] == []
    assert code == 0, process.errors()
    return outcomes


def test_a_few_of_each_kind():
    """But of the hub, which needs an interpreter of its own."""
    kinds = [kind for kind in faults.KINDS if kind not in ("hub", "pairs", "disks")]
    outcomes = campaign("--tries", "2", "--kinds", *kinds)
    assert {one["kind"] for one in outcomes} == set(kinds)
    assert {one["verdict"] for one in outcomes} == set(faults.GOOD)


@pytest.mark.slow
def test_the_whole_campaign(monkeypatch):
    monkeypatch.setattr("tests.processes.WAIT", 3_600)
    outcomes = campaign("--seed", "3", "--minutes", "20", fresh=True)
    assert sum(one["kind"] == "pairs" for one in outcomes) >= 10


@pytest.mark.parametrize(
    ("code", "err", "verdict"),
    [
        (2, "mypt verify: data/x.json is damaged; copy it again\n", "clear"),
        (2, "mypt verify: it is damaged\n", "unclear"),
        (2, "reading\nmypt verify: no.\nmypt verify: x.json is damaged\n", "unclear"),
        (2, "mypt verify: \x1b[31mx.json is damaged\n", "unclear"),
        (2, "Traceback (most recent call last):\nmypt verify: x.json\n", "traceback"),
        (70, "ValueError: x.json\n", "traceback"),
        (-11, "", "traceback"),
        (None, "", "hung"),
        (0, "", "silent"),
    ],
)
def test_what_a_command_did_is_told_apart(tmp_path, code, err, verdict):
    tried = faults.Try(SimpleNamespace(trial=tmp_path), random.Random(1))
    verify = faults.CASES["verify"]
    outcome = tried.judge(verify, "damage", faults.Ended(code, "", err), ["x.json"], lambda: "another result")
    assert outcome.verdict == verdict


def test_a_changed_file_is_lost_and_a_new_one_may_be_code(tmp_path):
    (tmp_path / "here" / "new").mkdir(parents=True)
    (tmp_path / "here" / "kept").write_text("a")
    tried = faults.Try(SimpleNamespace(trial=tmp_path), random.Random(1))
    tried.ready()
    verify, ended = faults.CASES["subset"], faults.Ended(0, "", "")
    (tmp_path / "here" / "new" / "result").write_text("b")
    assert tried.judge(verify, "", ended, [], lambda: "").verdict == "right"
    (tmp_path / "here" / "kept").write_text("b")
    assert tried.judge(verify, "", ended, [], lambda: "").verdict == "lost"
    (tmp_path / faults.CANARY).write_text("")
    assert tried.judge(verify, "", ended, [], lambda: "").verdict == "ran"
