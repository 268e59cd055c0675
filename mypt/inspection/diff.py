"""Compare two checkpoints: configuration, hyperparameters, tokenizer, progress, losses, weights."""

from pathlib import Path
from typing import Any

from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.inspection.dataset import inspect_dataset
from mypt.inspection.training_history import settings_of
from mypt.legacy.checkpoint import is_original, read_original
from mypt.legacy.weight_names import config_fields
from mypt.tokenization.load import essence

# Fields that transformers writes into every config.json, whatever the model.
IGNORED_FIELDS = ("transformers_version", "auto_map", "_name_or_path", "architectures", "torch_dtype")


def diff_checkpoints(first: Path, second: Path, *, weights: bool = False) -> dict[str, Any]:
    """A JSON-ready report of two run folders, checkpoints, models or adapters A and B; values are [A's, B's].

    config, settings (hyperparameters; None unless both have some): the fields that differ. tokenizer: "same",
    "different", or None if one has none. parameters, progress: of both. losses: {set: {"loss": [...], "delta": [...]}}
    as last measured. weights: see `compare_weights`, None unless asked for, as every tensor is read.
    Raises CheckpointError as `inspect_checkpoint` does.
    """
    a, b = _facts(first), _facts(second)
    if is_original(first) != is_original(second):  # one lacks fields that the other has
        shared = a["config"].keys() & b["config"].keys()
        a["config"], b["config"] = ({name: it["config"][name] for name in shared} for it in (a, b))
    report = {
        "kind": "diff",
        "a": str(first),
        "b": str(second),
        "config": differing_fields(a["config"], b["config"]),
        "settings": differing_fields(a["settings"], b["settings"]) if a["settings"] and b["settings"] else None,
        "tokenizer": _same_tokenizer(Path(a["folder"]), Path(b["folder"])),
        "parameters": [a["parameters"], b["parameters"]],
        "progress": [a["progress"], b["progress"]],
        "losses": _losses(a["forgetting"], b["forgetting"]),
        "weights": None,
    }
    if weights:
        from mypt.inspection.weight_diff import compare_weights

        report["weights"] = compare_weights(Path(a["folder"]), Path(b["folder"]))
    return report


def diff_datasets(first: Path, second: Path) -> dict[str, Any]:
    """A JSON-ready report of two dataset directories; `fields`: see `differing_fields`. Raises DataError."""
    a, b = (inspect_dataset(path) for path in (first, second))
    fields = differing_fields(*({k: v for k, v in it.items() if k not in ("path", "files")} for it in (a, b)))
    return {"kind": "diff", "a": str(first), "b": str(second), "fields": fields}


def differing_fields(first: dict, second: dict) -> dict[str, list]:
    """{name: [first's value, second's value]} where they differ; objects inside are gone through, "outer.inner"."""
    a, b = _flat(first), _flat(second)
    return {name: [a.get(name), b.get(name)] for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}


def _facts(path: Path) -> dict[str, Any]:
    """The values to compare, of a checkpoint of today's or of the original's."""
    if is_original(path):
        original = read_original(path)
        training = original.training_state.get("training_config") or {}
        return {
            "folder": path,
            "config": config_fields(original),
            "settings": {f"training.{name}": value for name, value in training.items()},
            "parameters": sum(tensor.numel() for tensor in original.tensors.values()),
            "progress": {"step": original.step},
            "forgetting": None,
        }
    report = inspect_checkpoint(path)
    config = report["model"]["config"] if report["model"] else report["adapter"]
    return {
        "folder": report["model_path"],
        "config": {name: value for name, value in config.items() if name not in IGNORED_FIELDS},
        "settings": settings_of(report["recipe"]),
        "parameters": report["parameters"] and report["parameters"]["total"],
        "progress": report["progress"] or report["converted_from"],
        "forgetting": report["forgetting"],
    }


def _flat(content: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _same_tokenizer(first: Path, second: Path) -> str | None:
    files = [folder / "tokenizer.json" for folder in (first, second)]
    if not all(file.is_file() for file in files) or any(is_original(folder) for folder in (first, second)):
        return None
    a, b = (essence(file.read_text(encoding="utf-8")) for file in files)
    return "same" if a == b else "different"


def _losses(first: dict | None, second: dict | None) -> dict[str, dict]:
    a, b = ((report or {}).get("sets", {}) for report in (first, second))
    return {
        name: {key: [(sets.get(name) or {}).get(key) for sets in (a, b)] for key in ("loss", "delta")}
        for name in [*a, *(name for name in b if name not in a)]
    }
