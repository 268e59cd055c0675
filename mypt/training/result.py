"""result.json in a run folder: how the run ended, for programs that start it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mypt.errors import CheckpointError
from mypt.files import replace_text
from mypt.json_files import read_json

RESULT_NAME = "result.json"


@dataclass(frozen=True)
class Result:
    """How a run ended, as `OUT/result.json` has it. A killed process (`kill -9`) leaves that of the call before it.

    Attributes:
        state: `completed` (at max_steps), `stopped` (earlier, by a rule), `interrupted` (by a signal) or `failed`.
        reason: `max_steps`; `interpolated` (no saved step kept every guarded set, and OUT/best is between the start and
            one), `infeasible` (the same, without the interpolation), `upload` (completed but not sent, or
            killed meanwhile); `forgetting`,
            `early_stopping`, `declined` (stopped); the signal's name; `diverged` (NaN or infinite) or `error` (failed).
        exit_code: Of the command.
        step: Optimizer steps that are trained; max_steps: that the recipe asks for.
        objective: `eval_constrained_loss` of OUT/best, in nats; None without evaluation sets.
        best_step: The saved step that it is, or between which and the start it is.
        alpha: Share of the way from the start to that step; None if it was not interpolated.
        seconds: Wall time of training in this call.
        message: What the command printed last.
    """

    state: str
    reason: str
    exit_code: int
    step: int
    max_steps: int
    objective: float | None
    best_step: int | None
    alpha: float | None
    seconds: float
    message: str


def write_result(run: Path, result: Result) -> None:
    """Raises OSError if it cannot be written."""
    replace_text(run / RESULT_NAME, json.dumps(asdict(result), indent=1) + "\n")


def read_result(run: Path) -> Result | None:
    """None where no run has ended. Raises CheckpointError for a damaged file."""
    path = run / RESULT_NAME
    if not path.exists():
        return None
    return read_json(path, Result, CheckpointError, "remove it; the run writes it again when it is resumed")
