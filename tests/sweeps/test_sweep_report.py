"""The report of a sweep: what report.json holds, what is printed, and the pictures."""

import json
import math
import sys
from dataclasses import replace

import pytest

from mypt.sweeps.confirm import FOLDER, Confirmation, Look, Rerun, write_confirmation
from mypt.sweeps.pictures import Line, varied
from mypt.sweeps.record import SweepRecord, TrialRecord
from mypt.sweeps.sweep_report import PICTURES, build_report, curve_of, importance_of, print_report, write_report

RATE, DROPOUT, ORDER = "training.learning_rate", "model.hidden_dropout", "data.train_order"


@pytest.fixture
def sweep(tmp_path) -> SweepRecord:
    """12 trials whose loss is the distance of log10(rate) from -2.5; two were pruned, one failed, one lost a guard."""
    trials = []
    for number in range(12):
        params = {
            RATE: 10 ** (-4 + number / 4),
            DROPOUT: [0.0, 0.1, 0.2][number % 3],
            ORDER: ["a", {"b": 1}][number % 2],
        }
        folder = tmp_path / "trials" / f"{number:04}"
        folder.mkdir(parents=True)
        loss = 2 + abs(math.log10(params[RATE]) + 2.5)
        entries = [{"step": step, "eval_constrained_loss": loss + 5 / (1 + step)} for step in (0, 5, 10)]
        text = "".join(json.dumps(entry) + "\n" for entry in [*entries, {"step": 10, "loss": 1.0}])
        (folder / "metrics.jsonl").write_text(text + '{"step": 11, "eval_con')
        state = {2: "pruned", 4: "pruned", 11: "failed"}.get(number, "completed")
        objective = {9: 1000.4}.get(number, loss) if state == "completed" else None
        trials.append(
            TrialRecord(number, state, "max_steps" if state == "completed" else "error", "", dict(params), params,
                        objective, 0.01, [], 10, 10, 10, 1.5, 1.0, 1, "cpu 0", str(folder))
        )  # fmt: skip
    space = {RATE: {"log": [1e-5, 1.0]}, DROPOUT: {"range": [0.0, 0.3]}, ORDER: ["a", {"b": 1}]}
    return SweepRecord(
        recipe="recipe.yaml", trial_recipe="trial.yaml", type="random", objective="constrained", pruner="asha",
        space=space, study="sweep", storage="", seed=42, samples=100, full_samples=300, tokens=1_000, full_tokens=3_000,
        full_data={"data/full": 1.0}, full_steps=30, passes=1.0, trials=trials,
    )  # fmt: skip


@pytest.fixture
def confirmed_sweep(sweep, tmp_path):
    """The same with re-runs of the best three, which tell them apart."""
    saved = Confirmation()
    for trial, loss in ((6, 1.5), (7, 1.8), (5, 1.9)):
        for seed in (43, 44, 45):
            run = Rerun(trial, seed, 300, {}, "", state="completed", objective=loss + 0.001 * (seed % (trial - 3)))
            saved = saved.with_run(run)
    (tmp_path / FOLDER).mkdir()
    write_confirmation(tmp_path, saved.seen(Look(300, [6, 7, 5], 3)))
    return sweep


def test_the_best_trial_comes_first_and_nothing_is_named_without_repeats(sweep, tmp_path):
    report = build_report(sweep, None)
    assert report["best"] == 6 and [one["number"] for one in report["trials"]][:3] == [6, 5, 7]
    assert report["completed"] == 8 and report["states"] == {"completed": 9, "failed": 1, "pruned": 2}
    assert report["confirmation"] is None and "seed noise is unknown until --confirm" in report["verdict"]
    nothing = replace(sweep, trials=[replace(trial, objective=1000.5) for trial in sweep.trials])
    assert build_report(nothing, None)["verdict"] == "no winner: no trial completed with its guards kept"


def test_importance_finds_the_parameter_that_decides(sweep):
    shares = importance_of(sweep)
    assert shares.keys() == {RATE, DROPOUT, ORDER} and sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == RATE
    assert importance_of(replace(sweep, trials=sweep.trials[:4])) is None  # too few that completed
    assert importance_of(replace(sweep, space={})) is None  # predefined configurations


def test_a_report_is_strict_json_lines_and_four_pictures(confirmed_sweep, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report = write_report(tmp_path, confirmed_sweep)
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved == json.loads(json.dumps(report))
    found = saved["confirmation"]
    assert found["winner"] == found["candidates"][0]["name"] == "trial 6" and found["seeds"] == [43, 44, 45]
    assert found["agreement"]["kendall"] == pytest.approx(2 / math.sqrt(6)) and found["noise"]["degrees"] == 6
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    print_report(tmp_path, confirmed_sweep, report)
    shown = capsys.readouterr().out
    for part in (
        "importance (PED-ANOVA of 8 trials): training.learning_rate",
        "Re-runs on all 300 samples",
        "Kendall +0.82 (95% interval",
        "seed noise: 0.0011 nats",  # the squares add up to 7.333e-6, over 6
        "winner: trial 6 leads",
        "report.json, parallel.png",
    ):
        assert part in shown, part


def test_the_command_that_would_settle_it_is_printed(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    saved = Confirmation()
    for trial, losses in ((6, (1.50, 1.60)), (7, (1.53, 1.61))):
        for seed, loss in enumerate(losses):
            saved = saved.with_run(Rerun(trial, seed, 300, {}, "", state="completed", objective=loss))
    (tmp_path / FOLDER).mkdir()
    write_confirmation(tmp_path, saved.seen(Look(300, [6, 7], 2)))
    report = write_report(tmp_path, sweep)
    print_report(tmp_path, sweep, report)
    more = report["confirmation"]["more_repeats"]
    assert more and f"{more} more repeats of each would settle" in report["verdict"]
    assert f"--confirm-seeds {2 + more} adds them" in capsys.readouterr().out


def test_without_matplotlib_there_is_a_report_without_pictures(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    print_report(tmp_path, sweep, write_report(tmp_path, sweep))
    assert not list(tmp_path.glob("*.png")) and ".png" not in capsys.readouterr().out


def test_a_sweep_in_which_nothing_ended_is_reported(sweep, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    waiting = [replace(t, state="waiting", objective=None, params={}, overrides={}) for t in sweep.trials]
    for trials in (waiting, sweep.trials[2:3]):
        record = replace(sweep, trials=trials)
        print_report(tmp_path, record, write_report(tmp_path, record))
        assert "no winner: no trial completed" in capsys.readouterr().out


def test_curves_hold_evaluations_that_kept_the_guards(tmp_path):
    lines = [{"step": 0, "eval_constrained_loss": 3.0}, {"step": 5, "eval_constrained_loss": 1000.2},
             {"step": 10, "eval_constrained_loss": None}, {"step": 15, "eval_constrained_loss": 2.0}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\nnot json")
    assert curve_of(tmp_path) == ([0, 15], [3.0, 2.0])
    assert curve_of(tmp_path / "absent") == ([], [])


def test_only_parameters_that_differ_are_shown():
    lines = [Line("a", {"x": 1, "y": 2}), Line("b", {"x": 1, "y": 3, "z": 0})]
    assert varied(lines) == ["y", "z"] and varied([]) == []
