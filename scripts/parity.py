"""How far apart the logits of MyPT and of transformers' own classes are, both ways; and those of the original MyPT.

    python scripts/parity.py [--legacy FOLDER] [--no-compile] [--json]

Each row is a model of 6 layers x 384 with random weights and biases, in float32, beside the same weights in the other
class: `import` is what model.init_from makes of a stock model, `export` what `mypt export` writes, read again.
The figures are the largest absolute differences of any logit from the one forward pass of the other class (SDPA):

  forward       one pass over 2 x 128 random ids
  left-padded   the second row begins with 42 tokens of padding
  chunked       the same ids in chunks of 48, each reading the cache of those before
  compiled      torch.compile, one graph
  eager, flex   both classes with this attention (GPT-2 has no flex attention and keeps SDPA)

FOLDER holds checkpoints of the original MyPT, and the logits to expect of them in files expected_*.pt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import platform
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from transformers import PreTrainedModel

from mypt.checkpoints.load import load_model
from mypt.conversion.export import export_model
from mypt.conversion.families import choose_target
from mypt.conversion.weights import to_mypt
from mypt.errors import MyPTError
from mypt.terminal import print_table

LENGTH, CHUNK, PADDING, VOCABULARY = 128, 48, 42, 4096
COLUMNS = ("forward", "left-padded", "chunked", "compiled", "eager", "flex")
ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
MODELS = {
    "GPT-2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 256}),
    "Llama": ("Llama", ROTARY),
    "Llama, biases, yarn": ("Llama", ROTARY | {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN}),
    "Mistral": ("Mistral", ROTARY | {"sliding_window": None}),
    "Qwen2": ("Qwen2", ROTARY),
    "Qwen3": ("Qwen3", ROTARY | {"head_dim": 64, "tie_word_embeddings": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--legacy", type=Path, help="folder with checkpoints of the original MyPT")
    parser.add_argument("--no-compile", action="store_true", help="leave out what needs a C++ compiler: compiled, flex")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    columns = [name for name in COLUMNS if not (args.no_compile and name in ("compiled", "flex"))]
    rows = [row for name in MODELS for row in both_ways(name, columns)]
    legacy = list(original(args.legacy)) if args.legacy else []
    if args.json:
        versions = {name: version(name) for name in ("mypt", "torch", "transformers")}
        print(json.dumps({"machine": platform.processor(), **versions, "models": rows, "legacy": legacy}, indent=1))
        return
    figures = [[row["model"], row["way"], f"{row['largest']:.1f}", *(shown(row[c]) for c in columns)] for row in rows]
    print_table("", ["model", "way", "largest logit", *columns], figures)
    if legacy:
        print()
        print_table("", ["original MyPT", "forward"], [[row["model"], shown(row["forward"])] for row in legacy])


def shown(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.1e}"


def both_ways(name: str, columns: list[str]) -> Iterator[dict]:
    family, sizes = MODELS[name]
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    stock = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = to_mypt(stock)
    yield {"model": name, "way": "import", **measured(stock, ours, columns)}
    with TemporaryDirectory() as folder:
        ours.save_pretrained(Path(folder, "ours"))
        target = choose_target(ours.config.to_dict())
        export_model(Path(folder, "ours"), Path(folder, "stock"), target)
        exported = load_model(Path(folder, "stock"), device="cpu")
        yield {"model": name, "way": f"export ({target})", **measured(ours, exported, columns)}


@torch.no_grad()
def measured(reference: PreTrainedModel, model: PreTrainedModel, columns: list[str]) -> dict[str, float | str]:
    """The largest difference of any logit by column; the words of the error where something cannot run."""
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    padded = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    expected = reference(ids).logits

    def chunked() -> torch.Tensor:
        cache, parts = None, []
        for part in ids.split(CHUNK, dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        return torch.cat(parts, 1) - expected

    def attention(name: str) -> torch.Tensor:
        for each in (reference, model):
            with contextlib.suppress(ValueError):  # GPT-2 has no flex attention: it keeps SDPA
                each.set_attn_implementation(name)
        try:
            return reference(ids).logits - model(ids).logits
        finally:
            for each in (reference, model):
                each.set_attn_implementation("sdpa")

    found: dict[str, float | str] = {"largest": expected.abs().max().item()}
    measures = {
        "forward": lambda: model(ids).logits - expected,
        "left-padded": lambda: (model(ids, **padded).logits - reference(ids, **padded).logits)[mask.bool()],
        "chunked": chunked,
        "compiled": lambda: torch.compile(model, fullgraph=True)(ids, use_cache=False).logits - expected,
        "eager": lambda: attention("eager"),
        "flex": lambda: attention("flex_attention"),
    }
    for column in columns:
        torch.compiler.reset()  # each measure compiles anew: none meets the limit of another
        try:
            found[column] = measures[column]().abs().max().item()
        except Exception as error:  # a compiler that is missing, an attention that this machine cannot run
            found[column] = type(error).__name__
    return found


def original(folder: Path) -> Iterator[dict]:
    """Every checkpoint of the original, converted, beside the expected logits that are its."""
    from mypt.conversion.original_checkpoint import convert_checkpoint

    expected = sorted(folder.glob("expected_*.pt"))
    for path in sorted({*folder.iterdir()} - {*expected}):
        difference = "none of the expected logits"
        for check in expected:
            with TemporaryDirectory() as out, contextlib.suppress(MyPTError):
                difference = convert_checkpoint(path, Path(out, "model"), check=check)["max_logit_difference"]
                break
        yield {"model": path.name, "forward": difference}


if __name__ == "__main__":
    main()
