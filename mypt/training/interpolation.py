"""A run that did not keep every guard to its end: interpolate towards the start, and publish what keeps them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from mypt.checkpoints.adapter import weights_fingerprint
from mypt.checkpoints.checksums import changed_file, write_checksums
from mypt.checkpoints.complete import last_complete_checkpoint, step_of
from mypt.checkpoints.interpolated import InterpolationReport, chosen_point, read_interpolation
from mypt.checkpoints.state import FORGETTING_NAME, read_forgetting
from mypt.errors import CheckFailed, CheckpointError
from mypt.evaluation.baseline import described
from mypt.evaluation.evaluator import Evaluator
from mypt.evaluation.forgetting import INFEASIBLE, Policy, describe_sets
from mypt.evaluation.interpolate import Interpolation, write_report
from mypt.files import replace_text, system_errors
from mypt.folders import exchange
from mypt.training.run_folder import BEST_NAME, model_paths, recorded_identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN_NAME = ".interpolation"  # in the run folder, while models are written there
_IN_VERDICT = f" {BEST_NAME} is interpolated: "


@dataclass(frozen=True)
class Start:
    """The model that training started from.

    Attributes:
        name: Folder or hub id, `model.init_from`.
        build: Makes it again, on the CPU: converted, extended and in the dtype of training. None: it is the named model
            itself, the base of adapters.
    """

    name: str
    build: Callable[[], PreTrainedModel] | None


def kept_guards(trainer_state: dict) -> bool:
    """Whether a saved step kept every guarded set within the tolerance, or there is nothing to keep."""
    best = trainer_state.get("best_metric")
    return best is None or best < INFEASIBLE


class InterpolatedBest:
    """W(alpha) from the start of a run towards a saved step of it, as OUT/best.

    The best saved step and the last one are tried, each with the largest alpha that keeps every guard on the windows
    that training evaluated; the one whose target loss is lower is published.

    Args:
        run: The run folder.
        start: Where training started.
        best: Name or path of the best saved step.
        policy: The guarded sets and the tolerance.
        evaluator: Of this process alone.
        best_kept: Whether the best saved step kept every guard in training.
    """

    def __init__(
        self, run: Path, start: Start, best: str, policy: Policy, evaluator: Evaluator, *, best_kept: bool = False
    ):
        self.run, self.start, self.policy, self.evaluator = run, start, policy, evaluator
        self.best_kept = best_kept
        steps = [run / Path(best).name, last_complete_checkpoint(run)[0]]
        self.steps = [step for step in dict.fromkeys(steps) if step and step.is_dir()]

    def found(self) -> InterpolationReport | None:
        """The report of OUT/best, if that is this interpolation, and whole."""
        best = self.run / BEST_NAME
        try:
            report = read_interpolation(best)
        except CheckpointError:
            return None
        if not report or report.get("inputs") != self._inputs() or changed_file(best):
            return None
        adapted = self.run / Path(report["adapted"]).name
        return report if all((best / file.name).is_file() for file in model_paths(adapted)) else None

    def make(self) -> InterpolationReport | None:
        """Find alpha and put W(alpha) in the place of OUT/best, which is the old or the new one at every moment.

        None: the best saved step, which kept the guards, is better as it is.

        Raises:
            CheckpointError: The start is not there any more, or cannot be interpolated with.
            CheckFailed: No step of a hundredth keeps the guards.
            MyPTError, OSError, RuntimeError: As models and evaluations do, out of memory included.
        """
        hidden, best = self.run / HIDDEN_NAME, self.run / BEST_NAME
        shutil.rmtree(hidden, ignore_errors=True)  # of a process that was killed
        try:
            with system_errors(hidden):
                base = self._base(hidden)
                tried = [self._try(base, step, hidden / step.name) for step in self.steps]
                report, folder = min(filter(None, tried), key=self._target_loss, default=(None, None))
                if report is None:
                    raise CheckFailed(
                        f"no step of a hundredth from {self.start.name} towards a saved step keeps "
                        f"{', '.join(self.policy.guard)} within {self.policy.tolerance:g} nats"
                    )
                if self.best_kept and report["alpha"] == 1 and folder.name == self.steps[0].name:
                    return None
                write_report(folder, report)
                write_checksums(folder)
                exchange(folder, best) if best.is_dir() else folder.rename(best)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        return report

    def _try(self, base: str, step: Path, folder: Path) -> tuple[InterpolationReport, Path] | None:
        """W(alpha) between `base` and a saved step, written to `folder`; None if alpha is 0."""
        folder.mkdir(parents=True)
        interpolation = Interpolation(base, step, folder, model_paths(step))
        alpha, curve = interpolation.keep(self.evaluator, self.policy)
        if alpha == 0:
            return None
        interpolation.finish(alpha)
        report = {"alpha": alpha, "base": self.start.name, "adapted": str(step), "out": str(self.run / BEST_NAME)}
        report |= {"step": step_of(step), "guard": [*self.policy.guard], "target": [self.policy.target]}
        return report | {"tolerance": self.policy.tolerance, "curve": curve, "inputs": self._inputs()}, folder

    def _target_loss(self, tried: tuple[InterpolationReport, Path]) -> float:
        return chosen_point(tried[0])["sets"][self.policy.target]["loss"]

    def _base(self, hidden: Path) -> str:
        """Folder or hub id of W(0). Raises CheckpointError if the start's weights are not those of this run."""
        if self.start.build is None:  # an adapter has the fingerprint of its base, which is compared when it is loaded
            return self.start.name
        name, found = self.start.name, weights_fingerprint(self.start.name)
        recorded = recorded_identity(self.run).get("init_from")
        if isinstance(recorded, dict) and recorded["weights"] != found:
            what = "holds other weights than those that the run started from" if found else "is not there any more"
            raise CheckpointError(f"model.init_from {name} {what}")
        self.start.build().save_pretrained(hidden / "start")
        return str(hidden / "start")

    def _inputs(self) -> str:
        """xxh3-128 of all that decides which W(alpha) is published."""
        steps = {step.name: weights_fingerprint(str(step)) for step in self.steps}
        start = recorded_identity(self.run).get("init_from")
        policy = [self.policy.target, *self.policy.guard, self.policy.tolerance]
        content = json.dumps([start, steps, policy, described(self.evaluator.sets)], sort_keys=True)
        return xxhash.xxh3_128_hexdigest(content.encode())


def describe(report: InterpolationReport) -> str:
    """`alpha 0.50 of the way from the start to step 120: domain 4.74 | general 4.66 (+0.05 +/- 0.00, healthy)`."""
    way = f"alpha {report['alpha']:.2f} of the way from the start to step {report['step']}"
    return f"{way}: {describe_sets(chosen_point(report)['sets'])}"


def record(run: Path, report: InterpolationReport | None) -> None:
    """Name in forgetting.json the interpolation that OUT/best is, and no other."""
    path = run / FORGETTING_NAME
    if not path.is_file() or not (report or b'"interpolation"' in path.read_bytes()):
        return
    content = read_forgetting(run)
    changed = {name: value for name, value in content.items() if name != "interpolation"}
    changed["verdict"] = content.get("verdict", "").partition(_IN_VERDICT)[0]
    if report:
        changed["verdict"] += f"{_IN_VERDICT}{describe(report)}."
        kept = ("alpha", "step", "base", "tolerance")
        changed["interpolation"] = {name: report[name] for name in kept} | {"sets": chosen_point(report)["sets"]}
    if changed != content:
        replace_text(path, json.dumps(changed, indent=1))
