"""Which trials are re-run and how, what is kept of the runs, and a real confirmation that survives kill -9."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mypt.errors import CheckFailed, MyPTError
from mypt.sweeps.confirm import (
    Confirmation,
    Look,
    Rerun,
    best_trials,
    confirm,
    confirmed,
    grown,
    plan_reruns,
    read_confirmation,
    require_options,
    write_confirmation,
)
from mypt.sweeps.record import SweepRecord, TrialRecord, read_record, write_record


def trial(number: int, objective: float | None, state: str = "completed", **changes) -> TrialRecord:
    ended = TrialRecord(
        number=number, state=state, reason="max_steps", message="", overrides={"training.learning_rate": 10**-number},
        params={"training.learning_rate": 10**-number}, objective=objective, standard_error=None, values=[], step=10,
        max_steps=10, best_step=10, seconds=1.0, cpu_seconds=1.0, attempts=1, device="cpu 0", folder=f"trials/{number}",
    )  # fmt: skip
    return replace(ended, **changes)


def record_of(recipe: Path, trials: list[TrialRecord], **changes) -> SweepRecord:
    sweep = SweepRecord(
        recipe=str(recipe), trial_recipe=str(recipe), type="random", objective="constrained", pruner="none",
        space={"training.learning_rate": {"log": [1e-9, 1.0]}}, study="sweep", storage="", seed=42, samples=100,
        full_samples=300, tokens=1_000, full_tokens=3_000, full_data={"data/full": 1.0}, full_steps=30, passes=1.0,
        trials=trials,
    )  # fmt: skip
    return replace(sweep, **changes)


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "unused", training={"max_steps": 2, "seed": 7})))
    return path


def test_only_trials_that_kept_their_guards_are_candidates(recipe):
    trials = [trial(0, 2.0), trial(1, 1000.3), trial(2, None, "failed"), trial(3, 1.5), trial(4, 1.7, "pruned"),
              trial(5, math.nan), trial(6, 1.9), trial(7, 1.6, overrides=trial(3, 0).overrides)]  # fmt: skip
    record = record_of(recipe, trials)
    assert [one.number for one in best_trials(record, 2)] == [3, 6]
    assert [one.number for one in best_trials(record, 9)] == [3, 6, 0]
    with pytest.raises(CheckFailed, match="at least two trials; 1 of 2 trials"):
        best_trials(record_of(recipe, [trial(0, 2.0), trial(1, None, "failed")]), 3)


def test_reruns_see_the_data_as_often_as_the_trial_did(recipe, tmp_path):
    lengths = {"training.max_steps": 10, "training.warmup_steps": 3, "training.eval_steps": 0.1,
               "data.curriculum": {"start_length": 8, "steps": 4}}  # fmt: skip
    record = record_of(recipe, [trial(0, 1.0, overrides=lengths), trial(1, 2.0)])
    full = plan_reruns(record, tmp_path, top=2, seeds=2, samples=300)
    assert [(run.seed, run.trial) for run in full] == [(8, 0), (8, 1), (9, 0), (9, 1)]  # not the sweep's own seed, 7
    assert full[0].overrides == {
        "training.max_steps": 30, "training.warmup_steps": 9, "training.eval_steps": 0.1,
        "data.curriculum": {"start_length": 8, "steps": 12}, "training.seed": 8,
    }  # fmt: skip
    assert plan_reruns(record, tmp_path, 2, 1, samples=150)[0].overrides["training.max_steps"] == 15
    assert plan_reruns(record, tmp_path, 2, 1, samples=100)[0].overrides["training.max_steps"] == 10
    assert len({run.folder for run in full}) == 4
    lengths |= {"training.max_steps": 25_000, "training.warmup_steps": 2_500}
    small = [trial(n, 1.0 + n, overrides=lengths | {"n": n}, params={"configuration": "small_fast"}) for n in (0, 1)]
    found = plan_reruns(record_of(recipe, small, type="predefined"), tmp_path, 2, 1, samples=300)[0].overrides
    assert found["training.max_steps"] == 50_000 and found["training.warmup_steps"] == 5_000
    assert grown("training.learning_rate", 10, 3) == 10 and grown("training.warmup_steps", 0.1, 3) == 0.1


def test_options_that_no_sweep_can_be_confirmed_with_are_refused(recipe, tmp_path):
    assert require_options(2, 1, None, "random", 100, 300) == 300
    assert require_options(2, 1, 100, "predefined", 100, 300) == 100
    for top, seeds, samples, kind, words in (
        (1, 3, None, "random", "--confirm is 1, expected 2"),
        (2, 0, None, "random", "--confirm-seeds is 0, expected 1"),
        (2, 3, 99, "random", "from 100"),
        (2, 3, 301, "random", "to 300"),
        (2, 3, 200, "predefined", "give one of the two"),
    ):
        with pytest.raises(MyPTError, match=words):
            require_options(top, seeds, samples, kind, 100, 300)
    running = record_of(recipe, [trial(0, 1.0), trial(1, 2.0), trial(2, None, "running")])
    with pytest.raises(CheckFailed, match="1 trials run elsewhere"):
        confirm(running, tmp_path, top=2, seeds=2, devices=[], tell=print)


def run_of(number: int, seed: int, objective: float | None, state="completed", samples=300) -> Rerun:
    return Rerun(number, seed, samples, {}, "", state=state, objective=objective, reason="max_steps")


def test_each_new_look_is_held_to_a_stricter_level(recipe):
    record = record_of(recipe, [trial(0, 1.0), trial(1, 2.0), trial(2, 3.0)])
    saved = Confirmation()
    for number, losses in enumerate([(1.0, 1.1, 1.2), (2.0, 2.2, 2.1), (3.0, 3.0, 3.1)]):
        for seed, loss in enumerate(losses):
            saved = saved.with_run(run_of(number, seed, loss))
    two, three = Look(300, [0, 1, 2], 2), Look(300, [0, 1, 2], 3)
    saved = saved.seen(two).seen(three).seen(two).seen(Look(100, [0, 1], 2))
    assert [saved.number(look) for look in (two, three, Look(100, [0, 1], 2))] == [1, 2, 1]
    first, second = confirmed(record, saved, two), confirmed(record, saved, three)
    assert first.runs["trial 0"] == {0: 1.0, 1: 1.1} and (first.verdict.level, second.verdict.level) == (0.025, 0.0125)
    assert second.verdict.winner == "trial 0" and second.agreement.kendall == 1


def test_a_lost_guard_and_a_failed_run_count_as_failed(recipe):
    record = record_of(recipe, [trial(0, 1.0), trial(1, 2.0)])
    saved = Confirmation()
    for run in (run_of(0, 1, 1000.2), run_of(0, 2, 1.0), run_of(1, 1, 2.0), run_of(1, 2, None, "failed")):
        saved = saved.with_run(run)
    found = confirmed(record, saved.seen(look := Look(300, [0, 1], 2)), look)
    assert found.runs == {"trial 0": {1: None, 2: 1.0}, "trial 1": {1: 2.0, 2: None}} and found.verdict.winner is None


def test_what_is_known_of_the_runs_survives_and_failures_are_tried_again(tmp_path):
    saved = Confirmation().with_run(run_of(0, 1, 1.0)).with_run(run_of(1, 1, None, "failed"))
    saved = saved.with_run(replace(run_of(2, 1, None, "failed"), reason="diverged")).seen(Look(300, [0, 1], 1))
    (tmp_path / "confirm").mkdir()
    write_confirmation(tmp_path, saved)
    again = read_confirmation(tmp_path)
    assert again == saved and [again.has(run) for run in saved.runs] == [True, False, True]
    (tmp_path / "confirm" / "confirm.json").write_text('{"runs": [1')
    with pytest.raises(MyPTError, match=r"confirm\.json is damaged"):
        read_confirmation(tmp_path)


SCRIPT = """
import sys
from pathlib import Path
from mypt.sweeps.confirm import confirm
from mypt.sweeps.record import read_record
from mypt.sweeps.sweep import cpu_workers
folder = Path(sys.argv[1])
print(confirm(read_record(folder), folder, top=2, seeds=2, devices=cpu_workers(2), tell=print).verdict.reason)
"""


@pytest.mark.slow
def test_a_confirmation_that_is_killed_goes_on_where_it_was(recipe, corpora, tmp_path):
    """pytest tests/sweeps/test_confirm.py -m slow: 4 real runs, kill -9 of the whole after the first."""
    lengths = {"training.max_steps": 2, "training.eval_steps": 1, "training.save_steps": 1}
    rates = [trial(n, 3.0 + n, overrides={"training.learning_rate": 10.0 ** (-2 - n)} | lengths) for n in (0, 1)]
    domain, general = (str(corpora / name) for name in ("domain", "general"))
    write_record(tmp_path, record_of(recipe, rates, full_data={domain: 0.5, general: 0.5}))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    path = tmp_path / "confirm" / "confirm.json"
    until = time.monotonic() + 120
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = json.loads(path.read_text())["runs"]
    assert 1 <= len(before) < 4
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert f"4 runs, {len(before)} of them done" in done.stdout and "winner: " in done.stdout
    found = read_confirmation(tmp_path)
    assert sorted((run.trial, run.seed) for run in found.runs) == [(0, 8), (0, 9), (1, 8), (1, 9)]
    assert all(run.loss is not None and run.step == 6 for run in found.runs)  # 2 steps x 3
    assert [vars(run)["seconds"] for run in found.runs][: len(before)] == [run["seconds"] for run in before]
    assert read_record(tmp_path).trials[0].objective == 3.0
