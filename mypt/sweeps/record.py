"""sweep.json in a sweep's folder: every trial of the study, for reports and other programs.

The study (Optuna's storage) is what the workers share; the file is written from it anew whenever a trial ends, by any
process that uses the folder.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mypt.errors import FolderInUse, MyPTError
from mypt.evaluation.forgetting import INFEASIBLE
from mypt.files import replace_text
from mypt.folders import WriterLock
from mypt.json_files import read_json

RECORD_NAME, TRIALS_NAME = "sweep.json", "trials"


def is_loss(objective: float | None) -> bool:
    """Whether an objective is the loss of a run that kept its guards: finite, and below the mark of `INFEASIBLE`."""
    return objective is not None and math.isfinite(objective) and objective < INFEASIBLE


@dataclass(frozen=True)
class TrialRecord:
    """One trial: a run of `mypt train TRIAL.yaml` with `overrides` in `folder`.

    Attributes:
        number: From 0; the name of its folder (`trials/0007`). A trial whose process or machine died is run again
            under the same number, in the same folder.
        state: `waiting`, `running`, `completed`, `pruned` or `failed`.
        reason: Of a trial that ended: `max_steps`, `forgetting`, `early_stopping`, `infeasible`, `interpolated`
            (completed); `pruned`, `diverged` (pruned); `error`, `refused` (bad input), `killed` (failed). Else empty.
        message: What its process printed last; empty before.
        overrides: {section.key: value} over the sweep's trial.yaml: the searched values, and the length, warm-up and
            evaluations that follow from them. Empty while it waits, where its values are not chosen yet.
        params: The part of `overrides` that is searched (or the name of the predefined configuration).
        objective: `eval_constrained_loss` of its OUT/best in nats (1000 + the worst violation where no saved step kept
            the guards); None unless it is completed.
        standard_error: Of that loss, over the windows of the evaluation set; None where it is not known.
        values: [[percent of the run, objective], ...] that its evaluations reported, the step-0 one not among them.
        step, max_steps, best_step: Optimizer steps that were trained; that were asked for; at which OUT/best was saved.
        seconds, cpu_seconds: Wall and processor time of its processes, those that were killed among them as far as
            they were seen to end.
        attempts: Processes that were started for it.
        device: Where it ran last: `gpu 2`, `cpu 0` (a worker), followed by `@HOST`.
        folder: Of the run, absolute, on the machine of `device`.
    """

    number: int
    state: str
    reason: str
    message: str
    overrides: dict[str, object]
    params: dict[str, object]
    objective: float | None
    standard_error: float | None
    values: list[list[float]]
    step: int | None
    max_steps: int | None
    best_step: int | None
    seconds: float
    cpu_seconds: float
    attempts: int
    device: str
    folder: str

    @property
    def kept(self) -> bool:
        """Whether it was completed with its guards kept: what can be the best trial."""
        return self.state == "completed" and is_loss(self.objective)


@dataclass(frozen=True)
class SweepRecord:
    """A sweep.

    Attributes:
        recipe: The recipe as it was named. trial_recipe: trial.yaml in the sweep's folder, which trials run: the recipe
            on the subset, without `sweep` and `upload`.
        type: `predefined`, `random` or `optimized`. objective: `target` or `constrained`. pruner: `asha`, `hyperband`
            or `none`.
        space: {section.key: distribution} as the recipe has it; {} for predefined configurations.
        study, storage: Optuna's name of the study, and its storage, without a password.
        seed: Of the search.
        samples: Documents of the subset; full_samples: of the data. Equal where nothing was limited.
        tokens, full_tokens: The same in tokens: of a mixture, those in which its main source is seen once.
        full_data: {source: weight}, prepared, that the subset was taken of: `data.train` of a run on all of it.
        full_steps: Optimizer steps of the whole run, as the recipe without overrides asks for them.
        passes: How often the full run sees its data, and a trial of a random or optimized search its subset.
        trials: By number.
    """

    recipe: str
    trial_recipe: str
    type: str
    objective: str
    pruner: str
    space: dict[str, object]
    study: str
    storage: str
    seed: int
    samples: int
    full_samples: int
    tokens: int
    full_tokens: int
    full_data: dict[str, float]
    full_steps: int
    passes: float
    trials: list[TrialRecord]


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Write in a sweep's folder, which several processes share, one after the other."""
    lock = WriterLock(folder)
    while True:
        try:
            lock.acquire()
            break
        except FolderInUse:
            time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def write_record(folder: Path, record: SweepRecord) -> None:
    """Replace folder/sweep.json. Raises OSError."""
    replace_text(folder / RECORD_NAME, json.dumps(asdict(record), indent=1) + "\n")


def read_record(folder: str | Path) -> SweepRecord:
    """Raises MyPTError where there is none, or it is damaged."""
    path = Path(folder) / RECORD_NAME
    if not path.exists():
        raise MyPTError(f"{folder} holds no {RECORD_NAME}; give the folder of a sweep (mypt sweep RECIPE --out DIR)")
    return read_json(path, SweepRecord, MyPTError, "run the same `mypt sweep` again: it is written from the study")
