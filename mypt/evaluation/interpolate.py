"""Interpolate between a base model and one adapted from it, and find the largest step that keeps guarded sets."""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.adapter import is_adapter
from mypt.checkpoints.interpolated import PLOT_NAME, REPORT_NAME, interpolated_weights
from mypt.checkpoints.load import load_adapter, load_model, require_model, with_adapter
from mypt.checkpoints.meta import read_config
from mypt.checkpoints.model_config import cached_model
from mypt.checkpoints.state import FORGETTING_NAME, METRICS_NAME
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.evaluation.compare import common_block_size, open_sets
from mypt.evaluation.forgetting import TOLERANCE, Policy, allowed, assess, describe_sets, require_tolerance
from mypt.files import replace_text
from mypt.folders import new_folder, require_free
from mypt.inspection.diff import IGNORED_FIELDS, differing_fields
from mypt.plots import add_legend, new_axes
from mypt.shards.open_dataset import open_dataset
from mypt.shards.reader import check_files
from mypt.storage.upload_files import CARD_NAME, model_files
from mypt.terminal import one_line, progress_bar, say

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from mypt.evaluation.evaluator import Evaluator, Readings

TOLERATED = 1e-5  # of the largest logit: what two orders of summing may differ by, in float32
_PROBE = 64  # ids of each of two sequences
# Of the adapted model, and not of this one.
_NOT_COPIED = (
    CARD_NAME, "diagnosis.json", FORGETTING_NAME, "forgetting.png", "loss.png", METRICS_NAME, REPORT_NAME,
    PLOT_NAME,
)  # fmt: skip
_STEPS = 100  # alphas are tried in hundredths
_GRID = (75, 50, 25)  # tried from the top, until one keeps every guarded set


def largest_kept(
    measure: Callable[[float], Readings], policy: Policy, say: Callable[[dict], object] = lambda point: None
) -> tuple[float, list[dict]]:
    """The largest alpha, in hundredths, at which every guarded set is healthy by `mypt.evaluation.forgetting.judge`.

    1 and then quarters are tried from the top; between the first that keeps all and the one above it, the crossing is
    narrowed down by false position and bisection. A curve that leaves the tolerance and returns to it between two
    tried alphas is not seen.

    Args:
        measure: Readings of W(alpha); of alpha 0 they are the baseline.
        policy: The guarded sets and the tolerance in nats.
        say: Called with each point.

    Returns:
        alpha (0 if no step keeps them) and the points that were measured, by alpha: {"alpha", "sets"}, the sets as
        `assess` has them.
    """
    start, points = measure(0.0), {}
    baseline = {name: reading.losses for name, reading in start.items()}

    def excess(number: int) -> float:
        """Nats beyond what is allowed, of the set that lost most; infinite for NaN."""
        readings = measure(number / _STEPS) if number else start
        sets = assess(0, readings, baseline, policy)["sets"]
        points[number] = {"alpha": number / _STEPS, "sets": sets}
        say(points[number])
        guarded = [sets[name] for name in policy.guard]
        beyond = [reading["delta"] - allowed(reading["delta_error"], policy.tolerance) for reading in guarded]
        return max(value if math.isfinite(value) else math.inf for value in beyond)

    low, below = 0, excess(0)
    high, above = _STEPS, excess(_STEPS)
    if above <= 0:
        low = high
    for number in _GRID if above > 0 else ():
        if (found := excess(number)) <= 0:
            low, below = number, found
            break
        high, above = number, found
    halve = False
    while high - low > 1:
        crossing = low + (high - low) * below / (below - above) if math.isfinite(above) else low
        number = (low + high) // 2 if halve else min(max(round(crossing), low + 1), high - 1)
        span = high - low
        if (found := excess(number)) <= 0:
            low, below = number, found
        else:
            high, above = number, found
        halve = high - low > span / 2
    return low / _STEPS, [points[number] for number in sorted(points)]


def interpolate(
    base: str | Path,
    adapted: str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    guard: dict[str, str] | None = None,
    target: dict[str, str] | None = None,
    tolerance: float = TOLERANCE,
    block_size: int | None = None,
    batch_size: int = 8,
    extrapolate: bool = False,
) -> dict[str, Any]:
    """Write W_base + alpha (W_adapted - W_base) to the folder `out`, in the adapted model's dtype and layout.

    One pair of tensors is in memory beside one model, in float32. The models are compared first: W(0) must give the
    base model's own logits. The model that is measured at an alpha is the one that would be written.

    Args:
        base: Folder or hub id of the model that training started from.
        adapted: Folder of the adapted model, or of a LoRA adapter, whose change is scaled.
        alpha: 0 (base) to 1 (adapted). None: the largest that keeps every guarded set (`largest_kept`).
        guard: {name: dataset directory} whose val splits may lose `tolerance` nats per token against the base.
        target: {name: dataset directory} of further sets to measure.
        block_size: Context of the evaluation in tokens; default the model's.
        batch_size: Windows in a forward pass.
        extrapolate: Allow an alpha above 1.

    Returns:
        The JSON-ready content of `out`/interpolation.json: base, adapted, out, alpha, guard, target, tolerance, and
        `curve`, the points of `largest_kept`. interpolation.png shows it (with the `plots` extra).

    Raises:
        CheckpointError: The two are not a model and its adaptation; `out` is not empty.
        TokenizerError: Their tokenizers, or a dataset's, differ.
        DataError: A dataset directory is damaged.
        MyPTError: An argument out of its range.
        CheckFailed: No step from the base keeps every guarded set. Nothing is written.
    """
    guard, target = guard or {}, target or {}
    checked = {"alpha": alpha, "guard": guard, "target": target, "tolerance": tolerance, "batch_size": batch_size}
    require_interpolation(base, adapted, out, **checked, extrapolate=extrapolate)
    from mypt.evaluation.evaluator import Evaluator

    report: dict[str, Any] = {"base": str(base), "adapted": str(adapted), "out": str(out)}
    report |= {"guard": [*guard], "target": [*target], "tolerance": tolerance, "curve": []}
    with new_folder(out) as folder:
        interpolation = Interpolation(str(base), Path(adapted), folder, model_files(Path(adapted)))
        if alpha is None:
            block_size = common_block_size({str(adapted): interpolation.context}, block_size)
            vocabularies = {str(adapted): interpolation.vocab_size}
            evaluator = Evaluator(open_sets(target | guard, vocabularies, block_size=block_size), batch_size)
            policy = Policy(next(iter(target or guard)), [*guard], tolerance)
            alpha, report["curve"] = interpolation.keep(evaluator, policy, _say_point)
            if alpha == 0:
                raise CheckFailed(
                    f"no step of a hundredth from {base} towards {adapted} keeps {', '.join(guard)} within "
                    f"{tolerance:g} nats; nothing is written"
                )
        interpolation.finish(alpha)
        report = {"alpha": alpha, **report}
        write_report(folder, report)
    return report


def require_interpolation(
    base: str | Path,
    adapted: str | Path,
    out: str | Path,
    *,
    alpha: float | None,
    guard: dict[str, str],
    target: dict[str, str],
    tolerance: float,
    batch_size: int,
    extrapolate: bool,
) -> None:
    """Refuse for `interpolate` what can be known before torch is imported."""
    require_free(out, CheckpointError)
    if (alpha is None) == (not guard):
        raise MyPTError("give either --alpha, or --guard NAME=DIR with the sets to keep")
    if alpha is not None and not 0 <= alpha <= (sys.float_info.max if extrapolate else 1):
        more = "" if extrapolate else "; beyond 1 it extrapolates, which --extrapolate allows"
        raise MyPTError(f"--alpha is {alpha:g}, expected 0 (the base model) to 1 (the adapted one){more}")
    require_tolerance(tolerance)
    if batch_size < 1:
        raise MyPTError(f"--batch-size is {batch_size}, expected 1 window or more")
    if twice := guard.keys() & target.keys():
        raise MyPTError(f"{', '.join(sorted(twice))} is given both as --guard and as --target; a name is for one set")
    for directory in (guard | target).values():
        check_files(Path(directory), open_dataset(directory), "val")
    require_model(base)
    if require_model(adapted) not in (None, Path(adapted)):
        raise CheckpointError(f"{adapted} is an adapter of the hub; bring it here first: mypt download")
    if Path(base).is_dir():
        interpolated_weights(base, adapted)


class Interpolation:
    """The models W(alpha) between a base model and an adapted one, written to `folder` one at a time.

    Attributes:
        weights: The pairs of tensors.
        context: Longest context of the model in tokens, None if its config names none; vocab_size: its vocabulary.
    """

    def __init__(self, base: str, adapted: Path, folder: Path, files: Iterable[Path]):
        """Copy the adapted model's `files` to `folder`, records and weights left out, and compare W(0) with the base.

        Raises CheckpointError and TokenizerError as `interpolated_weights`, and CheckpointError if W(0) computes
        something else than the base model.
        """
        self.folder, self.base = folder, base
        if not Path(base).is_dir() and cached_model(base) is None:
            load_model(base)  # from the hub into its cache
        self.weights = interpolated_weights(base, adapted)
        for path in files:
            if path.name not in _NOT_COPIED and not path.name.endswith(".safetensors"):
                shutil.copyfile(path, folder / path.name)
        model = self._load(0.0)
        config = model.config.get_text_config()
        self.context, self.vocab_size = getattr(config, "max_position_embeddings", None), config.vocab_size
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        found = self._logits(model.float())
        del model  # before the next one: only one is in memory
        model = load_model(base)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype)).float()
        expected = self._logits(model)
        difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
        if not difference <= TOLERATED * largest < math.inf:
            configs = (read_config(folder)[1] for folder in (base, adapted if not is_adapter(adapted) else base))
            other = [name for name in differing_fields(*configs) if name.partition(".")[0] not in IGNORED_FIELDS]
            raise CheckpointError(
                f"{adapted} was not trained from {base}: with the base's weights it computes other logits (by "
                f"{difference:.1e}, the largest is {largest:.1f})"
                + (f"; their configs differ in {', '.join(other)}" if other else "")
            )

    def model(self, alpha: float) -> PreTrainedModel:
        """W(alpha): written, rounded to the adapted model's dtype; read again, to compute in float32."""
        return self._load(alpha).float()

    def keep(
        self, evaluator: Evaluator, policy: Policy, say: Callable[[dict], object] = lambda point: None
    ) -> tuple[float, list[dict]]:
        """`largest_kept`, with a bar for each evaluation."""

        def measure(alpha: float) -> Readings:
            windows = sum(map(len, evaluator.sets.values()))
            with progress_bar(total=windows, unit="window", desc=f"alpha {alpha:g}") as bar:
                return evaluator.measure(self.model(alpha), bar.update)

        return largest_kept(measure, policy, say)

    def finish(self, alpha: float) -> None:
        """Leave W(alpha) in the folder. Raises CheckFailed if it computes NaN or infinity."""
        if not self._logits(self.model(alpha)).isfinite().all():
            raise CheckFailed(f"the model of alpha {alpha:g} computes NaN or infinite logits; nothing is written")

    def _load(self, alpha: float) -> PreTrainedModel:
        gc.collect()  # the model before this one
        self.weights.write(alpha, self.folder)
        if is_adapter(self.folder):
            return with_adapter(load_adapter(self.folder, base=self.base), self.folder)
        return load_model(self.folder)

    def _logits(self, model: PreTrainedModel) -> Tensor:
        """Logits of random ids that both models know, float32 (2, T, ids)."""
        import torch

        shared = min(self.weights.shared_ids, model.config.get_text_config().vocab_size)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(shared, (2, min(_PROBE, self.context or _PROBE)), generator=generator)
        with torch.no_grad():
            return model(input_ids=ids.to(model.device), use_cache=False).logits[..., :shared]


def _say_point(point: dict) -> None:
    say(f"alpha {point['alpha']:.2f}: {describe_sets(point['sets'])}", error=True)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write interpolation.json, and interpolation.png where several alphas were measured."""
    replace_text(folder / REPORT_NAME, json.dumps(report, indent=1) + "\n")
    if len(report["curve"]) > 1:
        plot(report, folder / PLOT_NAME)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw each set's change against alpha with two standard errors, the tolerance and the alpha that was chosen."""
    figure, axes = new_axes("Between the base model (0) and the adapted one (1)", "alpha", "nats per token from base")
    if figure is None:
        return
    alphas = [point["alpha"] for point in report["curve"]]
    for name in report["curve"][0]["sets"]:
        deltas, errors = ([point["sets"][name][key] for point in report["curve"]] for key in ("delta", "delta_error"))
        role = "guard" if name in report["guard"] else "target"
        bars = [2 * error for error in errors]
        axes.errorbar(alphas, deltas, yerr=bars, label=f"{one_line(name)} ({role})", marker=".", capsize=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(report["tolerance"], color="black", linewidth=0.8, linestyle=":", label="tolerance")
    axes.axvline(report["alpha"], color="gray", linewidth=0.8, linestyle="--", label=f"alpha {report['alpha']:g}")
    add_legend(axes)
    figure.savefig(path)
