"""metrics.jsonl is Trainer's log, line for line, across resumes; the curves are drawn where matplotlib is."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mypt.errors import MyPTError
from mypt.training.callbacks import pictures as curves
from mypt.training.callbacks.forgetting import ForgettingCallback
from mypt.training.callbacks.metrics import METRICS_NAME, MetricsCallback
from mypt.training.callbacks.pictures import PAUSE, Pace, draw_what_ends_it, plot_forgetting, plot_loss, smoothed

pytestmark = pytest.mark.plots
PNG = b"\x89PNG"


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]


def test_one_line_per_log_entry_and_no_step_twice_after_a_resume(make_trainer, tmp_path):
    run = tmp_path / "run"
    trainer = make_trainer([MetricsCallback()], max_steps=5)
    trainer.train()
    assert lines(run) == trainer.state.log_history
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 3, 4, 5]
    assert (run / "loss.png").read_bytes().startswith(PNG)

    # the last checkpoint but one is at step 3: steps 4 and 5 are trained again
    resumed = make_trainer([MetricsCallback()], max_steps=6)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert Counter(line["step"] for line in lines(run) if "loss" in line) == Counter(range(1, 7))
    assert lines(run) == resumed.state.log_history


def test_between_the_saves_a_pause_and_at_the_end_a_picture(make_trainer, eval_sets, monkeypatch):
    drawn = []
    monkeypatch.setattr("mypt.training.callbacks.metrics.plot_loss", lambda history, path: drawn.append(path.name))
    monkeypatch.setattr("mypt.training.callbacks.forgetting.plot_forgetting", lambda _, path: drawn.append(path.name))
    for pause, pictures in ((PAUSE, 1), (0.0, 5)):
        monkeypatch.setattr(curves, "PAUSE", pause)
        make_trainer([ForgettingCallback(eval_sets), MetricsCallback()], max_steps=4, save_steps=1).train()
        assert drawn == ["forgetting.png", "loss.png"] * pictures
        drawn.clear()


def test_a_pause_is_of_thirty_seconds(monkeypatch):
    clock = iter([0.0, 29.9, 30.0, 59.9, 60.0])
    monkeypatch.setattr(curves.time, "monotonic", lambda: next(clock))
    pace = Pace()
    assert [pace.due() for _ in range(4)] == [False, True, False, True]


def test_an_error_that_ends_the_training_leaves_the_curves(make_trainer, eval_sets, tmp_path):
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise MyPTError("the loss became nan")

    trainer = make_trainer([ForgettingCallback(eval_sets), MetricsCallback(), Breaks()], max_steps=3)
    with pytest.raises(MyPTError), draw_what_ends_it(trainer):
        trainer.train()
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"forgetting.png", "loss.png"}

    for path in (tmp_path / "run").glob("*.png"):
        path.unlink()
    early = make_trainer([ForgettingCallback(eval_sets), MetricsCallback()], max_steps=3)
    with pytest.raises(MyPTError), draw_what_ends_it(early):
        raise MyPTError("declined before anything was trained")
    assert not [*(tmp_path / "run").glob("*.png")]


def test_a_number_that_is_not_finite_is_null(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none")
    state, control, callback = TrainerState(), TrainerControl(), MetricsCallback()
    state.log_history = [{"loss": float("nan"), "step": 1}]
    callback.on_train_begin(args, state, control)
    state.global_step = 2
    callback.on_log(args, state, control, logs={"loss": 1.5, "grad_norm": float("inf")})
    text = (tmp_path / "run" / METRICS_NAME).read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert lines(tmp_path / "run") == [{"loss": None, "step": 1}, {"loss": 1.5, "grad_norm": None, "step": 2}]


def test_curves_of_few_or_no_points_are_drawn_in_silence(tmp_path, capsys):
    plot_loss([], tmp_path / "empty.png")
    plot_loss([{"loss": 1.0, "step": 1}, {"eval_a_loss": 2.0, "step": 1}], tmp_path / "one.png")
    reading = {"delta": 0.1, "delta_error": 0.0}
    report = {"history": [{"step": 0, "sets": {"a": reading}}], "target": "a", "guard": [], "tolerance": 0.05}
    plot_forgetting(report, tmp_path / "forgetting.png")
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert capsys.readouterr().err == ""


def test_smoothing_keeps_a_straight_line_and_takes_noise_away():
    line = [5 - 0.01 * step for step in range(300)]
    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    zigzag = smoothed([3 + 0.1 * (-1) ** step for step in range(300)])
    assert max(abs(loss - 3) for loss in zigzag) <= 0.1 / 11 + 1e-9
    assert smoothed([1.0, 2.0]) == [1.0, 2.0] and smoothed([]) == []


WITHOUT_MATPLOTLIB = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
from mypt.training.callbacks.pictures import plot_forgetting, plot_loss
plot_loss([{"loss": 1.0, "step": 1}], Path(sys.argv[1]))
plot_forgetting({}, Path(sys.argv[1]))
"""


def test_without_matplotlib_there_is_no_curve_and_no_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB, str(tmp_path / "loss.png")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "loss.png").exists()


def test_the_forgetting_measurements_are_logged_too(eval_sets, make_trainer, tmp_path):
    trainer = make_trainer([ForgettingCallback(eval_sets, eval_steps=3), MetricsCallback()], max_steps=3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_general_loss" in entry]
    assert [entry["step"] for entry in entries] == [0, 3]
    assert all("forgetting/general_delta" in entry for entry in entries)
