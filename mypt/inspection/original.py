"""What is in a checkpoint of the original MyPT; its tensors are mapped from the file, not read."""

from pathlib import Path
from typing import Any

from mypt.checkpoints.tensors import count_by_part
from mypt.errors import CheckpointError
from mypt.inspection.checkpoint import list_files
from mypt.legacy.checkpoint import Original, read_original
from mypt.legacy.weight_names import config_fields, rename


def inspect_original(path: Path) -> dict[str, Any]:
    """A JSON-ready report with the keys of `inspect_checkpoint`, as far as they apply, and form and era beside them.

    parameters: by part, as they will be after `mypt convert`; model.config: the original's own. settings: what its
    training state says. problems: why it cannot be converted. Raises CheckpointError if the file cannot be read.
    """
    original = read_original(path)
    try:
        fields, problems = config_fields(original), []
        sizes = [(name, tensor.numel()) for name, tensor in rename(original, fields).items()]
    except CheckpointError as error:
        fields, problems = {}, [str(error)]
        sizes = [(name, tensor.numel()) for name, tensor in original.tensors.items()]
    state = original.tokenizer
    return {
        "kind": "original checkpoint",
        "path": str(original.path),
        "form": original.form,
        "era": original.era,
        "model": _model(original, fields),
        "parameters": count_by_part(sizes),
        "weights": _weights(original),
        "tokenizer": state and {"type": state.get("token_kind"), "ids": _ids(state), "eos_token": None},
        "progress": {"step": original.step, "max_steps": _training(original).get("max_iters")},
        "settings": _training(original),
        "has_optimizer": original.has_optimizer,
        "files": list_files(original.path) if original.path.is_dir() else [_file(original.path)],
        "problems": problems,
    }


def _model(original: Original, fields: dict[str, Any]) -> dict[str, Any]:
    names = {
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "width": "hidden_size",
        "context": "max_position_embeddings",
        "vocabulary": "vocab_size",
        "positions": "position_embedding_type",
        "norm": "norm_type",
        "activation": "hidden_act",
        "tied": "tie_word_embeddings",
    }
    return {ours: fields.get(name) for ours, name in names.items()} | {"config": original.config}


def _weights(original: Original) -> dict[str, Any]:
    dtypes: dict[str, int] = {}
    for tensor in original.tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + tensor.numel()
    file = original.path / "model.pt" if original.path.is_dir() else original.path
    sizes = {"tensors": len(original.tensors), "parameters": sum(dtypes.values())}
    return sizes | {"dtypes": dtypes, "bytes": file.stat().st_size}


def _ids(state: dict[str, Any]) -> int | None:
    if state.get("chars"):
        return len(state["chars"])
    return 50_257 + len(state.get("special_token_encoder") or ()) if state.get("token_kind") == "gpt2" else None


def _training(original: Original) -> dict[str, Any]:
    found = original.training_state.get("training_config")
    return found if isinstance(found, dict) else {}


def _file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size}
