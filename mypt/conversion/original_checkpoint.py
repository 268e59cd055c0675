"""Convert checkpoints of the original MyPT to folders that AutoModelForCausalLM and AutoTokenizer load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.folders import new_folder, require_free
from mypt.inspection.checkpoint import PROVENANCE_NAME
from mypt.legacy.checkpoint import NotOriginal, Original, is_bundle, load_plain, read_original, single_files
from mypt.legacy.tokenizer import TokenizerState, parse_state
from mypt.legacy.weight_names import config_fields, rename
from mypt.tokenization.load import largest_id, load_tokenizer, save_tokenizer, state_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from mypt.models.modeling_mypt import MyPTForCausalLM

# The largest difference of logits that is rounding, by the dtype in which the weights were saved.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}
_OPTIMIZER_NOTE = (
    "the optimizer's state is not carried over: it numbers the parameters of another layout, and a resume would need "
    "the data's position and the schedule, too; to train on, name the new folder in model.init_from"
)
_GPT2_SIZES = (50_257, 50_304)  # GPT-2's ids, and padded as the original does
_STOP = "<myPT_eot>"  # where the original's generation stops, beside the end of a text
_NEVER = -30.0  # added to an id's logit: e**-30 of the probability of any other


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
    text, notes = _find_tokenizer(original, tokenizer, fields["vocab_size"], add_bytes)
    if text and largest_id(text) >= fields["vocab_size"]:
        tensors, fields = _with_rows(tensors, fields, largest_id(text) + 1)
    fields |= _token_fields(text)
    model = _empty_model(original, fields, tensors)
    report = _origin(original) | {
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
        (folder / PROVENANCE_NAME).write_text(json.dumps(_provenance(original), indent=1, default=str) + "\n")
        if check:
            report["max_logit_difference"] = _checked(folder, Path(check), report)
    return report


def _origin(original: Original) -> dict[str, Any]:
    return {"path": str(original.path), "form": original.form, "era": original.era, "step": original.step}


def _provenance(original: Original) -> dict[str, Any]:
    """The content of converted_from.json."""
    return {"from": "the original MyPT", **_origin(original)} | {
        "checkpoint_dtype": original.checkpoint_dtype,
        "config": original.config,
        "training_state": original.training_state,
        "optimizer_state": "not carried over" if original.has_optimizer else "none",
    }


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


def _find_tokenizer(
    original: Original, name: str | None, vocab_size: int, add_bytes: bool
) -> tuple[PreTrainedTokenizerFast | None, list[str]]:
    """Return the tokenizer (None: there is none), and notes about it, a line each.

    It has no id beyond the model's; with `add_bytes` one of characters has EOS and the 256 bytes after them.
    Raises CheckpointError if it gives ids that the model does not have, TokenizerError if it cannot be had.
    """
    notes, state = [], _tokenizer_state(original, vocab_size)
    if name:
        tokenizer = load_tokenizer(name)
    elif state is None:
        return None, ["it names no tokenizer: none was written; give --tokenizer"]
    elif state.chars is None:
        tokenizer = state_tokenizer(state)
        if not state.special_tokens and vocab_size > largest_id(tokenizer) + 1:
            first, last = largest_id(tokenizer) + 1, vocab_size - 1
            notes.append(f"ids {first:,} to {last:,} have no text: its tokenizer names no special tokens")
    else:
        if state.size < vocab_size:
            notes.append(
                f"its tokenizer has {state.size:,} ids and the model {vocab_size:,}: if a character is missing, all "
                "after it stand for another; look at a text that the model writes"
            )
        if add_bytes:
            return state_tokenizer(state), notes
        tokenizer = state_tokenizer(state, exact=True)
        notes.append(
            f"its {len(state.chars)} characters are all it knows, others are left out of a text, and no id ends one: "
            "to evaluate or train it on prepared data, convert it with --add-bytes"
        )
    if (largest := largest_id(tokenizer)) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer {name or f'of {original.path}'} gives ids up to {largest}, the model has {vocab_size}; "
            "they do not belong together"
        )
    return tokenizer, notes


def _token_fields(tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """MyPTConfig fields that follow from the tokenizer."""
    if tokenizer is None:
        return {}
    eos, vocabulary = tokenizer.eos_token_id, tokenizer.get_vocab()
    stops = [id for id in (eos, vocabulary.get(_STOP)) if id is not None]
    return {
        "unpadded_vocab_size": largest_id(tokenizer) + 1,
        "bos_token_id": eos,
        "pad_token_id": eos,
        "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
    }


def _with_rows(
    tensors: dict[str, torch.Tensor], fields: dict[str, Any], size: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and config with rows up to `size` ids: the mean of the others in the embedding, hardly ever generated.

    The logits of the ids that were there stay what they are.
    """
    import torch

    new, table = size - fields["vocab_size"], tensors["model.embed_tokens.weight"]
    bias = tensors.get("lm_head.bias", table.new_zeros(len(table)))
    rows = {
        "model.embed_tokens.weight": torch.cat((table, table.mean(0, keepdim=True).expand(new, -1))),
        "lm_head.bias": torch.cat((bias, bias.new_full((new,), _NEVER))),
    }
    if "lm_head.weight" in tensors:
        head = tensors["lm_head.weight"]
        rows["lm_head.weight"] = torch.cat((head, head.new_zeros(new, head.shape[1])))
    return tensors | rows, fields | {"vocab_size": size, "lm_head_bias": True}


def _tokenizer_state(original: Original, vocab_size: int) -> TokenizerState | None:
    """The tokenizer that the checkpoint names; the original takes GPT-2's where none is named."""
    content = original.tokenizer
    if content:
        return parse_state(content, f"the tokenizer of {original.path}", str(content.get("token_kind")))
    return TokenizerState(None) if vocab_size in _GPT2_SIZES else None


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
