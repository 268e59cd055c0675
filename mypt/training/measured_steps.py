"""Measure a few real steps of a recipe on this machine, its evaluation, a save and the preparing of its text.

Everything is the run's own: data, model, optimizer, batch, callbacks; only the folder is a temporary one. It happens in
a process of its own, so that its memory is that of a run, and running out of memory ends nothing else.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mypt.errors import MyPTError
from mypt.planning.time import Measured
from mypt.recipe import RESOLVED_NAME, DataSection, Recipe, load_recipe, save_recipe
from mypt.training.launch import SIZES

WARMUP, LEAST, MOST = 2, 3, 60  # steps that do not count; that do
SECONDS = 5.0  # of steps that count, unless MOST are done or LEAST are not
WINDOWS = 32  # of each evaluation set
SAMPLE = 4 * 2**20  # bytes of a text that is not prepared yet
DOCUMENTS = 2_000  # of one that is not plain text
_RESULT = "measured.json"


def measure(recipe: Recipe, steps: int, *, cpu_seconds: bool = False) -> Measured:
    """A few steps of `recipe`, whose sizes are those of one process, in a process of their own.

    Args:
        steps: Optimizer steps of the whole run, on which some choices depend.
        cpu_seconds: Count the CPU seconds of the process instead of wall time.

    Raises:
        MyPTError: The recipe cannot be trained, or its steps do not fit in memory.
    """
    launch = {*SIZES, "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in launch and not name.startswith(("ACCELERATE_", "FSDP_"))
    }
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with TemporaryDirectory(prefix="mypt-measure-") as folder:
        save_recipe(recipe, Path(folder, RESOLVED_NAME))
        command = [sys.executable, "-m", __name__, folder, str(steps), *(["cpu"] if cpu_seconds else [])]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        return _result(Path(folder, _RESULT), done)


def _result(path: Path, done: subprocess.CompletedProcess) -> Measured:
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if "error" in content:
            raise MyPTError(f"--measure: {content['error']}")
        return Measured(**content)
    if done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise MyPTError(
            "--measure: the measurement was killed, which is how Linux ends a process when memory runs out; lower "
            "training.per_device_train_batch_size or data.block_size, or turn on training.activation_checkpointing"
        )
    last = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()[-1]
    raise MyPTError(f"--measure: the measurement ended with exit code {done.returncode}: {last}")


def main() -> None:
    """In the other process: FOLDER STEPS [cpu]."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    clock = time.process_time if sys.argv[3:] else time.perf_counter
    began = 0.0 if sys.argv[3:] else clock()
    try:
        content = asdict(measure_here(load_recipe(folder / RESOLVED_NAME), folder, steps, clock, began))
    except MyPTError as error:
        content = {"error": str(error)}
    (folder / _RESULT).write_text(json.dumps(content), encoding="utf-8")


def measure_here(
    recipe: Recipe, folder: Path, steps: int, clock: Callable[[], float], began: float | None = None
) -> Measured:
    """In this process, which is left with a model's memory and torch's settings. folder: takes what is written."""
    began = clock() if began is None else began
    import torch
    from accelerate import PartialState

    from mypt.hardware.out_of_memory import explain_out_of_memory_at_start
    from mypt.training.build import build_trainer
    from mypt.training.callbacks.step_meter import StepMeter
    from mypt.training.data.run_data import resolve_data

    sample = _measurable(recipe, folder, steps)
    PartialState(cpu=recipe.training.get("use_cpu", not torch.accelerator.is_available()))
    with explain_out_of_memory_at_start():
        start = clock()
        resolve_data(sample.recipe)
        preparing = clock() - start
        trainer = build_trainer(sample.recipe, assume_yes=True)
    meter = StepMeter(trainer, clock, warmup=WARMUP, least=LEAST, most=MOST, seconds=SECONDS)
    try:
        trainer.train()
    finally:
        trainer.give_back()
    ended, marks = clock(), meter.marks
    times = sorted(later - earlier for earlier, later in zip(marks[WARMUP:], marks[WARMUP + 1 :], strict=False))
    step = sum(times) / len(times)
    tenth = len(times) // 10
    # Compiling and what else the first steps do once.
    once = max(0.0, marks[WARMUP] - marks[0] - WARMUP * step)
    starting = marks[0] - began - preparing - (meter.evaluations[0] if meter.evaluations else 0.0)
    windows = sum(len(one) for one in trainer.forgetting.eval_sets.values()) if trainer.forgetting else None
    predicted, evaluated = _predicted(trainer, windows)
    samples, share = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps, sample.share
    return Measured(
        steps=len(times),
        warmup=WARMUP,
        step=step,
        fast=times[tenth],
        slow=times[-1 - tenth],
        tokens_per_second=samples * trainer.train_dataset.block_size / step,
        windows=windows,
        window=meter.evaluations[-1] / windows if windows else None,
        save=meter.saving,
        preparing=preparing * share if share else None,
        prepared=1 / share if share else None,
        starting=starting + once + max(0.0, ended - meter.saved),
        memory=meter.memory,
        evaluation_memory=meter.evaluation_memory,
        predicted=predicted,
        predicted_evaluation=evaluated,
        free=trainer.hardware.machine.free,
        notes=sample.notes,
    )


def _predicted(trainer, windows: int | None) -> tuple[int | None, int | None]:
    """Bytes of a step and of an evaluation by the memory model; None for a model that it does not know."""
    from mypt.planning.memory import evaluation_memory, training_memory
    from mypt.planning.step import FRAMEWORK

    hardware = trainer.hardware
    if not hardware.step:
        return None, None
    framework = FRAMEWORK if hardware.machine.device == "gpu" else 0  # which is in main memory
    step = training_memory(hardware.dimensions, hardware.step)["total"] - framework
    size = min(trainer.args.per_device_eval_batch_size, windows or 0)
    if not size:
        return step, None
    return step, evaluation_memory(hardware.dimensions, hardware.step, size)["total"] - framework


class _Sample(NamedTuple):
    """The measured part of a run; share: factor of the seconds of preparing, None if nothing is prepared."""

    recipe: Recipe
    share: float | None
    notes: list[str]


def _measurable(recipe: Recipe, folder: Path, steps: int) -> _Sample:
    """The recipe in `folder`, with a part of the text, and without what asks, sends or ends it early."""
    own = {"output_dir": str(folder / "run"), "max_steps": max(steps, WARMUP + LEAST), "report_to": "none"}
    own |= dict.fromkeys(("eval_steps", "save_steps"), own["max_steps"])
    left_out = ("num_train_epochs", "eval_delay", "save_strategy")
    training = {key: value for key, value in recipe.training.items() if key not in left_out} | own
    data, share, note = _data(recipe, folder)
    notes = [note] if note else []
    if data.curriculum:
        data = replace(data, curriculum=None)
        notes.append("data.curriculum was left out: all sequences are as long as the last ones of the run")
    windows, most = recipe.forgetting.eval_windows, max(WINDOWS, 2 * training.get("per_device_eval_batch_size", 8))
    windows = most if windows in (None, "all") else min(windows, most)
    changed = replace(
        recipe,
        data=data,
        training=training,
        coverage=replace(recipe.coverage, confirm=False, strict=False),
        forgetting=replace(recipe.forgetting, eval_windows=windows, action="warn"),
        safety=replace(recipe.safety, early_stopping_patience=None),
        upload=None,
    )
    return _Sample(changed, share, notes)


def _data(recipe: Recipe, folder: Path) -> tuple[DataSection, float | None, str]:
    """The section `data` with text as it is prepared in the run folder, else a part of it; its share; a note."""
    from mypt.shards.format import METADATA_NAME
    from mypt.streams.size import STREAMED_KINDS
    from mypt.text.sources import document_count, find_units
    from mypt.training.data.run_data import text_sources
    from mypt.training.data.text import DATA_NAME

    section, texts = recipe.data, text_sources(recipe.data.train)
    if not texts:
        return section, None, ""
    (source,) = texts
    prepared = Path(recipe.training.get("output_dir", ""), DATA_NAME)
    units = find_units([source], text_column=section.text_column)
    if section.streaming and units[0].kind in STREAMED_KINDS:
        return section, 1.0, f"{source} is streamed: its first documents were prepared, as a run does it"
    if (prepared / METADATA_NAME).is_file():
        return _renamed(section, source, str(prepared)), None, ""
    if units[0].kind == "text":
        paths = [Path(path) for path in dict.fromkeys(path for unit in units for path in unit.paths)]
        size = sum(path.stat().st_size for path in paths)
        if size <= SAMPLE:
            return section, 1.0, ""
        sample, read = folder / "sample.txt", b""
        for path in paths:
            with open(path, "rb") as file:
                read += file.read(SAMPLE - len(read))
        sample.write_bytes(read)
        note = f"the first {SAMPLE / 2**20:g} MiB of {source} were prepared; the vocabulary of all may be larger"
        return _renamed(section, source, str(sample)), size / SAMPLE, note
    documents = section.max_train_examples or document_count(units)
    if documents <= DOCUMENTS:
        return section, 1.0, ""
    note = f"the first {DOCUMENTS:,} documents of {source} were prepared; the vocabulary of all may be larger"
    return replace(section, max_train_examples=DOCUMENTS), documents / DOCUMENTS, note


def _renamed(section: DataSection, source: str, other: str) -> DataSection:
    sets = {name: other if where == source else where for name, where in section.eval.items()}
    return replace(section, train={other: section.train[source]}, eval=sets)


if __name__ == "__main__":
    main()
