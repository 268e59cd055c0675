"""Muon against AdamW at equal time: milliseconds of a step, and val loss after equal CPU seconds, by tokens per step.

    python -m mypt.text.embedded text && mypt prepare --source text/general.jsonl --out general \\
        --tokenizer bpe --vocab-size 4096
    OMP_NUM_THREADS=1 python scripts/bench_optimizer.py general --cells modern-nano:256 modern-tiny:1024

A cell is PRESET:TOKENS_PER_STEP (windows of 128). A bare loop with the model, optimizer, stream, schedule (wsd) and
default learning rates of `mypt train`, one thread. Speed: both optimizers take turns of 5 steps. Then each trains from
scratch for as many steps as --seconds CPU seconds hold at that speed. "share" is the arithmetic of
`mypt.planning.optimizer`: FLOPs of the Newton-Schulz products over those of a step.
"""

import argparse
import json
import math
import time

import torch
from transformers import get_scheduler

from mypt.hardware.main_memory import keep_freed
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.recipe import OptimizerSection, parse_recipe
from mypt.shards.format import read_manifest
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.shard_stream import ShardStream
from mypt.training.arguments import default_learning_rate
from mypt.training.optim.optimizers import build_muon_adamw
from mypt.training.optim.schedules import schedule_arguments

BLOCK = 128


class Side:
    """One optimizer with its own model and stream."""

    def __init__(self, args, name: str, preset: str, batch: int, steps: int):
        torch.manual_seed(args.seed)
        vocabulary = -(-read_manifest(args.data).vocab_size // 64) * 64
        config = preset_config(preset, vocab_size=vocabulary, attn_implementation="eager")
        self.model = MyPTForCausalLM(config).train()
        self.bfloat16 = args.bfloat16
        recipe = parse_recipe({"optimizer": {"name": name}, "training": {"output_dir": "unused"}})
        parameters = self.model.num_parameters(exclude_embeddings=True)
        rate = default_learning_rate(recipe, parameters) * (args.adamw_rate if name == "adamw" else 1)
        self.optimizer = build_muon_adamw(self.model, 0.1, muon=name == "muon", lr=rate, bfloat16=args.bfloat16)
        warmup = max(1, steps // 10)
        given = schedule_arguments(OptimizerSection(), steps, warmup)
        kind, options = given["lr_scheduler_type"], given["lr_scheduler_kwargs"]
        self.schedule = get_scheduler(kind, self.optimizer, warmup, steps, options)
        stream = ShardStream(args.data, block_size=BLOCK, micro_batch_size=min(batch, 16), seed=args.seed)
        self.batches, self.passes = iter(stream), max(1, batch // 16)

    def step(self) -> None:
        for _ in range(self.passes):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                loss = self.model(**next(self.batches), use_cache=False).loss
            (loss / self.passes).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def val(self, windows: list[dict]) -> float:
        self.model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            losses = [float(self.model(**batch, use_cache=False).loss) for batch in windows]
        return sum(losses) / len(losses)


def seconds(sides: list[Side], turns: int) -> list[float]:
    """CPU seconds of a step of each: the median of turns of 5 steps."""
    taken = [[] for _ in sides]
    for side in sides:
        side.step()
    for _ in range(turns):
        for side, own in zip(sides, taken, strict=True):
            began = time.process_time()
            for _ in range(5):
                side.step()
            own.append((time.process_time() - began) / 5)
    return [sorted(own)[len(own) // 2] for own in taken]


def val_windows(data: str) -> list[dict]:
    windows = EvalWindows(data, block_size=BLOCK)
    every = max(1, len(windows) // 256)
    chosen = [windows[index] for index in range(0, len(windows), every)]
    names = chosen[0].keys() & {"input_ids", "labels", "shift_labels"}
    batches = [chosen[first : first + 32] for first in range(0, len(chosen), 32)]
    return [{n: torch.stack([torch.as_tensor(one[n]) for one in batch]) for n in names} for batch in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--cells", nargs="+", default=["modern-nano:256"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adamw-rate", type=float, default=1.0, help="times its default learning rate")
    parser.add_argument("--bfloat16", action="store_true", help="autocast and Newton-Schulz in bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    windows = val_windows(args.data)
    for cell in args.cells:
        preset, tokens = cell.split(":")
        batch, names = int(tokens) // BLOCK, ("muon", "adamw")
        times = seconds([Side(args, name, preset, batch, 1_000) for name in names], args.turns)
        report = {"cell": cell, "bfloat16": args.bfloat16, "seed": args.seed}
        for name, each in zip(names, times, strict=True):
            report[f"{name}_ms"] = round(1e3 * each, 1)
            if args.seconds:
                steps = math.floor(args.seconds / each)
                side = Side(args, name, preset, batch, steps)
                began = time.process_time()
                for _ in range(steps):
                    side.step()
                report |= {f"{name}_steps": steps, f"{name}_seconds": round(time.process_time() - began, 1)}
                report[f"{name}_val"] = round(side.val(windows), 4)
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
