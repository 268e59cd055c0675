"""A model's shapes from its config alone: built on torch's meta device, where tensors have no data.

For architectures that `mypt.planning.parameters` has no formulas for; importing transformers' class costs seconds.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mypt import hub_errors
from mypt.checkpoints.model_config import cached_model, read_config_file
from mypt.checkpoints.tensors import count_by_part
from mypt.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXPERTS_USED = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "num_selected_experts", "top_k_experts")

_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")


class HubError(CheckpointError):
    """A model that is not on this machine and that the hub does not give (now)."""


def read_config(name_or_path: str) -> tuple[Path, dict]:
    """The folder and the content of a model's config.json; name_or_path: a folder or a hub id.

    For a hub model the cache is asked first, then the hub for this one file.
    Raises HubError if there is no such model, CheckpointError if its config cannot be read.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = cached_model(name_or_path) or _from_hub(name_or_path)
    return folder, read_config_file(folder, "expected a saved model's folder")


def measured_dimensions(folder: Path, vocab_size: int | None = None) -> dict:
    """Dimensions as `mypt.planning.parameters` takes them, JSON-ready; vocab_size: instead of the config's.

    parameters: as `count_by_part`, exact, a tied head counted once. modules: every matrix outside embeddings and head,
    those of one name in all layers (".*." stands for numbers) and one shape together: name, count, inward, outward,
    linear (a layer of its own), adapted (LoRA can adapt it: linear layers, and experts in one tensor) and used, the
    share of its numbers that a token is multiplied with (experts: below 1).
    Raises CheckpointError if the architecture is no causal language model of transformers.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # transformers' own words take seconds to make
            raise ValueError(f"model_type {config.model_type} has no causal language model")
        if vocab_size:
            config.get_text_config().vocab_size = vocab_size
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever strangers' files are able to provoke
        reason = first_line(error)[:200]
        raise CheckpointError(
            f"{folder} cannot be planned as a causal language model: {reason}; name a model that `mypt train` takes as "
            "model.init_from, or plan bare numbers: mypt plan --tokens N --params N"
        ) from None
    return _dimensions(model)


def _dimensions(model: PreTrainedModel) -> dict:
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0
    width = model.get_input_embeddings().weight.shape[1]
    head_width = getattr(config, "head_dim", None) or (width // heads if heads else 0)
    layers = getattr(config, "num_hidden_layers", None) or 1
    in_layers = [(name, p) for name, p in model.named_parameters() if re.search(r"\.\d+\.", name)]
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return {
        "model_type": config.model_type,
        "architecture": type(model).__name__,
        "vocab_size": table.weight.shape[0],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": next((limit for limit in limits if limit and limit > 0), None),
        "tie_word_embeddings": head is not None and head.weight is table.weight,
        "query_width": heads * head_width,
        "key_value_width": (getattr(config, "num_key_value_heads", None) or heads) * head_width,
        "attention_layers": attention_layers(config) or 0,
        "norm_width": sum(p.numel() for name, p in in_layers if p.dim() == 1 and re.search(r"norm|ln_", name)),
        "attention_dropout": any(getattr(config, name, 0) for name in _ATTENTION_DROPOUTS),
        "state_numbers": _state_numbers(model, config),
        "layer_parameters": sum(p.numel() for _, p in in_layers),
        "parameters": count_by_part((name, p.numel()) for name, p in model.named_parameters()),
        "modules": _modules(model, config),
    }


def attention_layers(config) -> int | None:
    """Layers whose attention looks at every token before; None if the config names no layers or no heads."""
    if not getattr(config, "num_attention_heads", None):
        return None
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    found = sum("attention" in str(kind) and "linear" not in str(kind) for kind in kinds)
    return found or getattr(config, "num_hidden_layers", None)


def used_share(model: PreTrainedModel, module, path: str, weight, config) -> float:
    """The share of a weight's numbers that a token is multiplied with: below 1 in experts."""
    from torch import nn

    used = next((k for name in _EXPERTS_USED if (k := getattr(config, name, None))), 1)
    if experts := re.search(r"(.*\.experts)\.\d+\.", f"{path}."):
        return min(1.0, used / len(model.get_submodule(experts[1])))
    if weight.dim() > 2 and not isinstance(module, nn.modules.conv._ConvNd):  # of all experts in one tensor
        return min(1.0, used / weight.shape[:-2].numel())
    return 1.0


def _state_numbers(model: PreTrainedModel, config) -> int:
    """Numbers per token that state-space layers keep, which no matrix's width shows.

    Mamba's decay A has a number for each state of each channel, Mamba-2's one for each head, which keeps a matrix of
    chunk_size x chunk_size for each chunk. The factor 3.4 was set by what autograd kept of tiny models;
    docs/estimate.md has how far the estimates were off.
    """
    chunk = next((size for name in ("chunk_size", "mamba_chunk_size") if (size := getattr(config, name, None))), 256)
    decays = [p for name, p in model.named_parameters() if name.endswith("A_log")]
    return round(sum(3.4 * p.numel() * (chunk if p.dim() == 1 else 1) for p in decays))


def _modules(model: PreTrainedModel, config) -> list[dict]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    skipped = {id(module) for module in model.modules() if isinstance(module, nn.Embedding)}
    skipped.add(id(model.get_output_embeddings()))
    found: Counter = Counter()
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() < 2 or id(module) in skipped:
                continue
            linear, count = isinstance(module, nn.Linear | Conv1D), 1
            share = used_share(model, module, path, weight, config)
            inward, outward = weight.shape[-2:] if isinstance(module, Conv1D) else weight.shape[-2:][::-1]
            adapted = linear
            if isinstance(module, nn.modules.conv._ConvNd):
                inward, outward = weight.shape[1:].numel(), weight.shape[0]
            elif weight.dim() > 2:  # the matrices of all experts in one tensor
                count, linear = weight.shape[:-2].numel(), False
                adapted = weight.dim() == 3 and min(weight.shape) > 1
            full = path if linear or name == "weight" else f"{path}.{name}"
            found[re.sub(r"\.\d+(?=\.|$)", ".*", full), inward, outward, linear, adapted, share] += count
    keys = ("name", "inward", "outward", "linear", "adapted", "used")
    return [dict(zip(keys, key, strict=True)) | {"count": count} for key, count in found.items()]


def _from_hub(name: str) -> Path:
    """The folder of the hub's cache with the config.json of a model, fetched now."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        HfApi().model_info(name, timeout=10)  # one quick question: a download without a network is tried for a minute
        return Path(hf_hub_download(name, "config.json")).parent
    except Exception as error:
        raise HubError(
            f"{name} is neither a folder here nor a model that the hub gives ({hub_errors.reason(error)})"
        ) from error
