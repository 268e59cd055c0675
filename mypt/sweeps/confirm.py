"""Re-run the best trials of a sweep on more data with several seeds (`mypt sweep --confirm`), and judge them."""

from __future__ import annotations

import json
import math
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from operator import attrgetter
from pathlib import Path

from mypt.errors import CheckFailed, MyPTError
from mypt.files import replace_text
from mypt.folders import only_writer
from mypt.json_files import read_json
from mypt.preparation.subset import subset_dataset
from mypt.recipe import load_recipe
from mypt.sweeps.fidelity import Agreement, Runs, Verdict, agreement, judge
from mypt.sweeps.record import SweepRecord, TrialRecord, is_loss
from mypt.sweeps.space import PREDEFINED
from mypt.sweeps.sweep import Device
from mypt.sweeps.trial import run_trial, stop_on_signal

FOLDER, CONFIRM_NAME = "confirm", "confirm.json"
_SCALED = ("training.max_steps", "training.warmup_steps", "training.eval_steps", "training.save_steps",
           "training.logging_steps")  # fmt: skip
_ATTEMPTS = 2  # of a run whose process is killed
_FINAL = ("completed", "stopped")  # states of a run that need no second attempt; so does one that diverged


@dataclass(frozen=True)
class Rerun:
    """One re-run: a trial's parameters, another seed, more data. state, ...: as of `Ended`; "waiting" before."""

    trial: int
    seed: int
    samples: int
    overrides: dict[str, object]
    folder: str
    state: str = "waiting"
    reason: str = ""
    message: str = ""
    objective: float | None = None
    step: int | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def key(self) -> tuple[int, int, int]:
        return self.samples, self.trial, self.seed

    @property
    def ended(self) -> bool:
        return self.state in _FINAL or self.reason == "diverged"

    @property
    def loss(self) -> float | None:
        """The objective of a run that ended by itself and kept its guards, else None."""
        return self.objective if self.state in _FINAL and is_loss(self.objective) else None


@dataclass(frozen=True)
class Look:
    """One verdict that was given: on how many samples, about which trials, with how many seeds."""

    samples: int
    trials: list[int]
    seeds: int


@dataclass(frozen=True)
class Confirmation:
    """confirm.json: every re-run of a sweep so far, and every look at them, in order."""

    runs: list[Rerun] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def has(self, run: Rerun) -> bool:
        """Whether this re-run ended, so that running it again would change nothing."""
        return any(one.key == run.key and one.ended for one in self.runs)

    def with_run(self, run: Rerun) -> Confirmation:
        return replace(self, runs=[*(one for one in self.runs if one.key != run.key), run])

    def seen(self, look: Look) -> Confirmation:
        """With this look, if it is new."""
        return self if look in self.looks else replace(self, looks=[*self.looks, look])

    def number(self, look: Look) -> int:
        """Which look at the runs on its samples it is, from 1: each is another chance to name a wrong candidate."""
        return [one for one in self.looks if one.samples == look.samples].index(look) + 1

    def runs_of(self, look: Look) -> list[Rerun]:
        """Its runs: of its trials, on its samples, with the first of the seeds."""
        runs = [run for run in self.runs if run.samples == look.samples and run.trial in look.trials]
        seeds = sorted({run.seed for run in runs})[: look.seeds]
        return [run for run in runs if run.seed in seeds]


@dataclass(frozen=True)
class Confirmed:
    """The result of re-runs of the best trials on `samples` documents.

    swept: {candidate: objective in the sweep}. agreement: of that ranking and the re-runs'.
    """

    samples: int
    seeds: list[int]
    swept: dict[str, float]
    runs: dict[str, dict[int, float | None]]
    agreement: Agreement
    verdict: Verdict


def candidate(trial: int) -> str:
    return f"trial {trial}"


def best_trials(record: SweepRecord, top: int) -> list[TrialRecord]:
    """The `top` completed trials of lowest objective that kept their guards; of equal settings the best one alone.

    Raises CheckFailed for fewer than two.
    """
    found: list[TrialRecord] = []
    for trial in sorted(filter(attrgetter("kept"), record.trials), key=attrgetter("objective", "number")):
        if all(trial.overrides != better.overrides for better in found):
            found.append(trial)
    if len(found) < 2:
        raise CheckFailed(
            f"--confirm {top}: a comparison needs at least two trials; {len(found)} of {len(record.trials)} trials "
            "completed with their guards kept"
        )
    return found[:top]


def plan_reruns(record: SweepRecord, folder: Path, top: int, seeds: int, samples: int) -> list[Rerun]:
    """The re-runs of the `top` best trials with each of `seeds` seeds, on `samples` documents.

    Seeds follow that of the sweep's trials, whose own result chose the candidates and does not count. Lengths grow
    with the data, so that it is seen as often as in the trial: steps, warm-up, evaluations, the curriculum.
    """
    first = load_recipe(record.trial_recipe).training.get("seed", 42) + 1
    found = []
    for seed in range(first, first + seeds):  # all candidates of one seed before the next: complete pairs early
        for trial in best_trials(record, top):
            overrides = _lengthened(record, trial, samples) | {"training.seed": seed}
            name = f"{trial.number:04}_seed_{seed}"
            found.append(Rerun(trial.number, seed, samples, overrides, str(folder / FOLDER / str(samples) / name)))
    return found


def _lengthened(record: SweepRecord, trial: TrialRecord, samples: int) -> dict[str, object]:
    """The overrides of a trial on `samples` documents: a predefined configuration has its own length for all data."""
    if samples == record.samples:
        return trial.overrides
    growth = Fraction(samples * record.full_tokens, record.full_samples * record.tokens)
    if record.type != "predefined":
        return {key: grown(key, value, growth) for key, value in trial.overrides.items()}
    whole = PREDEFINED[trial.params["configuration"]]
    growth = Fraction(whole.full_steps, whole.steps)
    overrides = {key: grown(key, value, growth) for key, value in trial.overrides.items()}
    return overrides | {"training.warmup_steps": whole.full_warmup}


def grown(key: str, value: object, growth: Fraction) -> object:
    """The value of a recipe key in a run that is `growth` times as long; shares of a run (below 1) stay."""
    if key == "data.curriculum" and isinstance(value, Mapping):
        return {**value, "steps": max(1, math.ceil(value["steps"] * growth))}
    is_length = key in _SCALED and isinstance(value, int | float) and value >= 1
    return math.ceil(value * growth) if is_length else value


def data_of(record: SweepRecord, folder: Path, samples: int) -> dict[str, float] | None:
    """`data.train` of a re-run on `samples` documents, made once by `mypt subset`; None: that of the trials."""
    if samples == record.samples:
        return None
    if samples == record.full_samples:
        return record.full_data
    found = {}
    for number, (source, weight) in enumerate(record.full_data.items()):
        target = folder / FOLDER / f"data_{samples}" / f"{number}_{Path(source).name}"
        if not target.exists():
            subset_dataset(source, target, fraction=samples / record.full_samples, seed=record.seed)
        found[str(target)] = weight
    return found


def confirm(
    record: SweepRecord,
    folder: Path,
    *,
    top: int,
    seeds: int,
    samples: int | None = None,
    devices: Sequence[Device],
    tell: Callable[[str], object],
) -> Confirmed:
    """Re-run the `top` best trials with `seeds` seeds each, and judge them. Runs that ended before are not run again.

    Args:
        record: Of the sweep in `folder`.
        samples: Documents to train on; None: the whole data.
        devices: One re-run at a time runs on each.
        tell: Prints a line.

    Raises:
        CheckFailed: Trials that have not ended, or fewer than two to compare.
        MyPTError: As `require_options`.
        FolderInUse: Another process confirms this sweep.
        Interrupted: After SIGINT, SIGTERM or SIGHUP, when the runs have saved a checkpoint and ended.
    """
    unfinished = [trial.number for trial in record.trials if trial.state in ("waiting", "running")]
    if unfinished:
        raise CheckFailed(
            f"--confirm {top}: {len(unfinished)} trials run elsewhere or wait; confirm when they have ended"
        )
    samples = require_options(top, seeds, samples, record.type, record.samples, record.full_samples)
    planned = plan_reruns(record, folder, top, seeds, samples)
    with only_writer(folder / FOLDER):
        train = data_of(record, folder, samples)
        saved = read_confirmation(folder)
        waiting = [run for run in planned if not saved.has(run)]
        tell(_announcement(planned, len(waiting), samples, record))

        def note(run: Rerun) -> None:
            nonlocal saved
            saved = saved.with_run(run)
            write_confirmation(folder, saved)
            tell(_line(run))

        _run_all(record, waiting, train, devices, note)
        saved = saved.seen(look := Look(samples, [trial.number for trial in best_trials(record, top)], seeds))
        write_confirmation(folder, saved)
        return confirmed(record, saved, look)


def require_options(top: int, seeds: int, samples: int | None, kind: str, least: int, most: int) -> int:
    """The documents that re-runs train on, of a sweep of this kind on `least` of `most` documents.

    Raises MyPTError for options that it cannot be confirmed with.
    """
    if top < 2:
        raise MyPTError(f"--confirm is {top}, expected 2 or more trials to compare")
    if seeds < 1:
        raise MyPTError(f"--confirm-seeds is {seeds}, expected 1 or more")
    samples = most if samples is None else samples
    if kind == "predefined" and samples not in (least, most):
        raise MyPTError(
            f"--confirm-samples is {samples}: predefined configurations have lengths for the sweep's {least} samples "
            f"and for all {most}; give one of the two"
        )
    if not least <= samples <= most:
        raise MyPTError(
            f"--confirm-samples is {samples}, expected a number from {least} (the sweep's own) to {most} (all of the "
            "data)"
        )
    return samples


def confirmed(record: SweepRecord, saved: Confirmation, look: Look) -> Confirmed:
    """The verdict of a look at the re-runs that are saved."""
    found: dict[str, dict[int, float | None]] = {}
    for run in saved.runs_of(look):
        found.setdefault(candidate(run.trial), {})[run.seed] = run.loss
    swept = {candidate(trial.number): trial.objective for trial in record.trials if trial.number in look.trials}
    ranked = agreement([*swept.values()], [mean_loss(found[name]) for name in swept])
    seeds = sorted({seed for values in found.values() for seed in values})
    return Confirmed(look.samples, seeds, swept, found, ranked, judge(found, saved.number(look)))


def mean_loss(values: Runs) -> float | None:
    """None if a run failed: such a candidate ranks last."""
    return None if None in values.values() else sum(values.values()) / len(values)


def latest(record: SweepRecord, folder: Path) -> Confirmed | None:
    """The newest verdict of `confirm`, from its file; None without one."""
    saved = read_confirmation(folder)
    return confirmed(record, saved, saved.looks[-1]) if saved.looks else None


def read_confirmation(folder: Path) -> Confirmation:
    """Raises MyPTError for a damaged file."""
    path = folder / FOLDER / CONFIRM_NAME
    if not path.exists():
        return Confirmation()
    return read_json(path, Confirmation, MyPTError, "remove it; re-runs whose folders are there are then only read")


def write_confirmation(folder: Path, confirmation: Confirmation) -> None:
    """Raises OSError."""
    replace_text(folder / FOLDER / CONFIRM_NAME, json.dumps(asdict(confirmation), indent=1) + "\n")


def _run_all(
    record: SweepRecord,
    runs: Sequence[Rerun],
    train: dict[str, float] | None,
    devices: Sequence[Device],
    note: Callable[[Rerun], None],
) -> None:
    """Run them, one at a time on each device; `note` gets each when it ends."""
    free: queue.SimpleQueue[Device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    with stop_on_signal("runs are saved") as stop, ThreadPoolExecutor(len(devices)) as pool:

        def work(run: Rerun) -> Rerun:
            overrides, device = run.overrides | ({"data.train": train} if train else {}), free.get()
            try:
                for _ in range(_ATTEMPTS):
                    if stop.is_set():
                        return run
                    ended = run_trial(record.trial_recipe, overrides, run.folder, env=device.env, stop=stop)
                    if ended.state != "killed":
                        break
            finally:
                free.put(device)
            return replace(run, **{name: getattr(ended, name) for name in _TAKEN})

        try:
            for future in as_completed([pool.submit(work, run) for run in runs]):
                if (run := future.result()).state not in ("waiting", "interrupted"):
                    note(run)
        except BaseException:  # the other runs save a checkpoint, from which the next call resumes
            stop.set()
            raise


_TAKEN = ("state", "reason", "message", "objective", "step", "seconds", "cpu_seconds")


def _announcement(planned: Sequence[Rerun], waiting: int, samples: int, record: SweepRecord) -> str:
    trials, seeds = ({getattr(run, name) for run in planned} for name in ("trial", "seed"))
    where = f"all {samples:,} samples" if samples == record.full_samples else f"{samples:,} samples"
    done = len(planned) - waiting
    return (
        f"re-running the best {len(trials)} trials on {where} (the sweep: {record.samples:,}) with {len(seeds)} seeds "
        f"each: {len(planned)} runs" + (f", {done} of them done" if done else "")
    )


def _line(run: Rerun) -> str:
    what = f"{run.loss:.4f} nats" if run.loss is not None else f"{run.state} ({run.reason}): {run.message}"
    return f"{candidate(run.trial)}, seed {run.seed}: {what}; {run.step or 0:,} steps, {run.seconds:.0f} s"
