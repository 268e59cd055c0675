"""Report on a run folder, a checkpoint, a model or an adapter from JSON files and headers; no weight is loaded."""

from pathlib import Path

from mypt.checkpoints.adapter import read_adapter_config
from mypt.checkpoints.checksums import changed_file
from mypt.checkpoints.complete import checkpoints, what_is_missing
from mypt.checkpoints.interpolated import read_interpolation
from mypt.checkpoints.lineage import find_lineage
from mypt.checkpoints.model_config import ADAPTER_CONFIG, CONFIG_NAME, is_model, read_config_file
from mypt.checkpoints.tensors import TensorEntry, count_by_part, list_tensors, summarize
from mypt.checkpoints.verify import fault_of
from mypt.errors import CheckpointError
from mypt.folders import contents
from mypt.inspection.training_history import kind_of, last_state, read_training_history
from mypt.json_files import find_json
from mypt.planning.parameters import count_parameters

# The same dimension by the names that families of models give it.
DIMENSIONS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "width": ("hidden_size", "n_embd", "d_model"),
    "context": ("max_position_embeddings", "n_positions"),
    "vocabulary": ("vocab_size",),
}
PROVENANCE_NAME = "converted_from.json"


def is_model_or_run(path: Path) -> bool:
    """Whether a folder holds a model or an adapter, or the checkpoints of a run."""
    return is_model(path) or bool(checkpoints(path))


def inspect_checkpoint(path: Path) -> dict:
    """A JSON-ready report; a part that the folder does not hold is None.

    kind: run (holds checkpoints or recipe.yaml), checkpoint (holds a trainer state), model or adapter. model:
    architecture and dimensions. adapter: what a LoRA adapter is, and of which base. parameters: by part; of a MyPT
    config worked out from it, of others counted in the files. weights: what the files hold. lineage: what the weights
    (of a run those of its last checkpoint) have seen in all runs that led to them. progress, coverage, forgetting,
    diagnosis, recipe, changed_settings: see `read_training_history`. interpolation: between which models the weights of
    `folder` are, the model or a run's `best`. converted_from: of a checkpoint of the original MyPT's. problems: one
    line for each thing that is wrong.
    Raises CheckpointError if there is no model, or its config or a weights file cannot be read.
    """
    kind = kind_of(path)
    saved, _ = last_state(path)
    folder = path if is_model(path) else saved or [path, *checkpoints(path)][-1]
    config = read_config_file(folder) if (folder / CONFIG_NAME).is_file() else None
    adapter = read_adapter_config(folder) if (folder / ADAPTER_CONFIG).is_file() else None
    if config is None and adapter is None:
        raise CheckpointError(f"{folder} holds no config.json: name a run folder or a checkpoint folder")
    tensors, problems = list_tensors(folder)
    report = {
        "kind": "adapter" if config is None and kind == "model" else kind,
        "path": str(path),
        "model_path": str(folder),
        "model": config and _model(config),
        "adapter": adapter and _adapter(adapter, tensors) if config is None else None,
        "parameters": _parameters(config, tensors),
        "weights": summarize(tensors),
        "tokenizer": _tokenizer(folder),
        **read_training_history(path),
        "interpolation": _interpolation([path, path / "best"] if kind == "run" else [folder]),
        "lineage": find_lineage(saved or folder),
        "converted_from": find_json(folder / PROVENANCE_NAME, dict, CheckpointError),
        "checkpoints": [{"name": folder.name, "missing": what_is_missing(folder)} for folder in checkpoints(path)],
        "files": list_files(path),
    }
    if kind == "checkpoint" and (fault := fault_of(path)):
        problems.append(f"{'not complete' if what_is_missing(path) else 'damaged'}, a resume would skip it: {fault}")
    elif fault := changed_file(folder, {entry.file.name for entry in tensors.values()}, every=False):
        problems.append(fault)
    return report | {"problems": problems + _disagreements(report)}


def list_files(folder: Path) -> list[dict]:
    """Names and bytes of the files right in a folder."""
    files = [path for path in map(folder.joinpath, contents(folder)) if path.is_file()]
    return [{"name": file.name, "bytes": file.stat().st_size} for file in files]


def _model(config: dict) -> dict:
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    dimensions = {
        ours: next((c[name] for c in (config, text) for name in names if c.get(name) is not None), None)
        for ours, names in DIMENSIONS.items()
    }
    architecture = next(iter(config.get("architectures") or []), None)
    return {"architecture": architecture, "model_type": config.get("model_type"), **dimensions, "config": config}


def _adapter(config: dict, tensors: dict[str, TensorEntry]) -> dict:
    """peft's own names: r, lora_alpha, target_modules; `layers` are the modules that have an adapter."""
    kept = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules")
    layers = {name.split(".lora_")[0] for name in tensors if ".lora_" in name}
    targets = config.get("target_modules")
    return {name: config.get(name) for name in kept} | {
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
        "modules_to_save": config.get("modules_to_save"),
        "layers": len(layers),
    }


def _interpolation(folders: list[Path]) -> dict | None:
    """The report of the first of these folders that has one."""
    for folder in folders:
        if report := read_interpolation(folder):
            return {"folder": str(folder)} | {name: report[name] for name in ("alpha", "base", "adapted", "tolerance")}
    return None


def _parameters(config: dict | None, tensors: dict[str, TensorEntry]) -> dict[str, int] | None:
    if config and config.get("architectures") == ["MyPTForCausalLM"]:
        return count_parameters(config)
    return count_by_part((name, entry.numel) for name, entry in tensors.items()) if tensors else None


def _tokenizer(folder: Path) -> dict | None:
    content = find_json(folder / "tokenizer.json", dict, CheckpointError)
    if content is None:
        return None
    config = find_json(folder / "tokenizer_config.json", dict, CheckpointError) or {}
    eos = config.get("eos_token")
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


def _disagreements(report: dict) -> list[str]:
    problems = []
    computed, weights, tokenizer = report["parameters"], report["weights"], report["tokenizer"]
    if computed and weights and computed["total"] != weights["parameters"]:
        problems.append(
            f"the weights hold {weights['parameters']:,} parameters, the config means {computed['total']:,}: "
            "these files do not belong together"
        )
    vocabulary = report["model"] and report["model"]["vocabulary"]
    if tokenizer and vocabulary and tokenizer["largest_id"] >= vocabulary:
        problems.append(f"the tokenizer gives ids up to {tokenizer['largest_id']}, the model knows {vocabulary}")
    return problems
