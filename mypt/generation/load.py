"""A causal LM from a folder or the hub, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mypt.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(
    name_or_path: str | Path, *, trust_remote_code: bool = False, device: str | None = None
) -> PreTrainedModel:
    """The model in its saved dtype, in eval mode, on `device` (None: the GPU if there is one).

    name_or_path: a run folder, a checkpoint folder or a hub id (from the hub's cache when it is there). Code that a
    model brings along runs only with `trust_remote_code`; MyPT's own models never need it.
    Raises CheckpointError if there is no such model, it cannot be read, or its files lack some of its weights.
    """
    import torch

    name, path = str(name_or_path), Path(name_or_path)
    if path.is_dir():
        _require_config(path)
        model = _from_pretrained(name, trust_remote_code, local=True)
    else:
        model = _from_hub(name, trust_remote_code)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _require_config(path: Path) -> None:
    if (path / "config.json").is_file():
        return
    steps = [p.parent for p in path.glob("checkpoint-*/config.json") if p.parent.name.split("-")[1].isdigit()]
    newest = max(steps, key=lambda folder: int(folder.name.split("-")[1]), default=None)
    hint = f"its run has not finished, but there is {newest}" if newest else "name a run folder or a checkpoint folder"
    raise CheckpointError(f"{path} holds no config.json: {hint}")


def _from_hub(name: str, trust_remote_code: bool) -> PreTrainedModel:
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            # One quick question first: without a network, transformers would retry for most of a minute.
            HfApi().model_info(name, timeout=10)
    except Exception as error:
        raise CheckpointError(
            f"model {name} is neither a folder here nor a model that the hub gives ({_first_line(error)}); "
            "check the name, or train one with `mypt train`"
        ) from error
    try:
        return _from_pretrained(name, trust_remote_code, local=True)
    except CheckpointError:
        return _from_pretrained(name, trust_remote_code, local=False)


def _from_pretrained(name: str, trust_remote_code: bool, *, local: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=local, output_loading_info=True
        )
    except Exception as error:
        # Whatever strangers' files are able to provoke, the user can only change the files.
        advice = "" if trust_remote_code or "trust_remote_code" not in str(error) else "; --trust-remote-code runs it"
        raise CheckpointError(f"model {name} cannot be loaded: {_first_line(error)}{advice}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"model {name} lacks {len(missing)} of its weights, {missing[0]} first; save or download it again"
        )
    return model


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
