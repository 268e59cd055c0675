"""Read how a model was trained from a run folder or a checkpoint: progress, coverage, forgetting, hyperparameters."""

from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import yaml

from mypt.checkpoints.complete import checkpoints, last_complete_checkpoint
from mypt.checkpoints.state import STATE_NAME, RunState, read_forgetting, read_ledger, read_state
from mypt.errors import CheckpointError
from mypt.json_files import find_json
from mypt.recipe import RESOLVED_NAME, Recipe
from mypt.yaml12 import load_yaml


def kind_of(path: Path) -> str:
    """run (holds checkpoints or a recipe), checkpoint (holds a trainer state) or model."""
    if checkpoints(path) or (path / RESOLVED_NAME).is_file():
        return "run"
    return "checkpoint" if (path / STATE_NAME).is_file() else "model"


def last_state(path: Path) -> tuple[Path | None, RunState | None]:
    """Return the last complete checkpoint and its state; the state is None if it is damaged."""
    folder = path if (path / STATE_NAME).is_file() else last_complete_checkpoint(path)[0]
    try:
        return folder, read_state(folder) if folder else None
    except CheckpointError:
        return folder, None


def read_training_history(path: Path) -> dict:
    """JSON-ready: progress, coverage, forgetting, diagnosis, recipe, changed_settings; None: not in the folder.

    changed_settings: names (section.key) of the recipe's values that are not the defaults, those of `training` all.
    Raises CheckpointError for a file that is damaged.
    """
    kind, (_, state), recipe = kind_of(path), last_state(path), _recipe(path)
    # A checkpoint's own state is at its step; the files of its run may be further on.
    is_run, run = kind == "run", path.parent if kind == "checkpoint" else path
    advice = "restore it, or delete it"
    return {
        "progress": _progress(state),
        # sources, block_size, next_sample, events; `mypt.streams.ledger` derives what was seen.
        "coverage": read_ledger(path) if is_run else state and state.coverage,
        "forgetting": _forgetting(run, is_run, state),
        "diagnosis": find_json(path / "diagnosis.json", _Diagnosis, CheckpointError, advice) if is_run else None,
        "recipe": recipe,
        "changed_settings": recipe and _changed(recipe),
    }


class _Diagnosis(TypedDict):
    lines: list[str]


def settings_of(recipe: dict | None) -> dict:
    """A recipe's sections as one {section.key: value}; what is off or empty is left out."""
    flat = {f"{section}.{key}": value for section, keys in (recipe or {}).items() for key, value in keys.items()}
    return {name: value for name, value in flat.items() if value not in (None, {}, [])}


def _progress(state: RunState | None) -> dict | None:
    if state is None:
        return None
    trainer = state.trainer
    logged = next((entry for entry in reversed(trainer.get("log_history", [])) if "loss" in entry), {})
    best = trainer.get("best_model_checkpoint")
    return {
        "step": state.step,
        "max_steps": trainer.get("max_steps"),
        "epoch": trainer.get("epoch"),
        "logged_at_step": logged.get("step"),
        "loss": logged.get("loss"),
        "learning_rate": logged.get("learning_rate"),
        "best_checkpoint": best and Path(best).name,
        "best_metric": trainer.get("best_metric"),
    }


def _forgetting(run: Path, is_run: bool, state: RunState | None) -> dict | None:
    """The rules, the last measurement (step, every set's reading, the verdict if it is about this one), the history."""
    report = read_forgetting(run) or {}
    history, actions = report.get("history", []), report.get("actions", [])
    if not is_run:
        saved = state.forgetting if state and state.forgetting else {"history": []}
        history, actions = saved["history"], saved.get("actions", [])
    if not history:
        return None
    last = history[-1]
    current = report.get("history", [])[-1:] == [last]
    rules = {name: report.get(name) for name in ("target", "guard", "tolerance", "action")}
    kept = ("loss", "delta", "state")
    short = [
        {"step": entry["step"], "sets": {name: {k: read[k] for k in kept} for name, read in entry["sets"].items()}}
        for entry in history
    ]
    verdict = report.get("verdict") if current else None
    found = {"step": last["step"], "sets": last["sets"], "verdict": verdict, "history": short, "actions": actions}
    return rules | found


def describe_action(action: dict) -> str:
    """`step 12 reduce_lr (general +0.117): learning rate 0.004 -> 0.002`, of an entry of forgetting.json's list."""
    lost = ", ".join(f"{name} {change['delta']:+.3f}" for name, change in action["sets"].items())
    done = [f"back to {action['to']}"] if action.get("to") else []
    if "learning_rate" in action:
        done.append("learning rate {:g} -> {:g}".format(*action["learning_rate"]))
    for name, (before, after) in action.get("shares", {}).items():
        done.append(f"{Path(name).name} {before:.1%} -> {after:.1%} of the samples")
    return f"step {action['step']:,} {action['action']} ({lost})" + (f": {', '.join(done)}" if done else "")


def _recipe(path: Path) -> dict | None:
    """The resolved recipe of the run folder that `path` is, or lies in."""
    file = next((f / RESOLVED_NAME for f in (path, path.parent) if (f / RESOLVED_NAME).is_file()), None)
    if file is None:
        return None
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise CheckpointError(f"{file} is no resolved recipe: sections with keys and values were expected; restore it")
    return content


def _changed(recipe: dict) -> list[str]:
    defaults = settings_of({name: section for name, section in asdict(Recipe()).items() if section is not None})
    return [name for name, value in settings_of(recipe).items() if name not in defaults or defaults[name] != value]
