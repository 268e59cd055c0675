"""kill -9 at any moment, then the same command again: the final weights are those of an uninterrupted run."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
import yaml

from mypt.checkpoints.complete import SAVING_NAME, what_is_missing
from tests.processes import Command


def start(recipe: Path, **options) -> Command:
    return Command(["train", recipe, "--resume"], **options)


def wait_for(run: Path, step: int, process: Command) -> None:
    """Until the run has logged `step`, or has ended."""
    began = time.time()
    while process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and path.stat().st_mtime > began:  # written by this session
            lines = path.read_text().splitlines()
            if lines and lines[-1].endswith("}") and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.005)


def twins(content: dict, folder: Path) -> dict[str, Path]:
    """Recipes of the same run in two folders, `whole` and `killed`."""
    recipes = {name: folder / f"{name}.yaml" for name in ("whole", "killed")}
    for name, path in recipes.items():
        content["training"]["output_dir"] = str(folder / name)
        path.write_text(yaml.safe_dump(content))
    return recipes


def kill_three_times(recipe: Path, run: Path, steps: range) -> list[int]:
    """Start and resume a run, which is killed at three random steps; returns them."""
    seed = random.SystemRandom().randrange(2**32)
    moments = sorted(random.Random(seed).sample(steps, 3))
    print(f"seed {seed}: kills at {moments}")
    for moment in moments:
        process = start(recipe)
        wait_for(run, moment, process)
        process.kill()
    return moments


def test_three_kills_and_one_after_the_last_save(recipe_for, weights, tmp_path):
    content = recipe_for()
    content["training"] |= {"max_steps": 80, "save_steps": 16, "eval_steps": 16, "logging_steps": 1}
    recipes = twins(content, tmp_path)
    whole = start(recipes["whole"])
    assert whole.wait() == 0, whole.output()

    moments = kill_three_times(recipes["killed"], tmp_path / "killed", range(5, 62))
    process = start(recipes["killed"])
    while process.poll() is None and what_is_missing(tmp_path / "killed" / "checkpoint-80"):
        time.sleep(0.002)
    process.kill()  # after the last save, before or while the final model is written
    final = start(recipes["killed"])
    assert final.wait() == 0, f"killed at {moments}: {final.output()}"

    left, right = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(left[name], right[name]) for name in left), f"killed at {moments}"
    ledgers = [json.loads((tmp_path / name / "coverage.json").read_text()) for name in ("whole", "killed")]
    assert ledgers[0] == ledgers[1] and ledgers[0]["next_sample"] == 80 * 4
    histories = [
        json.loads((tmp_path / name / "forgetting.json").read_text())["history"] for name in ("whole", "killed")
    ]
    assert histories[0] == histories[1]
    again = start(recipes["killed"])
    assert again.wait() == 0 and "already complete: step 80 of 80" in again.output()


EVERY, STEPS = 20, 240


def entries(run: Path, since: float) -> list[dict]:
    """The whole lines of metrics.jsonl, if this session has written to it."""
    path = run / "metrics.jsonl"
    if not path.exists() or path.stat().st_mtime < since:
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def saving(run: Path) -> list[int]:
    return [int(path.parent.name.split("-")[1]) for path in run.glob(f"checkpoint-*/{SAVING_NAME}")]


def evaluating(logged: list[dict]) -> bool:
    """Whether the last line is the loss of a step that is evaluated, and the evaluation's own is still to come."""
    return bool(logged) and "loss" in logged[-1] and logged[-1]["step"] % EVERY == 0


def wait_for_phase(phase: str, run: Path, segment: int, process: Command) -> None:
    """Until a run is in this phase, in steps of `segment` or later ones."""
    began, step = time.time(), EVERY * segment + random.SystemRandom().randrange(1, EVERY)
    if phase == "starting":
        time.sleep(random.SystemRandom().uniform(0.01, 1))
    while phase != "starting" and process.poll() is None:
        logged = entries(run, began)
        if phase == "training" and logged and logged[-1]["step"] >= step:
            return
        if phase == "saving" and any(at > EVERY * segment for at in saving(run)) and logged:
            return
        if phase == "evaluating" and evaluating(logged) and logged[-1]["step"] > EVERY * segment:
            return
        if phase == "after the last save" and not what_is_missing(run / f"checkpoint-{STEPS}"):
            return
        time.sleep(0.0005)


def found_in(run: Path, began: float) -> str:
    """What the files say that a killed process was doing, and at which step."""
    logged = entries(run, began)
    if not what_is_missing(run / f"checkpoint-{STEPS}"):
        return "after the last save"
    if not logged:
        return "starting"
    step = logged[-1]["step"]
    if saving(run):
        return f"saving step {max(saving(run))}"
    return f"evaluating step {step}" if evaluating(logged) else f"training, step {step} logged"


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_ten_kills_in_one_run(recipe_for, weights, tmp_path, schedule):
    """docs/safety.md has the command; with -s it prints what each kill hit."""
    content = recipe_for(optimizer={"schedule": schedule}, forgetting={"eval_windows": "all"})
    content["training"] |= {"max_steps": STEPS, "save_steps": EVERY, "eval_steps": EVERY, "logging_steps": 1}
    recipes = twins(content, tmp_path)
    whole = start(recipes["whole"])
    run, hit = tmp_path / "killed", []
    assert whole.wait() == 0, whole.output()
    phases = ["starting", *["training"] * 3, *["saving"] * 3, *["evaluating"] * 2]
    random.SystemRandom().shuffle(phases)
    for segment, phase in enumerate([*phases, "after the last save"]):
        began, process = time.time(), start(recipes["killed"])
        wait_for_phase(phase, run, segment, process)
        alive = process.poll() is None
        process.kill()
        assert alive or process.poll() == 0, process.output()
        hit.append(found_in(run, began))
        print(f"kill {segment + 1}: aimed at {phase}, found {hit[-1]}", flush=True)
    assert {words.split()[0] for words in hit} >= {"training,", "saving", "evaluating", "after"}, hit
    final = start(recipes["killed"])
    assert final.wait() == 0, final.output()

    left, right = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(left[name], right[name]) for name in left), hit
    for name in ("coverage.json", "forgetting.json"):
        assert json.loads((tmp_path / "whole" / name).read_text()) == json.loads((run / name).read_text()), hit
