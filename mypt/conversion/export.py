"""A model as a stock checkpoint, which loads without mypt and without remote code, measured against the original."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mypt.checkpoints.load import load_model, require_model
from mypt.conversion.families import TARGETS, added_biases, choose_target
from mypt.conversion.weights import cast, from_mypt, to_mypt
from mypt.errors import CheckFailed, CheckpointError
from mypt.folders import new_folder, require_free
from mypt.tokenization.load import model_tokenizer, save_tokenizer, tokenizer_hash

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOLERANCE = 1e-5  # of the largest logit; float32 has 1.2e-7, and GPT-2's matrices are summed in another order
LENGTH, CONTINUATION = 128, 32  # tokens
TEXT = """The committee met on 3 March 2021 to hear the appeal. "Nothing in the record," it wrote, "shows that the
notice was served, and a party that was never told cannot be late." Costs of 1,250.00 were awarded; naïve as it may
sound, both sides thanked the clerk.

def moving_average(values, width):
    total = sum(values[:width])
    for old, new in zip(values, values[width:]):
        yield total / width
        total += new - old
"""


def export_model(name: str | Path, out: str | Path, target: str = "auto", dtype: str | None = None) -> dict[str, Any]:
    """Write the model in the folder or hub repository `name` to the folder `out`, as one of families.TARGETS.

    target: `auto` takes the one that computes the same with the fewest parameters added. dtype: of the weights; None:
    as they are. An adapter is merged into its base. What was written is read again and compared in float32.

    Returns a JSON-ready report: `differences`, the largest of any logit by kind of input; `largest_logit`; `tolerance`,
    the largest difference that passes; `greedy_equal`, of a continuation of `greedy_tokens` tokens; `rounding`, what
    `dtype` costs, or None.
    Raises CheckpointError for a folder that is not empty, where the target lacks something, which it names, and where
    its folders cannot hold this tokenizer; CheckFailed beyond the tolerance. Then nothing is left in `out`.
    """
    require_export(name, out)
    import torch

    out = Path(out)
    model = load_model(name, device="cpu")
    tokenizer = model_tokenizer(name)
    ours = model if model.config.model_type == "mypt" else to_mypt(model)
    fields = ours.config.to_dict()
    target = _choose(target, fields, tokenizer)
    stock = from_mypt(ours, target)
    probes = _probes(fields, tokenizer)
    report = {"model": str(name), "from": type(model).__name__, "to": type(stock).__name__, "out": str(out)}
    report |= {"target": target, "added_biases": added_biases(fields, target), "rounding": None}
    if dtype and getattr(torch, dtype) != model.dtype:
        exact, _ = _outputs(model, probes)
        model, stock = cast(model, dtype), cast(stock, dtype)
        report["rounding"] = max(_differences(exact, _outputs(model, probes)[0], probes).values())
    report |= {"dtype": str(model.dtype).removeprefix("torch."), "parameters": stock.num_parameters()}
    with new_folder(out) as folder:
        stock.save_pretrained(folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        del stock, ours
        expected = _outputs(model, probes)
        del model
        report |= _compared(expected, _outputs(load_model(folder, device="cpu"), probes), probes)
    return report


def require_export(name: str | Path, out: str | Path) -> None:
    """What `export_model` refuses before it imports torch."""
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


def _probes(config: dict, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs by name: ids and attention mask, int64 (B, T), no longer than the model's context."""
    import torch

    size, length = config["unpadded_vocab_size"] or config["vocab_size"], config["max_position_embeddings"]
    length = min(LENGTH, length)
    ids = torch.randint(size, (2, length), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[1, : length // 3] = 0
    probes = {"random ids": (ids, torch.ones_like(ids)), "left-padded batch": (ids, padded)}
    if tokenizer is not None:
        text = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"][:length]])
        probes["text"] = (text, torch.ones_like(text))
    return probes


def _outputs(model: PreTrainedModel, probes: dict[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """The logits of each probe, (B, T, V), and a greedy continuation, (1, T), both computed in float32.

    The weights go back to their dtype, which loses nothing.
    """
    import torch

    dtype, logits = str(model.dtype).removeprefix("torch."), {}
    cast(model, "float32")
    with torch.no_grad():
        for name, (ids, mask) in probes.items():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits[name] = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        ids, mask = probes.get("text", probes["random ids"])
        prompt = ids[:1, : ids.shape[1] // 2]
        new = min(CONTINUATION, model.config.max_position_embeddings - prompt.shape[1])
        greedy = model.generate(
            prompt, attention_mask=mask[:1, : prompt.shape[1]], do_sample=False, num_beams=1, max_new_tokens=new
        )
    cast(model, dtype)
    return logits, greedy[:, prompt.shape[1] :]


def _differences(first: dict[str, Tensor], second: dict[str, Tensor], probes) -> dict[str, float]:
    """The largest absolute difference of any logit, by probe; what stands at padding means nothing."""
    kept = {name: mask.bool() for name, (_, mask) in probes.items()}
    return {name: (first[name] - second[name])[kept[name]].abs().max().item() for name in probes}


def _compared(expected, found, probes) -> dict[str, Any]:
    differences = _differences(expected[0], found[0], probes)
    largest = max(logits.abs().max().item() for logits in expected[0].values())
    tolerance = TOLERANCE * max(1.0, largest)
    # Where logits are infinite, so is the tolerance.
    wrong = [f"{value:.1e} ({name})" for name, value in differences.items() if not value <= tolerance < math.inf]
    if wrong:
        raise CheckFailed(
            f"what was written gives logits that differ by {', '.join(wrong)}, more than the tolerance of "
            f"{tolerance:.1e}; nothing is kept"
        )
    return {
        "differences": differences,
        "largest_logit": largest,
        "tolerance": tolerance,
        "greedy_tokens": expected[1].shape[1],
        "greedy_equal": expected[1].tolist() == found[1].tolist(),
    }
