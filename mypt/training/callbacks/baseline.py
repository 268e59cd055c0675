"""The losses of every evaluation window at step 0, on disk: what every later change is measured against, in pairs."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mypt.errors import CheckpointError
from mypt.evaluation.loss import WindowLosses
from mypt.streams.eval_windows import EvalWindows

BASELINE_NAME = "forgetting_baseline.safetensors"


def save_baseline(directory: Path, baseline: dict[str, WindowLosses], eval_sets: dict[str, EvalWindows]) -> None:
    """Write the per-window sums of each set, and which windows they are of."""
    tensors = {f"{name}.sums": losses.sums for name, losses in baseline.items()}
    tensors |= {f"{name}.tokens": losses.tokens for name, losses in baseline.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / BASELINE_NAME, metadata=_windows(eval_sets))


def load_baseline(directory: Path, eval_sets: dict[str, EvalWindows]) -> dict[str, WindowLosses]:
    """Raises CheckpointError for a file that is missing, damaged or of other windows."""
    path = directory / BASELINE_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: without it no change can be measured; restore it to resume")
    try:
        with safe_open(path, "np") as file:
            if file.metadata() == _windows(eval_sets):
                return {
                    name: WindowLosses(file.get_tensor(f"{name}.sums"), file.get_tensor(f"{name}.tokens"))
                    for name in eval_sets
                }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it to resume") from None
    raise CheckpointError(
        f"{path} was measured on other evaluation sets than those given now; a baseline is only comparable on "
        "the same windows: restore the sets (data.eval), or start a new run"
    )


def measured_data(directory: Path) -> dict[str, str]:
    """{set: fingerprint of the data that its baseline was measured on}; empty without a readable baseline."""
    try:
        with safe_open(directory / BASELINE_NAME, "np") as file:
            return {name: text.partition(" ")[0] for name, text in (file.metadata() or {}).items()}
    except (OSError, SafetensorError):
        return {}


def _windows(eval_sets: dict[str, EvalWindows]) -> dict[str, str]:
    return {
        name: f"{windows.reader.fingerprint} block {windows.block_size} windows {len(windows)}"
        + (" document_mask" if windows.document_mask else "")
        for name, windows in eval_sets.items()
    }
