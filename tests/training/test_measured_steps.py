"""A measurement is of the real run, and leaves nothing behind."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from mypt.cli.main import main
from mypt.errors import MyPTError
from mypt.planning.memory import training_memory
from mypt.recipe import parse_recipe
from mypt.training import measured_steps as module
from mypt.training.measured_steps import measure_here
from mypt.training.target import read_target


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "MOST", 5)
    monkeypatch.setattr(module, "WINDOWS", 6)


def test_real_steps_are_counted_and_nothing_is_written(recipe_for, tmp_path, quick):
    content = recipe_for(forgetting={}, data=recipe_for()["data"] | {"curriculum": None})
    content["forgetting"] = {}
    began = time.process_time()  # what others compute meanwhile does not count
    found = measure_here(parse_recipe(content), tmp_path / "elsewhere", 100, time.process_time)
    took = time.process_time() - began
    assert not (tmp_path / "run").exists()
    assert (found.steps, found.warmup) == (5, 2)
    assert found.tokens_per_second == pytest.approx(4 * 32 / found.step)
    assert 0 < found.fast <= found.step <= found.slow
    assert found.windows == 2 * 16, "two batches of each of the two sets"
    assert found.preparing is None
    # Without the evaluations, whose windows are scaled, no part is forgotten or counted twice.
    parts = found.starting + 7 * found.step + found.save + 2 * found.windows * found.window
    assert parts == pytest.approx(took, rel=0.5)


def test_the_prediction_is_of_the_step_that_was_measured(recipe_for, tmp_path, quick):
    from mypt.hardware.machine import this_machine
    from mypt.planning.step import Step

    path = tmp_path / "recipe.yaml"
    content = recipe_for(training=recipe_for()["training"] | {"gradient_accumulation_steps": 2})
    path.write_text(yaml.safe_dump(content))
    found = measure_here(parse_recipe(content), tmp_path / "elsewhere", 12, time.process_time)
    target = read_target(str(path), [], this_machine())
    step = Step(**target.settings, device="cpu")
    assert found.predicted == training_memory(target.dimensions, step)["total"]
    assert found.memory > 2**27 and found.tokens_per_second == pytest.approx(2 * 4 * 32 / found.step)


def test_of_a_long_text_a_part_is_prepared_and_scaled(recipe_for, tmp_path, monkeypatch, quick):
    text = tmp_path / "long.txt"
    text.write_text("a line of the text\n" * 4_000)
    monkeypatch.setattr(module, "SAMPLE", 20_000)
    content = recipe_for(data={"train": str(text), "eval": {}}, forgetting={})
    content["forgetting"], content["tokenizer"] = {}, {"name": "char"}
    (tmp_path / "elsewhere").mkdir()
    found = measure_here(parse_recipe(content), tmp_path / "elsewhere", 12, time.process_time)
    assert found.prepared == pytest.approx(20_000 / 76_000)
    assert found.preparing > 0 and any("long.txt were prepared" in note for note in found.notes)


def test_prepared_text_is_not_prepared_again(recipe_for, corpora, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some text\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(corpora / "domain")
    recipe = parse_recipe(recipe_for(data={"train": str(text), "eval": {"own": str(text)}}))
    section, share, _ = module._data(recipe, tmp_path)
    assert share is None
    assert list(section.train) == list(section.eval.values()) == [str(tmp_path / "run" / "data")]


def test_a_killed_measurement_is_one_line(tmp_path):
    done = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    with pytest.raises(MyPTError, match="memory runs out"):
        module._result(tmp_path / "none.json", done)
    with pytest.raises(MyPTError, match="exit code 3: last words"):
        module._result(tmp_path / "none.json", subprocess.CompletedProcess([], 3, "", "first\nlast words\n"))


@pytest.mark.slow
def test_the_command_measures_in_a_process_of_its_own(recipe_for, tmp_path, capsys, monkeypatch):
    content = recipe_for(training=recipe_for()["training"] | {"max_steps": 3_000})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a launch that the measurement is no part of
    assert main(["plan", str(path), "--measure", "--json", "--processes", "1", "--training.torch_compile=false"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    assert found["time"]["source"] == "measured"
    assert found["time"]["parts"]["steps"] == pytest.approx(3_000 * found["measured"]["step"])
    assert found["measured"]["predicted"] == found["memory"]["training"]["total"]
    assert not list(Path(tmp_path).glob("checkpoint*"))
