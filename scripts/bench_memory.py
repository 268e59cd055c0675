"""Peak memory of real training and generation beside `mypt estimate`, each in a fresh process.

    python scripts/bench_memory.py [--only WORDS] [--exact] [--json]

A process imports everything, trains a model of one layer for two steps, so that kernels and lazy modules are loaded,
and notes its resident memory: the base. Then it trains the measured model through `mypt train`'s own Trainer for two
steps (the first makes the optimizer's states; forward, backward, clipping, update) and notes its peak (VmHWM).
Measured is peak - base; estimated is `training_memory` without `framework`, which is the base.

--exact gives freed memory back at once (MALLOC_MMAP_THRESHOLD_), which shows the tensors alone; it is compared with
the estimate without `allocator`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

MIB = 2**20
LORA = {"r": 16}
CHECKPOINTING = {"activation_checkpointing": True}

# name: preset and changed fields, sequences x tokens, optimizer, and what else differs from float32 without
# checkpointing. On these the allocator's shares were set.
CALIBRATION = {
    "classic small, adamw": ({"preset": "small", "vocab_size": 50304}, (4, 256), "adamw", {}),
    "modern-tiny, muon, short blocks": ({"preset": "modern-tiny", "vocab_size": 16000}, (16, 64), "muon", {}),
    "modern-tiny, adamw, bf16, long block": ({"preset": "modern-tiny", "vocab_size": 16000}, (1, 2048), "adamw",
                                             {"bf16": True}),
    "modern-small, adamw": ({"preset": "modern-small", "vocab_size": 16000}, (2, 512), "adamw", {}),
    "modern-small, muon, bf16, batch 1": ({"preset": "modern-small", "vocab_size": 16000}, (1, 256), "muon",
                                          {"bf16": True}),
    "vocabulary of 100,032, adamw, bf16": ({"preset": "modern-nano", "vocab_size": 100032}, (2, 256), "adamw",
                                           {"bf16": True}),
    "48 layers, muon, checkpointing": ({"preset": "modern-nano", "num_hidden_layers": 48, "vocab_size": 8000},
                                       (16, 128), "muon", {"activation_checkpointing": True}),
    "classic 6 x 768, adamw, bf16, checkpointing": (
        {"preset": "150M", "num_hidden_layers": 6, "vocab_size": 50304}, (8, 128), "adamw",
        {"bf16": True, "activation_checkpointing": True}),
    "classic small, adamw, accumulation": ({"preset": "small", "vocab_size": 20032}, (4, 256), "adamw",
                                           {"gradient_accumulation_steps": 2}),
    "modern-tiny, eager attention": ({"preset": "modern-tiny", "vocab_size": 16000}, (2, 512), "adamw",
                                     {"attention": "eager"}),
    "modern-small, LoRA": ({"preset": "modern-small", "vocab_size": 16000}, (2, 512), "adamw", {"lora": LORA}),
}  # fmt: skip
# Measured when the shares were set.
OTHERS = {
    "modern-tiny, muon": ({"preset": "modern-tiny", "vocab_size": 16000}, (8, 256), "muon", {}),
    "modern-tiny, muon, batch 1": ({"preset": "modern-tiny", "vocab_size": 8000}, (1, 64), "muon", {}),
    "modern-nano, muon, bf16": ({"preset": "modern-nano", "vocab_size": 4096}, (32, 128), "muon", {"bf16": True}),
    "modern-nano, adamw, batch 2": ({"preset": "modern-nano", "vocab_size": 20032}, (2, 64), "adamw", {}),
    "modern-small, muon, batch 2": ({"preset": "modern-small", "vocab_size": 16000}, (2, 128), "muon", {}),
    "modern-small, adamw, batch 1": ({"preset": "modern-small", "vocab_size": 8000}, (1, 128), "adamw", {}),
    "modern-small, muon, bf16, accumulation": ({"preset": "modern-small", "vocab_size": 8000}, (4, 256), "muon",
                                               {"bf16": True, "gradient_accumulation_steps": 4}),
    "modern-medium, adamw, bf16, batch 1": ({"preset": "modern-medium", "vocab_size": 16000}, (1, 256), "adamw",
                                            {"bf16": True}),
    "classic tiny, adamw": ({"preset": "tiny", "vocab_size": 50304}, (16, 128), "adamw", {}),
    "classic small, adamw, bf16, dropout": ({"preset": "small", "vocab_size": 20032, "hidden_dropout": 0.1}, (8, 256),
                                            "adamw", {"bf16": True}),
    "classic 6 x 768, adamw, bf16, batch 1": ({"preset": "150M", "num_hidden_layers": 6, "vocab_size": 20032},
                                              (1, 128), "adamw", {"bf16": True}),
    "modern-tiny, eager attention, bf16": ({"preset": "modern-tiny", "vocab_size": 16000}, (4, 512), "adamw",
                                           {"bf16": True, "attention": "eager"}),
    "modern-tiny, adamw, checkpointing": ({"preset": "modern-tiny", "vocab_size": 16000}, (4, 1024), "adamw",
                                          CHECKPOINTING),
    "modern-small, muon, bf16, checkpointing": ({"preset": "modern-small", "vocab_size": 16000}, (8, 256), "muon",
                                                CHECKPOINTING | {"bf16": True}),
    "classic small, adamw, checkpointing": ({"preset": "small", "vocab_size": 20032}, (8, 256), "adamw",
                                            CHECKPOINTING),
    "modern-small, LoRA of 64, bf16": ({"preset": "modern-small", "vocab_size": 16000}, (4, 256), "adamw",
                                       {"bf16": True, "lora": {"r": 64}}),
    "modern-tiny, LoRA of q_proj and v_proj": (
        {"preset": "modern-tiny", "vocab_size": 16000}, (8, 256), "adamw",
        {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}),
    "classic 6 x 768, LoRA, checkpointing": ({"preset": "150M", "num_hidden_layers": 6, "vocab_size": 50304},
                                             (4, 256), "adamw", CHECKPOINTING | {"lora": {"r": 8}}),
    "classic small, LoRA, bf16, checkpointing": ({"preset": "small", "vocab_size": 20032}, (8, 256), "adamw",
                                                 CHECKPOINTING | {"bf16": True, "lora": {"r": 8}}),
    "modern-tiny, LoRA, checkpointing": ({"preset": "modern-tiny", "vocab_size": 16000}, (4, 512), "adamw",
                                         CHECKPOINTING | {"lora": {"r": 8}}),
    "modern-tiny, LoRA, bf16, checkpointing": ({"preset": "modern-tiny", "vocab_size": 8000}, (8, 512), "adamw",
                                               CHECKPOINTING | {"bf16": True, "lora": {"r": 8}}),
    "modern-small, LoRA, checkpointing": ({"preset": "modern-small", "vocab_size": 8000}, (2, 512), "adamw",
                                          CHECKPOINTING | {"lora": {"r": 4}}),
    "modern-small, LoRA, bf16, checkpointing": ({"preset": "modern-small", "vocab_size": 16000}, (8, 256), "adamw",
                                                CHECKPOINTING | {"bf16": True, "lora": {"r": 8}}),
    "modern-small, LoRA of 16, bf16, checkpointing": ({"preset": "modern-small", "vocab_size": 8000}, (4, 1024),
                                                      "adamw", CHECKPOINTING | {"bf16": True, "lora": LORA}),
}  # fmt: skip
TRAINING = CALIBRATION | OTHERS
# preset and fields, sequences, tokens of the prompt
GENERATION = {
    "modern-tiny, long prompt": ({"preset": "modern-tiny", "vocab_size": 16000}, 16, 1000),
    "classic 6 x 768": ({"preset": "150M_1024", "num_hidden_layers": 6}, 8, 800),
    "modern-small, batch 1": ({"preset": "modern-small", "vocab_size": 16000}, 1, 1000),
    "classic small, short prompts": ({"preset": "small"}, 32, 200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the configurations whose name holds this")
    parser.add_argument("--exact", action="store_true", help="give freed memory back at once")
    parser.add_argument("--json", action="store_true", help="print one JSON object per configuration")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(_worker(args.worker)))
        return
    print(f"{'configuration':<46}{'measured':>10}{'estimated':>11}{'ratio':>7}  MiB")
    for name in [*TRAINING, *(f"generate: {name}" for name in GENERATION)]:
        if args.only in name:
            row = _measure(name, args.exact)
            print(json.dumps(row) if args.json else _line(row), flush=True)


def _measure(name: str, exact: bool) -> dict:
    environment = dict(os.environ)
    if exact:
        environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    command = [sys.executable, __file__, "--worker", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    row = json.loads(done.stdout.splitlines()[-1])
    phases = row["parts"].get("phases", {}).values() or [row["parts"]]
    kept = max(phase["total"] - (phase.get("allocator", 0) if exact else 0) for phase in phases)
    row["estimated"] = kept - row["parts"]["framework"]
    return {"name": name, **row, "ratio": row["estimated"] / row["measured"]}


def _line(row: dict) -> str:
    return f"{row['name']:<46}{row['measured'] / MIB:>10,.0f}{row['estimated'] / MIB:>11,.0f}{row['ratio']:>7.2f}"


def _worker(name: str) -> dict:
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if name.startswith("generate: "):
            return _generate(*GENERATION[name.removeprefix("generate: ")])
        return _train(Path(folder), *TRAINING[name])


def _train(folder: Path, model: dict, size: tuple[int, int], optimizer: str, settings: dict) -> dict:
    from mypt.models.presets import preset_dimensions
    from mypt.planning.memory import training_memory
    from mypt.planning.parameters import ALL_LINEAR
    from mypt.planning.step import Step

    settings = dict(settings)
    lora, attention = settings.pop("lora", None), settings.pop("attention", "sdpa")
    _prepare(folder)
    tiny = {"preset": model["preset"], "num_hidden_layers": 1, "hidden_size": 96, "num_attention_heads": 2}
    _trainer(folder, "tiny", tiny, (1, 32), optimizer, settings, lora, attention).train()
    gc.collect()
    base = _reset()
    trainer = _trainer(folder, "real", model, size, optimizer, settings, lora, attention)
    built = _status("VmRSS") - base
    peaks = []
    trainer.save_model = lambda *args, **kwargs: None
    trainer._save_checkpoint = lambda *args: peaks.append(_status("VmHWM"))
    trainer.train()
    step = Step(
        micro_batch_size=size[0],
        block_size=size[1],
        accumulation=settings.get("gradient_accumulation_steps", 1),
        optimizer=optimizer,
        compute_dtype="bfloat16" if settings.get("bf16") else "float32",
        checkpointing=settings.get("activation_checkpointing", False),
        attention=attention,
        lora_r=lora["r"] if lora else 0,
        lora_targets=(lora or {}).get("target_modules", ALL_LINEAR),
    )
    fields = {name: value for name, value in model.items() if name != "preset"}
    return {
        "measured": max(peaks) - base,
        "base": base,
        "built": built,
        "parts": training_memory(preset_dimensions(model["preset"], **fields), step),
    }


def _prepare(folder: Path) -> None:
    from pydoc_data.topics import topics

    from mypt.preparation.prepare import prepare_dataset

    text = "\n\n".join(topics.values())[:200_000]
    (folder / "text.txt").write_text(text.encode("ascii", "ignore").decode(), encoding="utf-8")
    prepare_dataset([str(folder / "text.txt")], folder / "data", tokenizer="char", val_fraction=0, progress=False)


def _trainer(folder, run, model, size, optimizer, settings, lora, attention):
    """The Trainer that `mypt train` would use; LoRA stands beside a saved model."""
    from mypt.recipe import parse_recipe
    from mypt.training.build import build_trainer

    content = {
        "model": model,
        "data": {"train": str(folder / "data"), "block_size": size[1]},
        "coverage": {"confirm": False},
        "optimizer": {"name": optimizer},
        "hardware": {"attention": attention},
        "training": {"output_dir": str(folder / run), "max_steps": 2, "per_device_train_batch_size": size[0],
                     "eval_strategy": "no", "bf16": False, **settings},
    }  # fmt: skip
    if lora:
        content |= {"lora": lora, "model": {"init_from": _saved(folder / f"{run}_base", folder / "data", model)}}
    return build_trainer(parse_recipe(content))


def _saved(base: Path, data: Path, model: dict) -> str:
    """Save `model` with random weights and the data's tokenizer as `base`; in another process, to leave no trace."""
    process = get_context("spawn").Process(target=_save, args=(base, data, model))
    process.start()
    process.join()
    return str(base)


def _save(base: Path, data: Path, model: dict) -> None:
    from mypt.models.modeling_mypt import MyPTForCausalLM
    from mypt.models.presets import preset_config
    from mypt.tokenization.load import load_tokenizer

    fields = {name: value for name, value in model.items() if name != "preset"}
    MyPTForCausalLM(preset_config(model["preset"], **fields)).save_pretrained(base)
    load_tokenizer(data).save_pretrained(base)


def _generate(model: dict, sequences: int, prompt: int) -> dict:
    import torch

    from mypt.models.modeling_mypt import MyPTForCausalLM
    from mypt.models.presets import preset_config, preset_dimensions
    from mypt.planning.memory import generation_memory

    def run(config, rows, length):
        ids = torch.randint(config.vocab_size, (rows, length))
        MyPTForCausalLM(config).eval().generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=True, top_p=0.9)

    fields = {name: value for name, value in model.items() if name != "preset"}
    run(preset_config(model["preset"], num_hidden_layers=1, hidden_size=96, num_attention_heads=2), 1, 32)
    gc.collect()
    base = _reset()
    run(preset_config(model["preset"], **fields), sequences, prompt)
    dimensions = preset_dimensions(model["preset"], **fields)
    parts = generation_memory(dimensions, context=prompt + 3, batch_size=sequences)
    return {"measured": _status("VmHWM") - base, "base": base, "parts": parts}


def _status(field: str) -> int:
    """Bytes by the kernel's account of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _reset() -> int:
    """Start a new high-water mark; the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


if __name__ == "__main__":
    main()
