"""Checkpoints of the original MyPT as today's: a folder that AutoModelForCausalLM and AutoTokenizer load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.conversion.original_vocabulary import add_rows, find_tokenizer, token_fields
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.folders import new_folder, require_free
from mypt.inspection.checkpoint import PROVENANCE_NAME
from mypt.legacy.checkpoint import NotOriginal, Original, is_bundle, load_plain, read_original, single_files
from mypt.legacy.weight_names import config_fields, rename
from mypt.tokenization.load import largest_id, save_tokenizer

if TYPE_CHECKING:
    import torch

    from mypt.models.modeling_mypt import MyPTForCausalLM


# The largest difference of logits that is rounding, by the dtype in which the weights were saved.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}
_OPTIMIZER_NOTE = (
    "the optimizer's state is not carried over: it numbers the parameters of another layout, and a resume would need "
    "the data's position and the schedule, too; to train on, name the new folder in model.init_from"
)


def convert_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    tokenizer: str | None = None,
    add_bytes: bool = False,
    rotary: str = "halves",
    check: str | Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write the original's checkpoint at `path` (see `read_original`) to the folder `out`, whole or not at all.

    Weights keep their dtype in the file; they are loaded as float32, in which the original computes.

    Args:
        tokenizer: A name as load_tokenizer takes it, in place of the checkpoint's own.
        add_bytes: Give a model of characters EOS and the 256 bytes, too.
        rotary: See `rename`.
        check: A .pt file with {"input_ids": int64 (B, T), "logits": (B, T, V)} that the new model must reproduce.
        dry_run: Read and compare everything, write nothing.

    Returns:
        JSON-ready: path, out, form, era, step, parameters, dtype, tokenizer, config (MyPTConfig fields), notes (a line
        for each thing to know), max_logit_difference (None unless checked).

    Raises:
        CheckpointError: It is nothing of the original's, contradicts itself, or `out` is not empty.
        TokenizerError: There is no such tokenizer.
        CheckFailed: The logits differ.
    """
    out = Path(out)
    if not dry_run:
        require_free(out, CheckpointError)
    original = read_original(path)
    fields = config_fields(original)
    tensors = rename(original, fields, rotary)
    text, notes = find_tokenizer(original, tokenizer, fields["vocab_size"], add_bytes)
    if text and largest_id(text) >= fields["vocab_size"]:
        add_rows(tensors, fields, largest_id(text) + 1)
    fields |= token_fields(text)
    model = _empty_model(original, fields, tensors)
    facts = {"path": str(original.path), "form": original.form, "era": original.era, "step": original.step}
    report = facts | {
        "out": str(out),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtype": str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch."),
        "tokenizer": text and {"ids": largest_id(text) + 1, "eos_token": text.eos_token},
        "config": fields,
        "notes": [*notes, _OPTIMIZER_NOTE] if original.has_optimizer else notes,
        "max_logit_difference": None,
    }
    if dry_run:
        return report
    with new_folder(out) as folder:
        # Copies: slices of one fused tensor would be taken for tied weights.
        model.save_pretrained(folder, state_dict={name: tensor.clone() for name, tensor in tensors.items()})
        if text:
            save_tokenizer(text, folder)
        provenance = (
            {"from": "the original MyPT"}
            | facts
            | {
                "checkpoint_dtype": original.checkpoint_dtype,
                "config": original.config,
                "training_state": original.training_state,
                "optimizer_state": "not carried over" if original.has_optimizer else "none",
            }
        )
        (folder / PROVENANCE_NAME).write_text(json.dumps(provenance, indent=1, default=str) + "\n")
        if check:
            report["max_logit_difference"] = _checked(folder, Path(check), report)
    return report


def convert_all(
    folder: str | Path, out: str | Path, say: Callable[[str, dict | MyPTError], object], **options: Any
) -> bool:
    """Convert every checkpoint in `folder` to a folder of its name in `out`; one that fails does not end it.

    say(name, report or error) is called after each; a file that holds something else is an error of type NotOriginal.
    Returns whether none failed, other than such. Raises CheckpointError if there is nothing to convert.
    """
    good = True
    for name, path in find_all(Path(folder)).items():
        try:
            outcome = convert_checkpoint(path, Path(out) / name, **options)
        except MyPTError as error:
            outcome = error
            good &= isinstance(error, NotOriginal)
        say(name, outcome)
    return good


def find_all(folder: Path) -> dict[str, Path]:
    """Find what may be a checkpoint, by the name it gets: bundles and `.pt` files in `folder`, or one folder deeper.

    Raises CheckpointError if there is nothing.
    """
    found = {file.stem: file for file in single_files(folder)}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ():
        files = [inner] if is_bundle(inner) else single_files(inner)
        for file in files:
            name = inner.name if len(files) == 1 else f"{inner.name}-{file.stem}"
            found[f"{name}-folder" if name in found else name] = file
    if not found:
        raise CheckpointError(f"{folder} holds neither .pt files nor folders with them; name a folder of checkpoints")
    return dict(sorted(found.items()))


def _empty_model(original: Original, fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> MyPTForCausalLM:
    """The model on the meta device, after its parameters were compared with `tensors` by name and shape."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from mypt.models.configuration_mypt import MyPTConfig
    from mypt.models.modeling_mypt import MyPTForCausalLM

    try:
        with torch.device("meta"):
            model = MyPTForCausalLM(MyPTConfig(**fields))
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{original.path} means no model that can be built: {reason}") from None
    meant = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(meant.keys() | given.keys()):
        if meant.get(name) != given.get(name):
            raise CheckpointError(
                f"the weights of {original.path} give {name} the shape {given.get(name)}, the rest of them means "
                f"{meant.get(name)}; restore the file"
            )
    return model


def _checked(folder: Path, expected: Path, report: dict[str, Any]) -> float:
    """The largest difference of the model's logits from the expected ones; CheckFailed if it is more than rounding."""
    import torch

    from mypt.checkpoints.load import load_model

    content = load_plain(expected)
    ids, logits = content.get("input_ids"), content.get("logits")
    if not (isinstance(ids, torch.Tensor) and isinstance(logits, torch.Tensor) and logits.shape[:-1] == ids.shape):
        raise CheckpointError(f"{expected} holds no input_ids (B, T) with their logits (B, T, V); name another --check")
    with torch.no_grad():
        got = load_model(folder, device="cpu")(ids).logits[..., : logits.shape[-1]]
    if got.shape != logits.shape:
        raise CheckpointError(f"{expected} holds logits of {logits.shape[-1]} ids, the model has {got.shape[-1]}")
    difference = (got.float() - logits.float()).abs().max().item()
    if not difference <= TOLERANCES.get(report["dtype"], 1e-3):
        rotary = report["config"]["position_embedding_type"] == "rope"
        raise CheckFailed(
            f"{report['path']} converted gives logits that differ by up to {difference:.3g} from those in {expected}; "
            f"nothing was written{'; try the other --rotary' if rotary else ''}"
        )
    return difference
