"""Export a model to a stock architecture in one of several file formats, none of which needs mypt or remote code.

The architecture (`families`, `weights`) is apart from the file format (`formats`); `parity` compares the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.lineage import find_lineage, write_lineage
from mypt.checkpoints.load import load_model, require_model
from mypt.conversion import gguf, int8, onnx, safetensors
from mypt.conversion.families import TARGETS, added_biases, choose_target
from mypt.conversion.formats import choose_dtype, require_format
from mypt.conversion.parity import (
    TransformersRunner,
    compare,
    differences,
    evaluate,
    make_probes,
    make_text,
    measure,
    sample_text,
)
from mypt.conversion.weights import from_mypt, to_mypt
from mypt.errors import CheckpointError
from mypt.files import replace_text, require_file
from mypt.folders import new_folder, require_free
from mypt.tokenization.load import model_tokenizer, save_tokenizer, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPORT_NAME = "export.json"
WRITERS = {"safetensors": safetensors, "onnx": onnx, "gguf": gguf, "int8": int8}  # what they have: formats.py


def export_model(
    name: str | Path,
    out: str | Path,
    target: str = "auto",
    dtype: str | None = None,
    format: str = "safetensors",
    *,
    max_shard_size: int | None = None,
    text: str | Path | None = None,
) -> dict[str, Any]:
    """Write a model in a stock architecture, run the result, and compare it with the original.

    Two comparisons of logits: the stock architecture with the original, in float32; and the written files, run by the
    library that is made for them, with the stock architecture that has the weights of the files.

    Args:
        name: Folder or hub id; an adapter is merged into its base.
        out: Folder to make.
        target: One of families.TARGETS; `auto`: the one that computes the same with the fewest parameters added.
        dtype: Of the weights, one of the format's. None: as they are.
        format: One of formats.FORMATS.
        max_shard_size: Largest file of weights in bytes, for formats of several files.
        text: File whose first 512 tokens are measured; None: a part of Python's documentation.

    Returns:
        JSON-ready, and saved as export.json in `out`: `architecture` and `differences`, the largest of any logit by
        kind of input, of the two comparisons; `largest_logit`; `tolerance`, the largest difference that passes;
        `greedy_equal`, of a continuation of `greedy_tokens` tokens; `rounding`, what the file's dtype costs, or None;
        `source` and `result`, with `bits_per_byte` (None without a tokenizer), `tokens_per_second` of one thread,
        `bytes` and `runtime`; `text`, tokens and bytes that were measured; `notes`.

    Raises:
        CheckpointError: `out` is not empty; the target or the format lacks a named part, or cannot hold this tokenizer.
        CheckFailed: A difference is above the tolerance; nothing is left in `out`.
    """
    require_export(name, out, dtype, format, max_shard_size, text)
    lineage = find_lineage(name)
    model = load_model(name, device="cpu")
    tokenizer = model_tokenizer(name)
    ours = model if model.config.model_type == "mypt" else to_mypt(model)
    fields = ours.config.to_dict()
    target = _choose(target, fields, tokenizer)
    stock, form = from_mypt(ours, target), WRITERS[format]
    form.check(stock.config.to_dict(), tokenizer)
    context, saved_as = fields["max_position_embeddings"], str(model.dtype).removeprefix("torch.")
    dtype = choose_dtype(format, dtype, saved_as)
    probes = make_probes(fields, tokenizer)
    sample = None if tokenizer is None else make_text(tokenizer, _read(text) if text else sample_text(), context)
    report = {"model": str(name), "from": type(model).__name__, "to": type(stock).__name__, "out": str(out)}
    report |= {"format": format, "target": target, "added_biases": added_biases(fields, target)}
    report |= {"dtype": dtype, "parameters": stock.num_parameters()}

    source = TransformersRunner(model)
    exact = evaluate(source, probes, context)
    report["source"] = measure(source, sample, probes, context) | {"bytes": _parameter_bytes(model)}
    del source, model, ours
    report["architecture"] = compare(exact, evaluate(TransformersRunner(stock), probes, context), probes)["differences"]
    with new_folder(out) as folder:
        report["notes"] = form.write(stock, tokenizer, folder, dtype, max_shard_size)
        if lineage:
            write_lineage(folder, lineage)
        expected = evaluate(TransformersRunner(stock), probes, context)
        del stock
        rounding = max(differences(exact, expected, probes).values())
        report["rounding"] = rounding if dtype != saved_as else None
        with form.open_folder(folder, tokenizer) as runner:
            found = evaluate(runner, probes, context)
            report |= compare(expected, found, probes, runner, form.tolerance_factor(target, dtype, saved_as))
            report["result"] = measure(runner, sample, probes, context)
        report["greedy_as_source"] = _common(exact.greedy, found.greedy)
        report["text"] = {"tokens": sum(w.shape[1] for w in sample.windows), "bytes": sample.bytes} if sample else None
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}
        report["result"]["bytes"] = sum(size for file, size in sizes.items() if not file.startswith("."))
        replace_text(folder / REPORT_NAME, json.dumps(report, indent=1) + "\n")
    return report


def require_export(
    name: str | Path,
    out: str | Path,
    dtype: str | None = None,
    format: str = "safetensors",
    max_shard_size: int | None = None,
    text: str | Path | None = None,
) -> None:
    """Raise what `export_model` raises before it imports torch."""
    require_format(format, dtype, max_shard_size)
    require_free(out, CheckpointError)
    if text:
        require_file(text)
    require_model(name)


def _read(text: str | Path) -> str:
    return Path(text).read_text(encoding="utf-8", errors="replace")


def _parameter_bytes(model) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _common(first: list[int], second: list[int]) -> int:
    """Tokens at the beginning that are equal."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


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
