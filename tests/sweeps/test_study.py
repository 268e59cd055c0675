"""A study that processes share: every trial ends once, whoever is killed, in a journal, in SQLite and in PostgreSQL."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from mypt.errors import MyPTError
from mypt.sweeps.space import Space
from mypt.sweeps.study import Search, Study, without_password

SPACE = Space({"training.learning_rate": FloatDistribution(1e-4, 1e-2, log=True)})


def search(**changes) -> Search:
    return Search(
        **{"type": "optimized", "space": SPACE, "configurations": {}, "pruner": "asha", "seed": 42, "trials": 8}
        | changes
    )


# A worker that only pretends to train: it claims, waits and finishes. Prints `claimed N` and `ended N`.
WORKER = """
import json, os, sys, time
from optuna.distributions import FloatDistribution
from mypt.sweeps.space import Space
from mypt.sweeps.study import Search, Study
url, trials, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
space = Space({"training.learning_rate": FloatDistribution(1e-4, 1e-2, log=True)})
study = Study(url, "sweep", Search("optimized", space, {}, "asha", 42, trials))
while True:
    claimed = study.claim()
    if claimed is None and not study.has_unknown():
        break
    if claimed:
        print("claimed", claimed.number, flush=True)
        study.report(claimed, 30, claimed.params["training.learning_rate"])
        time.sleep(seconds)
        study.finish(claimed, "completed", claimed.params["training.learning_rate"], reason="max_steps")
        print("ended", claimed.number, flush=True)
"""


def worker(url: str, trials: int, seconds: float, out: Path) -> subprocess.Popen:
    with open(out, "w") as file:
        words = [sys.executable, "-c", WORKER, url, str(trials), str(seconds)]
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def numbers(out: Path, word: str) -> list[int]:
    return [int(line.split()[1]) for line in out.read_text().splitlines() if line.startswith(f"{word} ")]


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else str(tmp_path / "study.journal")


@pytest.mark.slow
def test_processes_that_begin_together_share_the_trials_and_outlive_a_killed_one(url, tmp_path):
    outs = [tmp_path / f"{number}.out" for number in range(2 + ("://" in url))]
    processes = [worker(url, 6, 0.05 if index else 60, out) for index, out in enumerate(outs)]
    while not numbers(outs[0], "claimed"):
        assert processes[0].poll() is None, outs[0].read_text()
        time.sleep(0.01)
    processes[0].kill()  # in the middle of its trial
    processes[0].wait()
    assert not any(process.wait() for process in processes[1:]), [out.read_text() for out in outs]
    final = worker(url, 6, 0, tmp_path / "final.out")  # where the others had ended before the kill
    assert final.wait() == 0
    ended = Counter(number for out in [*outs, tmp_path / "final.out"] for number in numbers(out, "ended"))
    assert ended == Counter(range(6)), [out.read_text() for out in outs]
    study = Study(url, "sweep", search(trials=6))
    entries = study.entries()
    assert [entry.user_attrs["trial"] for entry in entries] == [*range(6)]
    assert {entry.state.name for entry in entries} == {"COMPLETE"}
    rates = [entry.params["training.learning_rate"] for entry in entries]
    assert len({*rates}) == 6  # no two processes drew the same
    storage = optuna.load_study(study_name="sweep", storage=study._storage)
    lost = [entry for entry in storage.trials if entry.user_attrs.get("gone") == "lost"]
    [number] = numbers(outs[0], "claimed")
    assert [entry.user_attrs["trial"] for entry in lost] == [number]
    assert entries[number].params == lost[0].params  # the same trial, not another one


def test_values_follow_from_the_seed_and_the_number_of_the_trial(tmp_path):
    def values(name: str, **changes) -> list[dict]:
        study = Study(str(tmp_path / name), "sweep", search(type="random", **changes))
        found = []
        while claimed := study.claim():
            found.append(claimed.params)
            study.finish(claimed, "completed", 1.0)
        return found

    first = values("first")
    assert values("second") == first and values("third", seed=43) != first
    assert values("first", trials=10)[:2] not in (
        first[:2],
        [],
    )  # two more trials of the same study, with values of their own


def test_a_study_of_another_sweep_is_refused_by_what_differs(tmp_path):
    facts = {"data": ["aa"], "sweep.seed": 42}
    Study(str(tmp_path / "journal"), "sweep", search()).agree(facts)
    study = Study(str(tmp_path / "journal"), "sweep", search())
    study.agree(facts)
    with pytest.raises(MyPTError, match="made with another data: restore it"):
        study.agree(facts | {"data": ["bb"]})


def test_an_interrupted_trial_is_run_again_with_its_values(tmp_path):
    study = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    claimed = study.claim()
    assert study.claim() is None
    study.report(claimed, 30, 1.0)
    study.finish(claimed, "interrupted", None)
    again = Study(str(tmp_path / "journal"), "sweep", search(trials=1)).claim()
    assert (again.number, again.params) == (claimed.number, claimed.params)
    assert not study.has_unknown()


def test_a_worker_learns_that_its_trial_was_taken_over(tmp_path):
    study = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    claimed = study.claim()
    study.beat(claimed)
    assert not claimed.stop.is_set()
    assert study._give_up(study.entries()[0], "lost")
    study.beat(claimed)
    assert claimed.stop.is_set()
    study.finish(claimed, "pruned", None)  # too late: without effect
    assert [(entry.state.name, entry.user_attrs.get("ended")) for entry in study.entries()] == [("FAIL", None)]


def test_a_process_elsewhere_is_dead_after_its_silence(tmp_path, monkeypatch):
    """Its pid says nothing here; it must change its entry while this process watches."""
    study = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    study._owner = study._owner | {"host": "elsewhere"}
    claimed = study.claim()
    here = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    monkeypatch.setattr("mypt.sweeps.study.SILENCE", 0.2)
    assert here.has_unknown() and here.claim() is None
    study.beat(claimed)
    assert not here.has_unknown()  # it lives
    again = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    assert again.has_unknown()
    time.sleep(0.25)
    assert here.has_unknown(), "it lived, and was silent since"
    assert again.claim().params == claimed.params


def test_a_trial_whose_next_entry_was_never_added_gets_one(tmp_path, monkeypatch):
    """The process that gave an entry up was killed before it could add the next one."""
    study = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    claimed = study.claim()
    assert study._give_up(study.entries()[0], "lost")
    here = Study(str(tmp_path / "journal"), "sweep", search(trials=1))
    assert here.claim() is None and here.has_unknown()  # it may only be slow
    monkeypatch.setattr("mypt.sweeps.study._PATIENCE", 0.1)
    time.sleep(0.15)
    assert here.claim().params == claimed.params


def test_the_best_third_continues_and_the_rest_is_pruned(tmp_path):
    """ASHA with a reduction factor of 3: of the trials that reached a rung, those in the best third continue."""
    study = Study(str(tmp_path / "journal"), "sweep", search(trials=7))
    pruned = []
    for loss in (3.0, 2.0, 4.0, 1.0, 3.5, 1.5, 0.5):
        claimed = study.claim()
        pruned.append(study.report(claimed, 30, loss))
        study.finish(claimed, "pruned" if pruned[-1] else "completed", loss)
    assert pruned == [False, False, True, False, True, False, False]
    close = Study(str(tmp_path / "close"), "sweep", search(trials=4))
    claims = [close.claim() for _ in range(4)]
    losses = (2.0, 2.019, 2.021, 2.0)
    assert [close.report(*pair) for pair in zip(claims, [30] * 4, losses, strict=True)] == [False, False, True, False]
    nan = Study(str(tmp_path / "journal"), "sweep", search(trials=8))
    claimed = nan.claim()
    assert nan.report(claimed, 30, float("nan")), "a loss that is no number is the worst"


def test_a_journal_with_a_torn_end_is_read_and_goes_on(tmp_path):
    path = tmp_path / "journal"
    study = Study(str(path), "sweep", search(trials=2))
    study.finish(study.claim(), "completed", 1.0)
    with open(path, "ab") as file:
        file.write(b'{"op_code": 4, "worker_')
    study = Study(str(path), "sweep", search(trials=2))
    study.finish(study.claim(), "completed", 2.0)
    assert [entry.value for entry in Study(str(path), "sweep", search(trials=2)).entries()] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@127.0.0.1:1/db", "refused"),
        ("nonsense://x", "nonsense"),
        ("sqlite:////proc/nowhere/study.db", "unable to open"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_a_password(url, words):
    with pytest.raises(MyPTError) as error:
        Study(url, "sweep", search())
    assert words in str(error.value) and "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_password_is_not_shown():
    assert without_password("postgresql://me:secret@host:5/db") == "postgresql://me@host:5/db"
    assert without_password("sqlite:///study.db") == "sqlite:///study.db"
    assert without_password("runs/study.journal") == "runs/study.journal"
