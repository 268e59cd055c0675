"""`mypt ladder` designs rungs, trains them as processes, and a plan of the same data shows its law."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import yaml

from mypt.cli.main import main
from mypt.errors import CheckpointError
from mypt.forecasting.ladder import read_ladder
from mypt.forecasting.ladder_law import DESIGN
from mypt.forecasting.ladder_record import LadderRecord, RungRecord, data_identity, read_record, read_rung
from mypt.forecasting.ladder_report import draw_ladder, ladder_lines, ladder_table, summary
from mypt.formatting import figure
from mypt.recipe import load_recipe


@pytest.fixture
def recipe(tiny_recipe, corpora, tmp_path):
    """write(section={...}): the file of a recipe that trains from scratch on `domain`, and its run folder."""

    def write(**sections):
        content = tiny_recipe(tmp_path / "run", **{"training": {"max_steps": 600, "per_device_train_batch_size": 8}})
        content["data"] = {"train": str(corpora / "domain"), "eval": {"domain": str(corpora / "domain")}}
        content["data"]["block_size"] = 32
        for name, values in sections.items():
            content[name] = content.get(name, {}) | values
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def finished(recipe, tmp_path):
    """make(path): ladder.json of a recipe as if its rungs had been trained, with the losses of a law."""

    def make(path, folder=None):
        ladder = read_ladder(path, [], folder, tell=lambda line: None)
        rungs = [
            RungRecord(str(one.folder), one.parameters, one.tokens, one.tokens, one.tokens,
                       1.2 + 40 / one.parameters**0.4 + 60 / one.tokens**0.4, 0.01, 1.0)
            for one in ladder.rungs
        ]  # fmt: skip
        record = replace(ladder.record, rungs=rungs)
        (ladder.out / "ladder.json").write_text(json.dumps(asdict(record)))
        return record

    return make


def test_the_rungs_are_the_planned_run_in_small(recipe, tmp_path):
    path = recipe(training={"warmup_steps": 60}, data={"curriculum": {"start_length": 16, "steps": 300}})
    ladder = read_ladder(path, [], None, factor=4, tell=lambda line: None)
    assert ladder.out == tmp_path / "run-ladder" and len(ladder.rungs) == len(DESIGN)
    ratio = ladder.record.tokens / ladder.record.parameters
    assert ladder.record.tokens == 600 * 8 * 32
    for rung in ladder.rungs:
        given = load_recipe(ladder.recipe, [f"--{k}={json.dumps(v)}" for k, v in rung.overrides.items()])
        steps, rate = given.training["max_steps"], given.training["learning_rate"]
        batch = given.training["per_device_train_batch_size"] * given.training["gradient_accumulation_steps"]
        assert rung.tokens == steps * batch * 32 and steps < 600 and batch < 8
        assert rate == pytest.approx(3e-3 * (ladder.record.parameters / rung.parameters) ** (1 / 3), rel=1e-3)
        assert given.training["warmup_steps"] == max(1, round(60 * steps / 600))
        assert given.data.curriculum["steps"] == max(1, round(300 * steps / 600))
        assert given.optimizer.name in ("muon", "adamw") and not given.forgetting.guard
    ratios = sorted(rung.tokens / rung.parameters / ratio for rung in ladder.rungs)
    assert ratios[0] < 0.4 and ratios[-1] > 2.5 and all(middle == pytest.approx(1, rel=0.5) for middle in ratios[1:-1])
    compute = [rung.parameters * rung.tokens / ladder.record.parameters / ladder.record.tokens for rung in ladder.rungs]
    assert compute == pytest.approx([1 / 16, 1 / 16, 1 / 16, 1 / 4], rel=0.05)
    again = read_ladder(path, [], None, factor=4, tell=lambda line: None)
    assert [rung.folder for rung in again.rungs] == [rung.folder for rung in ladder.rungs]
    other = read_ladder(path, ["--training.learning_rate=0.1"], None, factor=4, tell=lambda line: None)
    assert not {rung.folder for rung in other.rungs} & {rung.folder for rung in ladder.rungs}


def test_a_dry_run_prints_every_command_and_imports_no_torch(recipe):
    code = (
        "import sys; from mypt.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & {*sys.modules}; sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "ladder", recipe(), "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mypt train ") == len(DESIGN) and "parameters" in done.stdout
    assert "time" in done.stdout or "about" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factor", "1"], "expected a number above 1"),
        (["--factor", "nan"], "nan"),
        (["--factor", "1e12"], "lower --factor"),
        (["--model.init_from=gpt2", "--model.preset=null"], "training from scratch"),
        (["--data.train=hf://some/data"], "mypt prepare --source hf://some/data"),
    ],
)
def test_what_cannot_be_a_ladder_is_refused_in_one_line(recipe, capsys, options, message):
    try:
        code = main(["ladder", recipe(), *options])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr().err
    assert code == 2 and message in printed


def test_a_plan_of_the_same_data_shows_the_law_in_place_of_the_generic_one(recipe, finished, capsys):
    path = recipe()
    record = finished(path)
    truth = 1.2 + 40 / record.parameters**0.4 + 60 / record.tokens**0.4
    assert main(["plan", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["ladder"]
    assert found["loss"]["low"] < truth < found["loss"]["high"]
    assert found["beyond"]["compute"] == pytest.approx(8, rel=0.05)
    assert found["optimum"]["flops"] == 6 * record.parameters * record.tokens
    assert main(["plan", path]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "by the ladder in" in printed and "of the largest rung" in printed and "compute-optimal for" in printed
    assert "no promise" not in printed
    assert main(["plan", path, "--steps", "600,900"]) == 0
    assert f"{found['loss']['middle']:.2f}" in capsys.readouterr().out


def test_the_report_has_every_rung_the_planned_run_and_a_picture(recipe, finished, tmp_path):
    record = finished(recipe())
    law = record.law()
    found = summary(record, law)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    (tmp_path / "ladder.json").write_text(json.dumps(found))
    assert read_record(tmp_path) == record  # what is fitted is fitted again
    _, columns, rows = ladder_table(found)
    assert [row[0] for row in rows] == [*(f"rung {number}" for number in range(1, 1 + len(DESIGN))), "planned"]
    assert all(len(row) == len(columns) for row in rows)
    assert f"{found['planned']['loss']['middle']:.4f}" in rows[-1]
    printed = "\n".join(ladder_lines(record, law))
    assert f"{found['planned']['loss']['middle']:.3f}" in printed
    assert f"{figure(found['planned']['beyond']['compute'])}x the compute of the largest rung" in printed
    assert draw_ladder(found, record, law, tmp_path / "ladder.png") and (tmp_path / "ladder.png").stat().st_size > 5_000


def test_a_ladder_of_other_data_is_named_and_not_used(recipe, finished, corpora, tmp_path, capsys):
    path = recipe()
    finished(path, tmp_path / "elsewhere")
    general = {"train": str(corpora / "general"), "eval": {"domain": str(corpora / "general")}}
    other = recipe(data=general)
    assert main(["plan", other, "--ladder", str(tmp_path / "elsewhere")]) == 2
    assert "other data or another tokenizer (train 0" in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(tmp_path / "run-ladder")
    assert main(["plan", other, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "ladder" not in found and any("does not apply to this run" in note for note in found["notes"])
    assert main(["plan", "modern-nano", "--tokens", "1M", "--ladder", str(tmp_path / "run-ladder")]) == 2
    assert "only a recipe" in capsys.readouterr().err
    assert main(["plan", other, "--ladder", str(tmp_path / "nothing")]) == 2
    assert "holds no finished ladder" in capsys.readouterr().err


def test_a_finished_run_of_the_same_data_is_a_rung(recipe, whole_run, corpora):
    mixture = {
        "train": {str(corpora / "domain"): 0.75, str(corpora / "general"): 0.25},
        "eval": {"domain": str(corpora / "domain"), "general": str(corpora / "general")},
    }
    whole = load_recipe(recipe(data=mixture))
    record = LadderRecord("", data_identity(whole), "domain", 1.0, 32, [[1.0, 1e6]], 1, 1, [])
    rung = read_rung(whole_run, record, require_same=True)
    history = json.loads((whole_run / "forgetting.json").read_text())["history"]
    assert rung.tokens == 12 * 4 * 32 and rung.loss == history[-1]["sets"]["domain"]["loss"]
    other = replace(record, data=data_identity(load_recipe(recipe()), "domain"))
    with pytest.raises(CheckpointError, match="other data"):
        read_rung(whole_run, other, require_same=True)
    with pytest.raises(CheckpointError, match="windows of 32 tokens, the ladder of 64"):
        read_rung(whole_run, replace(record, block_size=64), require_same=True)
    with pytest.raises(CheckpointError, match="did not measure the evaluation set other"):
        read_rung(whole_run, replace(record, target="other"))


@pytest.mark.slow
def test_a_ladder_that_is_killed_continues_and_predicts(recipe, tmp_path):
    path = recipe(training={"max_steps": 120})
    words = [sys.executable, "-m", "mypt", "ladder", path, "--factor", "4"]
    folder = tmp_path / "run-ladder"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(folder.glob("rungs/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in folder.glob("rungs/*/result.json")}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    while not any("rung 2 of 4" in line and "training" in line for line in process.stdout):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())  # not trained again
    found = json.loads(done.stdout)
    assert len(found["rungs"]) == len(DESIGN) and found["planned"]["loss"]["low"] < found["planned"]["loss"]["high"]
    assert read_record(folder).law().predict(1e5, 1e6).middle > 0
    assert (folder / "ladder.png").is_file()
