"""A run as a process: its ending, its log, its metrics, and that it dies with the one who started it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from mypt.errors import Interrupted
from mypt.folders import is_alive
from mypt.recipe import load_recipe
from mypt.sweeps.trial import LOG_NAME, Metrics, as_override, run_trial, stop_on_signal
from mypt.yaml12 import load_yaml


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """The file of a recipe of 12 steps that are evaluated and saved at each fourth one."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "unused", training={"torch_compile": False})))
    return path


@pytest.mark.parametrize(
    "value", [1e-5, 3, 0.1, True, None, "no", "1e-3", "null", "a: b", "[", "", "ü\n", [1, 2], {"a": 0.9}, "modern-nano"]
)
def test_an_override_reads_as_its_value(value):
    assert load_yaml(as_override("section.key", value).partition("=")[2]) == value


def test_every_entry_comes_once_though_the_file_is_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics, lines = Metrics(path), [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(6)]
    assert metrics.new() == []
    path.write_text("".join(lines[:3]) + lines[3][:7])
    assert [entry["step"] for entry in metrics.new()] == [0, 1, 2]
    path.write_text("".join(lines[:4]))
    assert [entry["step"] for entry in metrics.new()] == [3]
    path.write_text(lines[0].replace("1.0", "2.0") + "".join(lines[1:6]))  # a resume of an earlier step
    assert [entry["step"] for entry in metrics.new()] == [4, 5]
    assert metrics.last_step == 5 and metrics.new() == []


@pytest.mark.slow
def test_a_run_is_pruned_after_its_checkpoint_and_resumed_to_its_end(recipe, tmp_path):
    seen = []

    def prune(entry):
        seen.append(entry)
        return "eval_constrained_loss" in entry and entry["step"] == 4

    folder, overrides = tmp_path / "trial", {"training.learning_rate": 1e-3, "training.max_steps": 4000}
    ended = run_trial(recipe, overrides, folder, on_metrics=prune)
    assert (ended.state, ended.reason) == ("pruned", "pruned"), ended
    assert 4 <= ended.step < 4000 and (folder / f"checkpoint-{ended.step}").is_dir()
    assert ended.objective is None and ended.cpu_seconds > 0
    assert load_recipe(folder).training["learning_rate"] == 1e-3
    assert len([entry for entry in seen if entry["step"] == 4 and "eval_constrained_loss" in entry]) == 1
    last = ended.step + 2
    ended = run_trial(recipe, overrides | {"training.max_steps": last}, folder, env={"OMP_NUM_THREADS": "1"})
    assert (ended.state, ended.exit_code, ended.step) == ("completed", 0, last), ended
    assert ended.objective == pytest.approx(json.loads((folder / "result.json").read_text())["objective"])
    assert (folder / LOG_NAME).read_text().count("$ mypt train ") == 2


def test_a_refused_recipe_says_why(recipe, tmp_path):
    ended = run_trial(recipe, {"data.blok_size": 3}, tmp_path / "trial")
    assert (ended.state, ended.exit_code) == ("refused", 2)
    assert "did you mean 'block_size'" in ended.message


PARENT = """
import sys
from mypt.sweeps.trial import run_trial
run_trial(sys.argv[1], {"training.max_steps": 10000}, sys.argv[2])
"""


@pytest.mark.slow
def test_it_dies_with_a_killed_parent_and_resumes(recipe, tmp_path):
    folder = tmp_path / "trial"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(recipe), str(folder)])
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.05)
        assert parent.poll() is None
    child = json.loads((folder / ".mypt.lock").read_text())
    child = child["pid"], child["process_started"]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while is_alive(*child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(*child)
    stop = threading.Event()
    stop.set()
    ended = run_trial(recipe, {"training.max_steps": 10000}, folder, stop=stop)
    assert ended.state == "interrupted" and ended.reason == "SIGTERM", ended


@pytest.mark.slow
def test_a_killed_process_is_told_from_a_failed_one(recipe, tmp_path):
    folder = tmp_path / "trial"

    def kill(entry):
        os.kill(json.loads((folder / ".mypt.lock").read_text())["pid"], signal.SIGKILL)

    ended = run_trial(recipe, {}, folder, on_metrics=kill)
    assert (ended.state, ended.reason, ended.exit_code) == ("killed", "SIGKILL", -9)
    ended = run_trial(recipe, {"training.learning_rate": 1e30, "training.max_grad_norm": 1e30}, tmp_path / "diverged")
    assert (ended.state, ended.reason) == ("failed", "diverged"), ended


def test_a_signal_sets_the_event_and_ends_the_context_and_an_ignored_one_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        stopped = pytest.raises(Interrupted, match="stopped by SIGTERM; runs are kept: the same command continues")
        with stopped, stop_on_signal("runs are kept") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
