"""A sweep: read what is searched, prepare the data once, join the study, run trials on every device, report."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mypt.errors import recipe_wording
from mypt.folders import require_own
from mypt.formatting import duration
from mypt.hardware.devices import machine_like
from mypt.hardware.machine import cpus, this_machine
from mypt.recipe import Recipe, SweepSection, load_recipe
from mypt.sweeps.lengths import EVALUATIONS, Lengths
from mypt.sweeps.record import RECORD_NAME, TRIALS_NAME, SweepRecord, TrialRecord, turn
from mypt.sweeps.space import DEFAULT_SPACE, PREDEFINED, Space, parser, read_space
from mypt.sweeps.study import Search, Study, without_password
from mypt.sweeps.sweep_data import SweepData, prepare_data
from mypt.sweeps.trial import train_command, write_recipe
from mypt.training.data.fetched import fetched
from mypt.training.request import check, output_dir

TRIAL_RECIPE, JOURNAL_NAME, CACHE_NAME = "trial.yaml", "study.journal", "prepared"


@dataclass(frozen=True)
class Device:
    """Where a worker runs its trials. name: `gpu 2`, `cpu 0`. env: what its processes are started with."""

    name: str
    env: Mapping[str, str]


def gpu_workers(numbers: list[str]) -> list[Device]:
    """A worker for each of these GPUs, which its trials see as their only one."""
    return [Device(f"gpu {number}", {"CUDA_VISIBLE_DEVICES": number}) for number in numbers]


def cpu_workers(count: int) -> list[Device]:
    """Workers that share the CPUs of this process; each trial computes with its share of threads."""
    threads = str(max(1, cpus() // count))
    env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return [Device(f"cpu {number}", env) for number in range(count)]


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run.

    Attributes:
        recipe: As it was named. overrides: `--section.key=value` over it. out: The sweep's folder.
        section: `sweep` of the recipe, with its type decided.
        space: What is searched; empty for predefined configurations.
        configurations: {name: overrides} of those.
        data: The subset. lengths: Of the trials.
    """

    recipe: str
    overrides: list[str]
    out: Path
    section: SweepSection
    space: Space
    configurations: Mapping[str, Mapping[str, object]]
    data: SweepData
    lengths: Lengths

    @property
    def trial_recipe(self) -> Path:
        return self.out / TRIAL_RECIPE

    @property
    def trials(self) -> int:
        return len(self.configurations) or self.section.trials

    @property
    def pruner(self) -> str:
        """Predefined configurations run to their ends: they differ in length and size."""
        return "none" if self.configurations else self.section.pruner

    @property
    def storage(self) -> str:
        return self.section.storage or str(self.out / JOURNAL_NAME)

    def folder(self, number: int) -> Path:
        return (self.out / TRIALS_NAME / f"{number:04d}").absolute()

    def given(self, params: Mapping[str, object], configuration: str) -> dict[str, object]:
        """{section.key: value} of a trial over trial.yaml, its length included."""
        if configuration:
            return self.lengths.overrides(self.configurations[configuration], scaled=False)
        return self.lengths.overrides(params)

    def search(self) -> Search:
        return Search(self.section.type, self.space, self.configurations, self.pruner, self.section.seed, self.trials)

    def join(self, name: str) -> Study:
        """The study, made by the first process. Raises MyPTError if it was made for another sweep."""
        study = Study(self.storage, name, self.search())
        content = _trial_content(load_recipe(self.recipe, self.overrides), self.section, None)
        section = self.section
        facts = {
            "recipe": content,
            "data": self.data.identity,
            "sweep.type": section.type,
            "sweep.space": {key: repr(kind) for key, kind in self.space.distributions.items()},
            "sweep.pruner": self.pruner,
            "sweep.seed": section.seed,
        }
        study.agree(facts)
        return study


@recipe_wording()
def read_sweep(
    path: str, overrides: list[str], out: Path | None, *, device: str | None, tell: Callable[[str], object]
) -> Sweep:
    """Check a recipe and its `sweep` section, prepare its subset and write trial.yaml.

    Args:
        path: A recipe. overrides: `--section.key=value`.
        out: The sweep's folder; None: the recipe's output_dir with `-sweep` at its end.
        device: As of `mypt plan --device`, for the expected times; None: this machine.
        tell: Prints a line.

    Raises:
        MyPTError: For a recipe, a space or data that cannot be used as asked.
    """
    recipe = load_recipe(path, overrides)
    out = out or Path(f"{output_dir(recipe)}-sweep")
    # What `mypt train` would refuse, in a folder that is nobody's.
    check(replace(recipe, training=recipe.training | {"output_dir": str(out / TRIALS_NAME / "new")}), resume=False)
    require_own(out, _is_sweep, "mypt sweep")
    section = recipe.sweep or SweepSection()
    section = replace(section, type=section.type or ("optimized" if section.space else "predefined"))
    space = Space({})
    if section.type != "predefined":
        space = read_space(section.space or DEFAULT_SPACE, parser(path, overrides))
    data = prepare_data(
        fetched(recipe)[0], out.parent / CACHE_NAME, samples=section.samples, seed=section.seed, tell=tell
    )
    trial_recipe = out / TRIAL_RECIPE
    with turn(out):
        write_recipe(trial_recipe, _trial_content(recipe, section, data))
    lengths = Lengths(trial_recipe, data, machine_like(device) if device else this_machine())
    configurations = {}
    if section.type == "predefined":
        block_size = lengths.base.block_size
        configurations = {name: one.overrides(recipe, block_size) for name, one in PREDEFINED.items()}
    return Sweep(path, overrides, out, section, space, configurations, data, lengths)


def _is_sweep(folder: Path) -> bool:
    return (folder / TRIAL_RECIPE).is_file() or (folder / RECORD_NAME).is_file()


def _trial_content(recipe: Recipe, section: SweepSection, data: SweepData | None) -> dict:
    """trial.yaml; without `data` what of it every process of a study must share, wherever its data lies."""
    content = recipe.to_dict()
    for name in ("sweep", "upload"):
        content.pop(name, None)
    content["training"] = {"save_total_limit": 2} | content["training"]
    content["training"].pop("output_dir", None)
    if section.objective == "target":
        content["forgetting"] |= {"guard": []}
    moved = {"train": {}, "eval": {}} if data is None else {"train": data.train, "eval": data.eval}
    content["data"] |= moved | {"max_train_examples": None, "stride": None}
    return content


# ---- what is printed before the trials ----


def plan_lines(sweep: Sweep) -> list[str]:
    """The planned trials, their length, and the values that were scaled."""
    lengths, section = sweep.lengths, sweep.section
    if sweep.configurations:
        lines = []
        for name, one in PREDEFINED.items():
            trial = lengths.run(sweep.given({}, name))
            full = one.full_steps * trial.tokens_per_step / lengths.full.tokens
            lines.append(
                f"{name}: {one.steps:,} steps on the subset ({one.full_steps:,} on all data), warm-up {one.warmup:,} "
                f"({one.full_warmup:,}): {trial.passes:.1f} passes over the subset ({full:.1f} over all data)"
            )
        return lines
    base, full = lengths.base, lengths.full
    lines = [
        f"full run: {full.steps:,} steps ({full.reason}), {full.passes:.2f} passes over {full.tokens:,} tokens",
        f"a trial: {base.steps:,} steps, {base.passes:.2f} passes over the subset's {base.tokens:,} tokens, evaluated "
        f"and saved {EVALUATIONS} times",
    ]
    changed = ", ".join(
        f"{key} {_short(before)} -> {_short(after)}" for key, (before, after) in lengths.scaled({}).items()
    )
    if changed:
        lines.append(f"scaled to {float(lengths.share):.1%} of the tokens, so that the repetition stays: {changed}")
    objective = "eval_constrained_loss of OUT/best" if section.objective == "constrained" else "the target's loss"
    lines.append(
        f"{section.type} search of {sweep.trials} trials over {', '.join(sweep.space.distributions)}; "
        f"objective: {objective}; pruner: {sweep.pruner}"
    )
    return lines


def _short(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def dry_run(sweep: Sweep, workers: list[Device]) -> list[str]:
    """Every command with its device and expected time; of an optimized search, values as its first trials have them."""
    import optuna

    search = sweep.search()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names, total = [*sweep.configurations], [0.0] * len(workers)
    lines = []
    for number in range(sweep.trials):
        study = optuna.create_study(sampler=search.sampler(number))
        params = sweep.space.suggest(study.ask()) if sweep.space.distributions else {}
        given = sweep.given(params, names[number] if names else "")
        index = number % len(workers)
        seconds = sweep.lengths.seconds(given)
        total[index] += seconds or 0
        device = workers[index]
        env = [f"{key}={value}" for key, value in device.env.items()]
        command = shlex.join([*env, *train_command(sweep.trial_recipe, given, sweep.folder(number))])
        lines += [f"{device.name}, {f'about {duration(seconds)}' if seconds else 'time not known'}:", f"  {command}"]
    if sweep.section.type == "optimized":
        lines.append("the values are examples: TPE chooses those of later trials by the earlier ones")
    if any(total):
        lines.append(f"about {duration(max(total))} on {len(workers)} workers, if no trial is pruned")
    return lines


# ---- what is recorded and printed after them ----


def make_record(sweep: Sweep, study: Study) -> SweepRecord:
    """sweep.json, from the study."""
    section, lengths = sweep.section, sweep.lengths
    entries = {entry.user_attrs["trial"]: entry for entry in study.entries()}
    return SweepRecord(
        recipe=sweep.recipe,
        trial_recipe=str(sweep.trial_recipe.absolute()),
        type=section.type,
        objective=section.objective,
        pruner=sweep.pruner,
        space=dict(section.space or DEFAULT_SPACE) if not sweep.configurations else {},
        study=study.name,
        storage=without_password(sweep.storage),
        seed=section.seed,
        samples=sweep.data.samples,
        full_samples=sweep.data.full_samples,
        tokens=lengths.base.tokens,
        full_tokens=lengths.full.tokens,
        full_data=sweep.data.full,
        full_steps=lengths.full.steps,
        passes=lengths.full.passes,
        trials=[_trial(sweep, number, entries[number]) for number in sorted(entries)],
    )


_STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}


def _trial(sweep: Sweep, number: int, entry) -> TrialRecord:
    facts = entry.user_attrs
    ended = facts.get("ended", {})
    names = [*sweep.configurations]
    state = "waiting" if facts.get("gone") else _STATES[entry.state.name]
    params = {"configuration": names[number]} if names else sweep.space.decoded(entry.params)
    return TrialRecord(
        number=number,
        state=state,
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        overrides=facts.get("overrides", {}),
        params=params,
        objective=entry.value if state == "completed" else None,
        standard_error=ended.get("standard_error"),
        values=[[percent, value] for percent, value in sorted(entry.intermediate_values.items())],
        step=ended.get("step"),
        max_steps=facts.get("overrides", {}).get("training.max_steps"),
        best_step=ended.get("best_step"),
        seconds=ended.get("seconds", 0.0),
        cpu_seconds=ended.get("cpu_seconds", 0.0),
        attempts=ended.get("attempts", 0),
        device=facts.get("device", ""),
        folder=facts.get("folder", ""),
    )
