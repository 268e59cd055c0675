"""Save and load the losses of every evaluation window at step 0, against which later changes are paired."""

import math
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mypt.errors import CheckpointError
from mypt.evaluation.loss import WindowLosses
from mypt.files import system_errors
from mypt.streams.eval_windows import EvalWindows

BASELINE_NAME = "forgetting_baseline.safetensors"
_CHECKSUM = " xxh3-128 "  # in the file's metadata, between the description of the windows and the digest of the losses


def save_baseline(directory: Path, baseline: dict[str, WindowLosses], eval_sets: dict[str, EvalWindows]) -> None:
    """Write the per-window sums of each set, the description of its windows, and a checksum."""
    tensors = {f"{name}.sums": losses.sums for name, losses in baseline.items()}
    tensors |= {f"{name}.tokens": losses.tokens for name, losses in baseline.items()}
    metadata = {name: windows + _CHECKSUM + _digest(baseline[name]) for name, windows in described(eval_sets).items()}
    directory.mkdir(parents=True, exist_ok=True)
    with system_errors(directory / BASELINE_NAME):
        save_file(tensors, directory / BASELINE_NAME, metadata=metadata)


def load_baseline(
    directory: Path, eval_sets: dict[str, EvalWindows], losses: dict[str, float]
) -> dict[str, WindowLosses]:
    """Read what `save_baseline` wrote.

    Args:
        losses: Each set's loss at step 0 in the run's history, nats per token.

    Raises:
        CheckpointError: The file is missing, damaged, of other windows or of another run.
    """
    path = directory / BASELINE_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: without it no change can be measured; restore it to resume")
    try:
        with safe_open(path, "np") as file:
            recorded = {name: text.partition(_CHECKSUM) for name, text in (file.metadata() or {}).items()}
            if {name: windows for name, (windows, _, _) in recorded.items()} != described(eval_sets):
                raise CheckpointError(
                    f"{path} was measured on other evaluation sets than those given now; a baseline is only "
                    "comparable on the same windows: restore the sets (data.eval), or start a new run"
                )
            baseline = {
                name: WindowLosses(file.get_tensor(f"{name}.sums"), file.get_tensor(f"{name}.tokens"))
                for name in eval_sets
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it to resume") from None
    for name, measured in baseline.items():
        if fault := _fault(measured, eval_sets[name], recorded[name][2], losses.get(name, math.nan)):
            raise CheckpointError(f"{path} is damaged: {fault} of {name}; restore it to resume")
    return baseline


def _fault(measured: WindowLosses, windows: EvalWindows, checksum: str, loss: float) -> str | None:
    """Why these cannot be the step-0 losses of the windows, or None. checksum: empty in files of older versions."""
    for name, array, dtype in (("sums", measured.sums, "float64"), ("tokens", measured.tokens, "int64")):
        if (array.dtype, array.shape) != (np.dtype(dtype), (len(windows),)):
            return f"{dtype} of shape {(len(windows),)} expected, {array.dtype} of {array.shape} found as the {name}"
    if not np.array_equal(measured.tokens, windows.lengths):
        return "other numbers of tokens in the windows"
    if not (np.isfinite(measured.sums) & (measured.sums >= 0)).all():
        return "negative, NaN or infinite sums"
    if checksum and checksum != _digest(measured):
        return "another checksum than the recorded one"
    if not abs(measured.loss - loss) <= 1e-9 * loss:
        return f"a loss of {measured.loss:.6g}, {loss:.6g} in the run's history,"
    return None


def _digest(losses: WindowLosses) -> str:
    digest = xxhash.xxh3_128()
    for array in (losses.sums, losses.tokens):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def measured_data(directory: Path) -> dict[str, str]:
    """{set: fingerprint of the data of its baseline}; empty without a readable baseline."""
    if not (directory / BASELINE_NAME).is_file():
        return {}
    try:
        with safe_open(directory / BASELINE_NAME, "np") as file:
            return {name: text.partition(" ")[0] for name, text in (file.metadata() or {}).items()}
    except (OSError, SafetensorError):
        return {}


def described(eval_sets: dict[str, EvalWindows]) -> dict[str, str]:
    """Which windows each set has, in words that only the same windows have."""
    return {
        name: f"{windows.reader.fingerprint} block {windows.block_size} windows {len(windows)}"
        + (" document_mask" if windows.document_mask else "")
        for name, windows in eval_sets.items()
    }
