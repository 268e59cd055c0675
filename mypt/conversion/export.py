"""Export a model to a stock architecture, which loads without mypt and without remote code.

The architecture (`families`, `weights`) is apart from the file format (`formats`); `parity` compares the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.lineage import find_lineage, write_lineage
from mypt.checkpoints.load import load_model, require_model
from mypt.conversion.families import TARGETS, added_biases, choose_target
from mypt.conversion.formats import FORMATS
from mypt.conversion.parity import compare, differences, evaluate, make_probes
from mypt.conversion.weights import cast, from_mypt, to_mypt
from mypt.errors import CheckpointError
from mypt.folders import new_folder, require_free
from mypt.tokenization.load import model_tokenizer, save_tokenizer, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def export_model(
    name: str | Path, out: str | Path, target: str = "auto", dtype: str | None = None, format: str = "safetensors"
) -> dict[str, Any]:
    """Write a model in a stock architecture, read it again and compare its logits with the original's in float32.

    Args:
        name: Folder or hub id; an adapter is merged into its base.
        out: Folder to make.
        target: One of families.TARGETS; `auto`: the one that computes the same with the fewest parameters added.
        dtype: Of the weights. None: as they are.
        format: One of formats.FORMATS.

    Returns:
        JSON-ready: `differences`, the largest of any logit by kind of input; `largest_logit`; `tolerance`, the largest
        difference that passes; `greedy_equal`, of a continuation of `greedy_tokens` tokens; `rounding`, what `dtype`
        costs, or None.

    Raises:
        CheckpointError: `out` is not empty, the target lacks a named part, or cannot hold this tokenizer.
        CheckFailed: A difference is above the tolerance; nothing is left in `out`.
    """
    require_export(name, out)
    lineage = find_lineage(name)
    import torch

    model = load_model(name, device="cpu")
    tokenizer = model_tokenizer(name)
    ours = model if model.config.model_type == "mypt" else to_mypt(model)
    fields = ours.config.to_dict()
    target = _choose(target, fields, tokenizer)
    stock = from_mypt(ours, target)
    probes = make_probes(fields, tokenizer)
    report = {"model": str(name), "from": type(model).__name__, "to": type(stock).__name__, "out": str(out)}
    report |= {"target": target, "added_biases": added_biases(fields, target), "rounding": None}
    if dtype and getattr(torch, dtype) != model.dtype:
        exact, _ = evaluate(model, probes)
        model, stock = cast(model, dtype), cast(stock, dtype)
        report["rounding"] = max(differences(exact, evaluate(model, probes)[0], probes).values())
    report |= {"dtype": str(model.dtype).removeprefix("torch."), "parameters": stock.num_parameters()}
    with new_folder(out) as folder:
        FORMATS[format].write(stock, tokenizer, folder)
        if lineage:
            write_lineage(folder, lineage)
        del stock, ours
        expected = evaluate(model, probes)
        del model
        report |= compare(expected, FORMATS[format].run(folder, probes), probes)
    return report


def require_export(name: str | Path, out: str | Path) -> None:
    """Raise what `export_model` raises before it imports torch."""
    require_free(out, CheckpointError)
    require_model(name)


def _choose(asked: str, config: dict, tokenizer: PreTrainedTokenizerFast | None) -> str:
    """The target, in whose folders AutoTokenizer reads this very tokenizer."""
    target = choose_target(config) if asked == "auto" else asked
    if tokenizer is None or _keeps(target, tokenizer):
        return target
    if asked == "auto":
        return choose_target(config, [name for name in TARGETS if name != target])
    raise CheckpointError(
        f"transformers reads the tokenizer of every {target} folder by {target}'s own rules, which give other ids than "
        "this one for the same text; choose another --to, or auto"
    )


def _keeps(target: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, folder)
        Path(folder, "config.json").write_text(json.dumps({"model_type": target}))
        # By others, that is; `load_tokenizer` takes the ids of the file.
        read = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return tokenizer_hash(read) == tokenizer_hash(tokenizer)
