"""What is in a run folder or a checkpoint, read from its JSON files and safetensors headers; no weight is loaded."""

import json
import math
from pathlib import Path

import yaml

from mypt.checkpoints.complete import STATE_NAME, checkpoints, last_complete_checkpoint, read_state, what_is_missing
from mypt.checkpoints.header import read_header
from mypt.errors import CheckpointError
from mypt.planning.parameters import count_parameters
from mypt.yaml12 import load_yaml

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
# The same dimension by the names that families of models give it.
DIMENSIONS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "width": ("hidden_size", "n_embd", "d_model"),
    "context": ("max_position_embeddings", "n_positions"),
    "vocabulary": ("vocab_size",),
}


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a model, or the checkpoints of a run."""
    return (path / "config.json").is_file() or bool(checkpoints(path))


def inspect_checkpoint(path: Path) -> dict:
    """A JSON-ready report; a part that the folder does not hold is None.

    kind: run (holds checkpoints or recipe.yaml), checkpoint (holds a trainer state) or model. model: architecture and
    dimensions. parameters: by part, exact, from a MyPT config. weights: what the files hold. progress, coverage,
    forgetting: as last saved. recipe: the resolved one. problems: one line for each thing that is wrong.
    Raises CheckpointError if there is no model, or its config or a weights file cannot be read.
    """
    kind = "checkpoint" if (path / STATE_NAME).is_file() else "model"
    if checkpoints(path) or (path / "recipe.yaml").is_file():
        kind = "run"
    saved, state = _last_state(path)
    model_folder = path if (path / "config.json").is_file() else saved or [path, *checkpoints(path)][-1]
    config = _read_json(model_folder / "config.json")
    if config is None:
        raise CheckpointError(f"{model_folder} holds no config.json: name a run folder or a checkpoint folder")
    weights, problems = _weights(model_folder)
    tokenizer = _tokenizer(model_folder)
    # A checkpoint's own state is at its step; the files of its run may be further on.
    run = path.parent if kind == "checkpoint" else path
    report = {
        "kind": kind,
        "path": str(path),
        "model_path": str(model_folder),
        "model": _model(config),
        "parameters": _parameters(config),
        "weights": weights,
        "tokenizer": tokenizer,
        "progress": _progress(state),
        "coverage": _coverage(path, kind, state),
        "forgetting": _forgetting(run, kind, state),
        "recipe": _recipe(path),
        "checkpoints": [{"name": folder.name, "missing": what_is_missing(folder)} for folder in checkpoints(path)],
        "files": [
            {"name": file.name, "bytes": file.stat().st_size} for file in sorted(path.iterdir()) if file.is_file()
        ],
    }
    if kind == "checkpoint" and (fault := what_is_missing(path)):
        problems.append(f"not complete, a resume would skip it: {fault}")
    return report | {"problems": problems + _disagreements(report)}


def _weights(folder: Path) -> tuple[dict | None, list[str]]:
    """Tensors, parameters and dtypes in the model's safetensors files, and what is wrong with them."""
    files = sorted(folder.glob("model*.safetensors"))
    index = _read_json(folder / "model.safetensors.index.json") or {}
    missing = sorted(set(index.get("weight_map", {}).values()) - {file.name for file in files})
    problems = [f"{name} is missing" for name in missing]
    if not files:
        if not problems and not any(folder.glob("pytorch_model*.bin")):
            problems.append("there are no weights")
        return None, problems
    dtypes: dict[str, int] = {}
    tensors = 0
    for file in files:
        header, whole = read_header(file)
        if not whole:
            problems.append(f"{file.name} does not have the length that its header says")
        tensors += len(header)
        for entry in header.values():
            name = DTYPES.get(entry["dtype"], entry["dtype"])
            dtypes[name] = dtypes.get(name, 0) + math.prod(entry["shape"])
    size = sum(file.stat().st_size for file in files)
    return {"tensors": tensors, "parameters": sum(dtypes.values()), "dtypes": dtypes, "bytes": size}, problems


def _model(config: dict) -> dict:
    dimensions = {
        ours: next((config[name] for name in names if config.get(name) is not None), None)
        for ours, names in DIMENSIONS.items()
    }
    architecture = next(iter(config.get("architectures") or []), None)
    return {"architecture": architecture, "model_type": config.get("model_type"), **dimensions, "config": config}


def _parameters(config: dict) -> dict[str, int] | None:
    if config.get("architectures") != ["MyPTForCausalLM"]:
        return None
    return count_parameters(config)


def _tokenizer(folder: Path) -> dict | None:
    content = _read_json(folder / "tokenizer.json")
    if content is None:
        return None
    eos = (_read_json(folder / "tokenizer_config.json") or {}).get("eos_token")
    try:
        vocabulary = content["model"]["vocab"]  # {token: id}; Unigram: [[token, score], ...] in the order of ids
        ids = set(vocabulary.values()) if isinstance(vocabulary, dict) else set(range(len(vocabulary)))
        ids |= {token["id"] for token in content["added_tokens"]}
        return {
            "type": content["model"]["type"],
            "ids": len(ids),
            "largest_id": max(ids),
            "eos_token": eos["content"] if isinstance(eos, dict) else eos,
        }
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'tokenizer.json'} is damaged ({error!r}); restore it") from error


def _last_state(path: Path) -> tuple[Path | None, dict | None]:
    """The checkpoint that tells how far training is, and its trainer state."""
    folder = path if (path / STATE_NAME).is_file() else last_complete_checkpoint(path)[0]
    try:
        return folder, read_state(folder) if folder else None
    except (OSError, ValueError):
        return folder, None


def _progress(state: dict | None) -> dict | None:
    if state is None:
        return None
    logged = next((entry for entry in reversed(state.get("log_history", [])) if "loss" in entry), {})
    best = state.get("best_model_checkpoint")
    return {
        "step": state["global_step"],
        "max_steps": state.get("max_steps"),
        "epoch": state.get("epoch"),
        "logged_at_step": logged.get("step"),
        "loss": logged.get("loss"),
        "learning_rate": logged.get("learning_rate"),
        "best_checkpoint": best and Path(best).name,
        "best_metric": state.get("best_metric"),
    }


def _coverage(path: Path, kind: str, state: dict | None) -> dict | None:
    """The stream's state: sources, block_size, next_sample, events; `mypt.streams.ledger` derives what was seen."""
    if kind == "run":
        return _read_json(path / "coverage.json")
    return ((state or {}).get("stateful_callbacks", {}).get("CoverageCallback") or {}).get("attributes")


def _forgetting(run: Path, kind: str, state: dict | None) -> dict | None:
    """The last measurement: its step, every set's reading, and the run's verdict if it is about this measurement."""
    report = _read_json(run / "forgetting.json") or {}
    history = report.get("history", [])
    if kind != "run":
        callback = (state or {}).get("stateful_callbacks", {}).get("ForgettingCallback") or {}
        history = callback.get("attributes", {}).get("history", [])
    if not history:
        return None
    last = history[-1]
    current = report.get("history", [])[-1:] == [last]
    rules = {name: report.get(name) for name in ("target", "guard", "tolerance", "action")}
    return rules | {"step": last["step"], "sets": last["sets"], "verdict": report["verdict"] if current else None}


def _recipe(path: Path) -> dict | None:
    """The resolved recipe of the run folder that `path` is, or lies in."""
    file = next((folder / "recipe.yaml" for folder in (path, path.parent) if (folder / "recipe.yaml").is_file()), None)
    if file is None:
        return None
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise CheckpointError(f"{file} is no resolved recipe: sections with keys and values were expected; restore it")
    return content


def _disagreements(report: dict) -> list[str]:
    problems = []
    computed, weights, tokenizer = report["parameters"], report["weights"], report["tokenizer"]
    if computed and weights and computed["total"] != weights["parameters"]:
        problems.append(
            f"the weights hold {weights['parameters']:,} parameters, the config means {computed['total']:,}: "
            "these files do not belong together"
        )
    vocabulary = report["model"]["vocabulary"]
    if tokenizer and vocabulary and tokenizer["largest_id"] >= vocabulary:
        problems.append(f"the tokenizer gives ids up to {tokenizer['largest_id']}, the model knows {vocabulary}")
    return problems


def _read_json(path: Path) -> dict | None:
    """The object in a file, None if there is no such file. Raises CheckpointError if it is no JSON object."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected a JSON object; restore it")
    return content
