"""Tasks of lm-evaluation-harness on a model that MyPT loads."""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.errors import MyPTError
from mypt.evaluation.metrics import Metric
from mypt.terminal import is_terminal, one_line, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_INSTALL = "--tasks needs the package lm-eval: pip install mypt[metrics]"
_BOOTSTRAPS = 1_000  # of metrics without a formula for their error


def require_tasks(tasks: list[str]) -> None:
    """Raise MyPTError if lm-eval is not installed, or a .yaml file is missing."""
    if find_spec("lm_eval") is None:
        raise MyPTError(_INSTALL)
    for task in tasks:
        if task.endswith((".yaml", ".yml")) and not Path(task).is_file():
            raise MyPTError(f"--tasks {task}: there is no such file; name one, or a task of lm-eval")


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: list[str],
    *,
    path: str,
    batch_size: int = 8,
    block_size: int | None = None,
) -> list[Metric]:
    """Run tasks as lm-eval's `simple_evaluate` does with its model class HFLM.

    Code that a task or a model brings from the hub is not run: the model is loaded already, and tasks that lm-eval
    marks as unsafe are refused. The Python functions that a local YAML file names with `!function` are the user's own.

    Args:
        tasks: Names of lm-eval's tasks, or YAML files with tasks.
        path: What the figures call the model.
        block_size: Context in tokens; the model's own if None.

    Raises:
        MyPTError: A task is unknown, cannot get its data, or fails.
    """
    local = all(Path(task).is_file() for task in tasks)
    with _quiet():
        from lm_eval import __version__, simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        try:
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=block_size)
            found = simple_evaluate(
                model=harness,
                tasks=list(tasks),
                task_manager=TaskManager(include_defaults=not local),
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=True,  # with the hash of what each task asked
            )
        except Exception as error:  # whatever a task's file, its data or its functions provoke
            reason = one_line(str(error) or type(error).__name__)
            raise MyPTError(f"lm-eval cannot run {', '.join(tasks)} on {path}: {reason}") from error
    return [
        metric
        for task, figures in found["results"].items()
        for metric in _metrics(path, task, figures, found, __version__)
    ]


def _metrics(path: str, task: str, figures: dict, found: dict, version: str) -> Iterator[Metric]:
    """The figures of one task, whose keys are `metric,filter` and `metric_stderr,filter`."""
    samples = found["n-samples"].get(task, {}).get("effective", 0)
    shots = found["n-shot"].get(task)
    details = f"lm-eval {version}, task version {found['versions'].get(task)}, {shots} shots"
    for key, value in figures.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            say(f"task {task} on {path}: {name} is {value}; it is left out", error=True)
            continue
        error = figures.get(f"{name}_stderr,{filtered}")
        yield Metric(
            model=path,
            data=task,
            metric=name if filtered == "none" else f"{name} ({filtered})",
            value=float(value),
            error=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
            delta=None,
            samples=samples,
            details=details,
            data_hash=str((found.get("task_hashes") or {}).get(task, "")),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's prints and log lines; its progress bars are shown on a terminal."""
    log = logging.getLogger("lm_eval")
    level, log.level = log.level, logging.ERROR
    try:
        with redirect_stdout(io.StringIO()):
            if is_terminal(sys.stderr):
                yield
            else:
                with redirect_stderr(io.StringIO()):
                    yield
    finally:
        log.setLevel(level)
