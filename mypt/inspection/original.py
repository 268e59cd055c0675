"""Report on a checkpoint of the original MyPT; its tensors are mapped from the file, not read."""

from pathlib import Path
from typing import Any

from mypt.checkpoints.tensors import TensorEntry, count_by_part, summarize
from mypt.errors import CheckpointError
from mypt.inspection.checkpoint import list_files
from mypt.legacy.checkpoint import read_original
from mypt.legacy.weight_names import config_fields, rename

_FIELDS = {
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size",
    "context": "max_position_embeddings", "vocabulary": "vocab_size", "positions": "position_embedding_type",
    "norm": "norm_type", "activation": "hidden_act", "tied": "tie_word_embeddings",
}  # fmt: skip


def inspect_original(path: Path) -> dict[str, Any]:
    """A JSON-ready report with the keys of `inspect_checkpoint`, as far as they apply, and form and era beside them.

    parameters: by part, as they will be after `mypt convert`; model.config: the original's own. settings: those of
    its training state. problems: why it cannot be converted. Raises CheckpointError if the file cannot be read.
    """
    original = read_original(path)
    path = original.path
    try:
        fields, problems = config_fields(original), []
        sizes = [(name, tensor.numel()) for name, tensor in rename(original, fields).items()]
    except CheckpointError as error:
        fields, problems = {}, [str(error)]
        sizes = [(name, tensor.numel()) for name, tensor in original.tensors.items()]
    file = path / "model.pt" if path.is_dir() else path
    entries = {
        name: TensorEntry(file, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in original.tensors.items()
    }
    training = original.training_state.get("training_config")
    training = training if isinstance(training, dict) else {}
    state = original.tokenizer
    return {
        "kind": "original checkpoint",
        "path": str(path),
        "form": original.form,
        "era": original.era,
        "model": {ours: fields.get(name) for ours, name in _FIELDS.items()} | {"config": original.config},
        "parameters": count_by_part(sizes),
        "weights": summarize(entries),
        "tokenizer": state and {"type": state.get("token_kind"), "ids": _ids(state), "eos_token": None},
        "progress": {"step": original.step, "max_steps": training.get("max_iters")},
        "settings": training,
        "has_optimizer": original.has_optimizer,
        "files": list_files(path) if path.is_dir() else [{"name": file.name, "bytes": file.stat().st_size}],
        "problems": problems,
    }


def _ids(state: dict[str, Any]) -> int | None:
    if state.get("chars"):
        return len(state["chars"])
    return 50_257 + len(state.get("special_token_encoder") or ()) if state.get("token_kind") == "gpt2" else None
