"""`mypt sweep`: what is printed before, refused, run, killed and continued."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mypt.cli.main import main
from mypt.folders import is_alive
from mypt.recipe import load_recipe
from mypt.sweeps.record import read_record
from mypt.sweeps.trial import run_trial


def printed(capsys, *words, code: int = 0) -> str:
    assert main(["sweep", *map(str, words)]) == code
    found = capsys.readouterr()
    return found.out + found.err


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(device, words) of every command of a dry run."""
    lines = text.splitlines()
    return [
        (lines[index - 1].partition(",")[0], shlex.split(line))
        for index, line in enumerate(lines)
        if line.startswith("  ") and "mypt train" in line
    ]


def test_a_dry_run_prints_a_command_for_each_trial_and_device(sweep_recipe, capsys, tmp_path):
    recipe = sweep_recipe()
    text = printed(
        capsys, recipe, "--type", "random", "--num-random", 6, "--gpus", "0,1,2,3", "--device", "a100", "--dry-run"
    )
    assert "Limiting dataset from 36 to 12 samples" in text
    found = commands(text)
    assert [device for device, _ in found] == ["gpu 0", "gpu 1", "gpu 2", "gpu 3", "gpu 0", "gpu 1"]
    for number, (device, words) in enumerate(found):
        assert words[0] == f"CUDA_VISIBLE_DEVICES={device[-1]}" and words[1:3] == ["mypt", "train"]
        trial = load_recipe(
            words[3], [word for word in words if "." in word.partition("=")[0] and word.startswith("--")]
        )
        steps = trial.training["max_steps"]
        assert trial.training["output_dir"].endswith(f"runs/full-sweep/trials/000{number}")
        assert 20 < steps < 50 and abs(trial.training["warmup_steps"] - 0.3 * steps) <= 1  # both rounded up
        assert trial.training["eval_steps"] == trial.training["save_steps"] == -(-steps // 10)
        assert trial.sweep is None and 1e-4 <= trial.training["learning_rate"] <= 1e-2
    full, subset = map(float, re.findall(r"([\d.]+) passes over", text))
    assert full == pytest.approx(subset, rel=0.1)  # in whole steps
    assert re.search(
        r"scaled to [\d.]+% of the tokens.*training.max_steps 100 -> \d+, training.warmup_steps 30 -> ", text
    )
    assert text.count(", about ") == 6
    again = printed(capsys, recipe, "--type", "random", "--num-random", 6, "--gpus", "0,1,2,3", "--dry-run")
    assert [words for _, words in commands(again)] == [words for _, words in found]
    assert not list((tmp_path / "runs" / "full-sweep").glob("trials/*"))


def test_predefined_lengths_are_used_as_they_are(sweep_recipe, capsys):
    text = printed(capsys, sweep_recipe(), "--type", "predefined", "--workers", 2, "--dry-run")
    assert "curriculum_focus: 45,000 steps on the subset (150,000 on all data), warm-up 3,000 (10,000)" in text
    words = commands(text)[4][1]
    assert {"--training.max_steps=45000", "--training.warmup_steps=3000"} <= {*words}
    assert '--data.curriculum={"start_length": 8, "steps": 15000}' in words
    assert words[:2] == ["CUDA_VISIBLE_DEVICES=", "OMP_NUM_THREADS=1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0,0"], "different numbers"),
        (["--gpus", "0", "--workers", "1"], "give one of the two"),
        (["--workers", "0"], "expected 1 or more"),
        (["--type", "optimized", "--num-random", "3"], "--num-random is the number of trials of a random search"),
        (["--sweep.space={training.learning_rat: [1, 2]}"], "did you mean 'learning_rate'"),
        (["--sweep.pruner=ash"], "expected one of"),
        (["--data.val_fraction=0"], "name data.eval"),
        (["--training.output_dir="], "output_dir"),
        (["--device", "h1000"], "h1000"),
    ],
)
def test_bad_input_is_one_line(sweep_recipe, capsys, words, message):
    text = printed(capsys, sweep_recipe(), *words, "--dry-run", code=2)
    assert message in text.splitlines()[-1] and text.splitlines()[-1].startswith("mypt sweep: ")


def test_a_folder_of_others_is_left_alone(sweep_recipe, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "was not made by mypt sweep" in printed(capsys, sweep_recipe(), "--out", tmp_path / "mine", code=2)


def test_a_sweep_imports_no_framework(sweep_recipe):
    code = (
        "import sys; from mypt.cli.main import main; "
        "assert main(['sweep', sys.argv[1], '--workers', '1', '--dry-run']) == 0; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep_recipe())], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr


def start(recipe: Path, *words: str, out: Path) -> subprocess.Popen:
    with open(out, "a") as file:
        command = [sys.executable, "-m", "mypt", "sweep", str(recipe), *words]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def pids(folder: Path) -> list[int]:
    """Processes that hold a trial's folder."""
    found = []
    for lock in folder.glob("trials/*/.mypt.lock"):
        with contextlib.suppress(OSError, ValueError):  # it was removed, or is being written
            holder = json.loads(lock.read_text())
            found.append((holder["pid"], holder["process_started"]))
    return [pid for pid, started in found if is_alive(pid, started)]


@pytest.mark.slow
def test_a_sweep_outlives_kills_of_a_trial_and_of_itself(sweep_recipe, tmp_path):
    """docs/sweep.md has the command. Its trials end as they would have without the kills, to the bit."""
    recipe = sweep_recipe(training={"max_steps": 300}, sweep={"trials": 4, "pruner": "none", "type": "random"})
    folder, out = tmp_path / "runs" / "full-sweep", tmp_path / "out.txt"
    sweep = start(recipe, "--workers", "2", out=out)
    while not list(folder.glob("trials/*/checkpoint-*/trainer_state.json")):
        assert sweep.poll() is None, out.read_text()
        time.sleep(0.02)
    for pid in pids(folder)[:1]:
        os.kill(pid, signal.SIGKILL)
    while "it is resumed" not in out.read_text():
        assert sweep.poll() is None, out.read_text()
        time.sleep(0.02)
    while not pids(folder):
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    time.sleep(1)
    assert not pids(folder), "a trial outlived its sweep"
    sweep = start(recipe, "--workers", "2", out=out)
    assert sweep.wait() == 0, out.read_text()
    record = read_record(folder)
    assert [(trial.number, trial.state, trial.reason) for trial in record.trials] == [
        (number, "completed", "max_steps") for number in range(4)
    ]
    assert all(trial.standard_error > 0 and trial.step == trial.max_steps for trial in record.trials)
    trial = record.trials[0]
    whole = run_trial(record.trial_recipe, trial.overrides, tmp_path / "whole", env={"OMP_NUM_THREADS": "1"})
    assert whole.objective == trial.objective
    left, right = (load_file(Path(place, "model.safetensors")) for place in (trial.folder, tmp_path / "whole"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    again = start(recipe, "--workers", "2", out=tmp_path / "again.txt")
    assert again.wait() == 0 and "4 of 4 trials ended" in (tmp_path / "again.txt").read_text()


@pytest.mark.slow
def test_ctrl_c_lets_trials_save(sweep_recipe, tmp_path):
    recipe = sweep_recipe(training={"max_steps": 3000})
    folder, out = tmp_path / "runs" / "full-sweep", tmp_path / "out.txt"
    sweep = start(recipe, "--workers", "1", out=out)
    while not list(folder.glob("trials/0000/checkpoint-*/trainer_state.json")):
        assert sweep.poll() is None, out.read_text()
        time.sleep(0.02)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130, out.read_text()
    assert "the same command continues" in out.read_text()
    assert read_record(folder).trials[0].state == "waiting"


def test_ten_failures_in_a_row_for_one_reason_end_the_sweep(sweep_recipe, capsys, tmp_path):
    """Two attention heads cannot share three or more key heads: each trial is refused before it starts."""
    recipe = sweep_recipe(sweep={"type": "random", "trials": 12, "space": {"model.num_key_value_heads": [3, 5]}})
    text = printed(capsys, recipe, "--workers", 1, code=1)
    assert "mypt sweep: 10 trials in a row ended with refused: " in text.splitlines()[-1]
    record = read_record(tmp_path / "runs" / "full-sweep")
    assert [trial.state for trial in record.trials] == ["failed"] * 10 + ["waiting"] * 2
    assert all("num_key_value_heads" in trial.message for trial in record.trials[:10])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_processes_join_one_study_by_url(sweep_recipe, tmp_path, request, kind):
    url = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    (tmp_path / "other.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} other words " * 20}) + "\n" for n in range(9))
    )
    sets = {"own": str(tmp_path / "text.jsonl"), "other": str(tmp_path / "other.jsonl")}
    recipe = sweep_recipe(sweep={"trials": 4, "type": "random"}, data={"eval": sets}, forgetting={"guard": []})
    words = ["--workers", "1", "--storage", url, "--study", "joined"]
    outs = [tmp_path / f"{number}.txt" for number in range(2)]
    sweeps = [start(recipe, *words, out=out) for out in outs]
    assert not any(sweep.wait() for sweep in sweeps), [out.read_text() for out in outs]
    record = read_record(tmp_path / "runs" / "full-sweep")
    assert [trial.number for trial in record.trials] == [*range(4)]
    assert {trial.state for trial in record.trials} <= {"completed", "pruned"}
    ran = [int(line.split()[1]) for out in outs for line in out.read_text().splitlines() if " on cpu 0: " in line]
    assert sorted(ran) == [*range(4)]
    for trial in record.trials:  # whose text was prepared once, by the first process
        assert Path(trial.folder, "eval", "other", "dataset_metadata.json").is_file()
        assert not Path(trial.folder, "data").exists()
        assert f"{trial.folder}/eval/other is already prepared" in Path(trial.folder, "train.log").read_text()
    assert "secret" not in (tmp_path / "runs" / "full-sweep" / "sweep.json").read_text()
