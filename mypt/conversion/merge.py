"""Merge an adapter into its base model, and compare the result with the two apart."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.adapter import is_adapter, recorded_base
from mypt.checkpoints.lineage import LINEAGE_NAME
from mypt.checkpoints.load import load_adapter, load_model, with_adapter
from mypt.conversion.parity import TOLERANCE, random_ids
from mypt.conversion.weights import cast
from mypt.errors import CheckFailed, CheckpointError
from mypt.folders import new_folder, require_free
from mypt.storage.upload_files import RUN_FILES
from mypt.tokenization.load import model_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def merge_adapter(adapter: str | Path, out: str | Path, base: str | None = None) -> dict[str, Any]:
    """Write the base model with the adapter added to its weights to the folder `out`, in the base's dtype.

    The sums are made in float32. The tokenizer, and what a run left beside the adapter (lineage, recipe, coverage,
    forgetting), are copied. The written model is read again and compared with the two apart, in float32, on random ids.

    Args:
        base: Folder or hub id of the base model, if it is no longer where the adapter names it.

    Returns:
        JSON-ready: `difference`, the largest of any logit; `largest_logit`; `tolerance`, relative to it.

    Raises:
        CheckpointError: The folder holds no adapter, `out` is not empty, or the base is gone or another.
        CheckFailed: The difference is beyond the tolerance; nothing is kept.
    """
    base = require_merge(adapter, out, base)
    import torch

    adapter, out = Path(adapter), Path(out)
    apart = load_adapter(adapter, base=base)
    dtype = apart.get_base_model().dtype
    cast(apart, "float32")
    expected = _logits(apart)
    merged = cast(with_adapter(apart, adapter), str(dtype).removeprefix("torch."))
    report = {
        "adapter": str(adapter),
        "base": base,
        "out": str(out),
        "architecture": type(merged).__name__,
        "parameters": merged.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
        "largest_logit": expected.abs().max().item(),
        "tolerance": max(TOLERANCE, 10 * torch.finfo(dtype).eps),
    }
    with new_folder(out) as folder:
        merged.save_pretrained(folder)
        tokenizer = model_tokenizer(adapter) or model_tokenizer(base)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        for name in (LINEAGE_NAME, *RUN_FILES):
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
        report["difference"] = (_logits(cast(load_model(folder), "float32")) - expected).abs().max().item()
        if not report["difference"] <= report["tolerance"] * report["largest_logit"] < math.inf:
            raise CheckFailed(
                f"merged, a logit differs by {report['difference']:.1e} from base and adapter apart (the largest is "
                f"{report['largest_logit']:.1f}); nothing is kept"
            )
    return report


def require_merge(adapter: str | Path, out: str | Path, base: str | None = None) -> str:
    """Return the base model; raise what `merge_adapter` raises before it imports torch."""
    if not is_adapter(adapter):
        raise CheckpointError(
            f"{adapter} holds no adapter (adapter_config.json): name the folder of a LoRA run, or of one that "
            "`mypt download` brought"
        )
    require_free(out, CheckpointError)
    return base or recorded_base(adapter)


def _logits(model) -> Tensor:
    """Return the logits of random ids, float32 (2, T, V)."""
    import torch

    config = model.config.get_text_config()
    ids = random_ids(config.vocab_size, getattr(config, "max_position_embeddings", None))
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits
