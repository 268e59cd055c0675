"""Load a causal LM from a folder or the hub, whole or not at all; an adapter comes with its base model."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mypt import hub_errors
from mypt.checkpoints.adapter import BASE_NAME, INSTALL_PEFT, is_adapter, recorded_base, require_base
from mypt.checkpoints.checksums import require_unchanged
from mypt.checkpoints.complete import checkpoints
from mypt.checkpoints.lineage import LINEAGE_NAME
from mypt.checkpoints.model_config import ADAPTER_CONFIG, CONFIG_NAME, cached_file
from mypt.checkpoints.tensors import ADAPTER_WEIGHTS, LOADABLE, read_header, weight_files
from mypt.errors import CheckpointError, first_line
from mypt.files import what_to_do_with_gguf
from mypt.legacy.checkpoint import refuse_original
from mypt.terminal import say

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_DECODER = "a decoder-only language model; choose one that is, such as GPT-2, Llama or Qwen"


def load_model(
    name_or_path: str | Path, *, trust_remote_code: bool = False, device: str | None = None, quantization=None
) -> PreTrainedModel:
    """The model in its saved dtype, in eval mode, on `device` (None: the GPU if there is one).

    name_or_path: a run folder, a checkpoint folder or a hub id (from the hub's cache when it is there). An adapter
    gives its base model with the adapter merged into it, an ordinary model (`load_adapter` keeps them apart).
    Code that a model brings along runs only with `trust_remote_code`; MyPT's own models never need it. quantization:
    a quantization config of transformers, by which the weights are made smaller while they are read. Weights that the
    model has no place for (another head) are named on standard error.
    Whether it is causal is not tried here: `mypt.checkpoints.probes.require_causal` does that.
    Raises CheckpointError if there is no such model, it cannot be read, its files lack some of its weights or are not
    those that were saved, it is a model of another kind, or an adapter whose base model is gone or has other weights.
    """
    adapter = require_model(name_or_path)
    import torch

    name, path = str(name_or_path), Path(name_or_path)
    if adapter:
        return with_adapter(load_adapter(adapter, trust_remote_code=trust_remote_code, device=device), adapter)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {"trust_remote_code": trust_remote_code}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    if path.is_dir():
        require_unchanged(path, [*LOADABLE, *weight_files(path)])
        model = _from_pretrained(name, local=True, **options)
    else:
        try:
            model = _from_pretrained(name, local=True, **options)
        except CheckpointError:
            model = _from_pretrained(name, local=False, **options)
            _bring_lineage(name)
    return (model if quantization is not None else model.to(device)).eval()


def require_model(name_or_path: str | Path) -> Path | None:
    """Raise CheckpointError, as `load_model` does, if there is no model of this name; torch is not imported.

    Returns the folder of an adapter, None for a whole model.
    """
    path = Path(name_or_path)
    refuse_original(path)
    if message := what_to_do_with_gguf(path):
        raise CheckpointError(message)
    if not path.is_dir():
        return _adapter_of_hub(str(name_or_path))
    if is_adapter(path):
        return path
    if (path / CONFIG_NAME).is_file():
        return None
    saved = (step for step in reversed(checkpoints(path)) if is_adapter(step) or (step / CONFIG_NAME).is_file())
    newest = next(saved, None)
    hint = f"its run has not finished, but there is {newest}" if newest else "name a run folder or a checkpoint folder"
    raise CheckpointError(f"{path} holds no {CONFIG_NAME}: {hint}")


def load_adapter(
    folder: str | Path, *, base: str | None = None, trust_remote_code: bool = False, device: str | None = None
) -> PeftModel:
    """A LoRA adapter beside its base model, which keeps its own weights, in eval mode.

    base: folder or hub id of the base model, if it is no longer where the adapter names it.
    Raises CheckpointError as `load_model` does.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise CheckpointError(f"{folder} is an adapter. {INSTALL_PEFT}") from error
    base = base or recorded_base(folder)
    if is_adapter(base):
        raise CheckpointError(f"adapter {folder} names {base} as its base model, which is an adapter itself")
    try:
        tensors, whole = read_header(Path(folder, ADAPTER_WEIGHTS))
    except OSError:
        tensors, whole = {}, False
    if not whole:
        raise CheckpointError(f"adapter {folder}: {ADAPTER_WEIGHTS} is missing or cut short; save or copy it again")
    require_unchanged(Path(folder), LOADABLE)
    try:
        model = load_model(base, trust_remote_code=trust_remote_code, device=device)
    except CheckpointError as error:
        raise CheckpointError(
            f"adapter {folder} needs its base model: {error}; if that is elsewhere: mypt merge {folder} --base MODEL "
            "--out DIR"
        ) from error
    require_base(folder, base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:
        raise CheckpointError(f"adapter {folder} cannot be loaded beside {base}: {first_line(error)}") from error
    if adapted.active_peft_config.is_prompt_learning:
        raise CheckpointError(
            f"adapter {folder} is {adapted.active_peft_config.peft_type.value}, which the weights of a model cannot "
            "take in: load it with peft"
        )
    names = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if missing := sorted(names - tensors.keys()):
        raise CheckpointError(
            f"adapter {folder} lacks {len(missing)} of its weights, {missing[0]} first; save or copy it again"
        )
    return adapted.eval()


def with_adapter(adapted: PeftModel, folder: str | Path) -> PreTrainedModel:
    """The base model with the adapter's change in its weights. Raises CheckpointError for a kind that has no merge."""
    try:
        return adapted.merge_and_unload()
    except Exception as error:  # of peft, for kinds that it cannot merge, such as aLoRA
        raise CheckpointError(f"adapter {folder} cannot be merged into its base: {first_line(error)}") from error


def _adapter_of_hub(name: str) -> Path | None:
    """The folder in the hub's cache of an adapter that the hub has by this name; None if it has a whole model."""
    from huggingface_hub import HfApi, snapshot_download

    wanted = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_NAME, LINEAGE_NAME]
    try:
        files = {item for item in (CONFIG_NAME, *wanted) if cached_file(name, item)}
        here = bool({CONFIG_NAME, ADAPTER_WEIGHTS} & files)
        if not here:
            # One quick question first: without a network, transformers would retry for most of a minute.
            files = {item.rfilename for item in HfApi().model_info(name, timeout=10).siblings or []}
        if CONFIG_NAME in files or ADAPTER_CONFIG not in files:
            return None
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=here))
    except Exception as error:
        raise CheckpointError(
            f"model {name} is neither a folder here nor a model that the hub gives ({hub_errors.reason(error)}); "
            "check the name, or train one with `mypt train`" + _login(error)
        ) from error


def _bring_lineage(name: str) -> None:
    """Bring the lineage of a model of the hub into the cache, where the hub has one."""
    from huggingface_hub import hf_hub_download

    with suppress(Exception):  # not there, as of most models; not now
        hf_hub_download(name, LINEAGE_NAME)


def _login(error: Exception) -> str:
    """A hint for a model that may exist for those who may read it."""
    refused = hub_errors.statuses(error) & {401, 403} or "gated repo" in str(error)
    return "; for a private or gated one: `hf auth login`" if refused else ""


def _from_pretrained(name: str, *, local: bool, **options) -> PreTrainedModel:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    config = None
    try:
        code = options["trust_remote_code"]
        config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=code)
        if config.is_encoder_decoder:
            raise ValueError("it has an encoder")
        model, report = AutoModelForCausalLM.from_pretrained(
            name, local_files_only=local, output_loading_info=True, **options
        )
    except Exception as error:
        if config is not None and (config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
            kind = (config.architectures or [config.model_type])[0]
            raise CheckpointError(f"model {name} ({kind}) is not {_DECODER}") from None
        # Whatever strangers' files are able to provoke, the user can only change the files.
        refused = "trust_remote_code" in str(error) and not options["trust_remote_code"]
        advice = "; --trust-remote-code runs it" if refused else _login(error)
        raise CheckpointError(f"model {name} cannot be loaded: {first_line(error)}{advice}") from error
    saved_as = (model.config.architectures or [type(model).__name__])[0]
    missing = sorted(report["missing_keys"])
    if missing and saved_as != type(model).__name__:
        raise CheckpointError(f"model {name} is {saved_as}, which has no {missing[0]}: it is not {_DECODER}")
    if model.config.get_text_config(decoder=True) is not model.config:
        raise CheckpointError(f"model {name} ({saved_as}) reads more than text: it is not {_DECODER}")
    if missing:
        raise CheckpointError(
            f"model {name} lacks {len(missing)} of its weights, {missing[0]} first; save or download it again"
        )
    if left := sorted(report["unexpected_keys"]):
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        line = f"model {name} has {len(left)} weights that {type(model).__name__} has no place for: {names}"
        say(f"{line}; they are left out", error=True)
    return model
