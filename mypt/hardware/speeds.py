"""speed.json in a run folder: how fast a run was on its machine, for plans of the same step there."""

import json
import platform
from dataclasses import asdict
from pathlib import Path

from mypt.files import replace_text
from mypt.hardware.machine import Machine
from mypt.planning.parameters import FIELDS, complete
from mypt.planning.step import Step
from mypt.planning.time import Speed

SPEED_NAME = "speed.json"
# Of a model's fields those that its speed depends on.
_SHAPE = (*FIELDS, "num_key_value_heads", "head_dim", "hidden_act", "hidden_dropout", "attention_dropout")


def identify(machine: Machine, dimensions: dict, step: Step, processes: int) -> dict:
    """The properties that two runs must share to be equally fast: the machine, the model's shape, the batch.

    The machine's own name stays in the run folder: `mypt upload` does not send the file.
    """
    there = {"machine": f"{platform.node()}, {machine.model or machine.device}", "processes": processes}
    shape = {name: value for name, value in complete(dimensions).items() if name in _SHAPE and value}
    return json.loads(json.dumps(there | {"dimensions": shape, "step": asdict(step)}))


def write_speed(run: Path, identity: dict, figures: dict) -> None:
    """figures: `steps`, `seconds` (of one), `tokens_per_second`."""
    replace_text(run / SPEED_NAME, json.dumps({**figures, "of": identity}, indent=1) + "\n")


def recorded_speed(run: Path, identity: dict) -> Speed | None:
    """The speed that this run or another in the same parent folder recorded for the same step on this machine.

    The longest run counts; None without one. A file that cannot be read counts as none.
    """
    found = [(path, _read(path, identity)) for path in sorted(run.parent.glob(f"*/{SPEED_NAME}"))]
    found = [(path, figures) for path, figures in found if figures]
    if not found:
        return None
    path, figures = max(found, key=lambda pair: pair[1]["steps"])
    words = (
        f"{figures['tokens_per_second']:,.0f} tokens/s, recorded by {path.parent} in {figures['steps']:,} steps of the "
        "same model and batch on this machine"
    )
    seconds = figures["seconds"]
    return Speed(source="recorded", words=words, step=seconds, fast=seconds, slow=seconds)


def _read(path: Path, identity: dict) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["of"] != identity:
            return None
        figures = {name: content[name] for name in ("steps", "seconds", "tokens_per_second")}
        return figures if all(0 < value < float("inf") for value in figures.values()) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
