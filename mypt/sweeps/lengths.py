"""How long trials are: the repetition of the full run is kept on the subset, and each tenth of a trial is evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

from mypt.hardware.machine import Machine
from mypt.planning.coverage import planned_steps
from mypt.planning.plan import plan
from mypt.planning.step import MICRO_BATCH
from mypt.streams.mixture import epoch_size
from mypt.sweeps.sweep_data import SweepData
from mypt.sweeps.trial import as_override
from mypt.training.speed import with_expected_speed
from mypt.training.target import DEFAULT_BLOCK, Target, planned_run, read_target

EVALUATIONS = 10  # of a trial, after that of step 0: what a pruner sees


@dataclass(frozen=True)
class Run:
    """A run's length: optimizer steps and why; tokens of a window, of a step, and of the data: of a mixture those in
    which its main source is seen once."""

    steps: int
    reason: str
    block_size: int
    tokens_per_step: int
    tokens: int

    @property
    def passes(self) -> float:
        return self.steps * self.tokens_per_step / self.tokens


@dataclass(frozen=True)
class Lengths:
    """Lengths of the trials of a sweep whose trial.yaml is `recipe`."""

    recipe: Path
    data: SweepData
    machine: Machine
    _targets: dict[tuple, Target] = field(default_factory=dict, repr=False)  # read already, by their overrides

    @cached_property
    def full(self) -> Run:
        """The run that the recipe describes, on all of its data."""
        return self._run({"data.train": self.data.full})

    @cached_property
    def base(self) -> Run:
        """The same on the subset."""
        return self._run(self.overrides({}))

    @cached_property
    def share(self) -> Fraction:
        """Share of the tokens of all data that the subset has."""
        full, subset = (self._target({"data.train": train}) for train in (self.data.full, self.data.train))
        return Fraction(_tokens(subset), _tokens(full))

    def overrides(self, params: Mapping[str, object], *, scaled: bool = True) -> dict[str, object]:
        """{section.key: value} of a trial: `params`, what they and the recipe give in steps scaled, and evaluations.

        Args:
            params: Over the recipe, lengths and warm-ups as of the run on all data.
            scaled: Whether to scale them; a predefined configuration has its lengths on the subset.
        """
        found = dict(params)
        if scaled:
            found |= {name: after for name, (_, after) in self.scaled(params).items()}
        steps = self._run(found).steps
        found["training.max_steps"] = steps
        return found | dict.fromkeys(("training.eval_steps", "training.save_steps"), ceil(steps / EVALUATIONS))

    def scaled(self, params: Mapping[str, object]) -> dict[str, tuple[object, object]]:
        """{section.key: (value for all data, value for the subset)} of what is given in steps."""
        training = self._target({}).recipe.training | _of_section("training", params)
        curriculum = params.get("data.curriculum", self._target({}).recipe.data.curriculum)
        found = {}
        for name in ("max_steps", "warmup_steps"):
            steps = training.get(name)
            # max_steps -1 is HF's "not given", and a warm-up below 1 a share of the steps.
            if isinstance(steps, int | float) and steps >= 1:
                found[f"training.{name}"] = (steps, ceil(steps * self.share))
        if curriculum:
            after = curriculum | {"steps": ceil(curriculum["steps"] * self.share)}
            found["data.curriculum"] = (curriculum, after)
        return {} if self.share == 1 else found

    def run(self, overrides: Mapping[str, object]) -> Run:
        """The length of a trial with these overrides."""
        return self._run(overrides)

    def seconds(self, overrides: Mapping[str, object]) -> float | None:
        """Wall time that a trial is expected to take on this machine; None where nothing is known about its speed."""
        target = self._target(overrides)
        run = replace(planned_run(target, self.machine), steps=self._run(overrides).steps, text=0)
        found = plan(with_expected_speed(run, target, self.machine, here=True)).time
        return found.seconds if found else None

    def _run(self, overrides: Mapping[str, object]) -> Run:
        target = self._target(overrides)
        block_size = target.settings.get("block_size", DEFAULT_BLOCK)
        sequences = target.settings.get("micro_batch_size", MICRO_BATCH) * target.settings.get("accumulation", 1)
        samples, tokens = epoch_size(target.sources, block_size)
        steps, reason = planned_steps(
            target.steps["max_steps"],
            target.steps["num_train_epochs"],
            target.steps["coverage_target"],
            samples,
            tokens,
            sequences,
            block_size,
        )
        return Run(steps, reason, block_size, sequences * block_size, tokens)

    def _target(self, overrides: Mapping[str, object]) -> Target:
        words = tuple(as_override(key, value) for key, value in overrides.items())
        if words not in self._targets:
            self._targets[words] = read_target(str(self.recipe), [*words], self.machine)
        return self._targets[words]


def _tokens(target: Target) -> int:
    return epoch_size(target.sources, target.settings.get("block_size", DEFAULT_BLOCK))[1]


def _of_section(section: str, params: Mapping[str, object]) -> dict[str, object]:
    return {key.partition(".")[2]: value for key, value in params.items() if key.startswith(f"{section}.")}
