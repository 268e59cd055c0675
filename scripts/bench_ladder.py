"""Held out: rungs up to about an eighth of a run's compute predict its loss, on texts of your choice.

    python scripts/bench_ladder.py --work /tmp/ladder [--texts general domain NAME=FILE] [--seeds 1 2] [--json FILE]

`general` and `domain` come with Python: documentation prose and source code. For each text and seed: a BPE tokenizer of
512, a recipe of 134k parameters and 1.3M tokens, `mypt ladder` on it, then the run itself by `mypt train`, and the loss
that it measured beside what the ladder and the generic law predicted. All are processes of one thread. A repeated call
resumes, and reads what is finished. docs/ladder.md has the figures.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import yaml

from mypt.forecasting.ladder_record import read_record
from mypt.forecasting.ladder_report import forecast
from mypt.terminal import print_table, say
from mypt.text.embedded import write_embedded_corpus

STEPS = 635
TRAINING = {"max_steps": STEPS, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 64,
            "learning_rate": 0.01, "bf16": False, "eval_steps": STEPS, "save_steps": 160}  # fmt: skip
MODEL = {"preset": "modern-nano", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 176}  # fmt: skip


def recipe(work: Path, text: str, seed: int) -> dict:
    data = str(work / text)
    return {
        "model": MODEL,
        "data": {"train": data, "eval": {text: data}, "block_size": 64},
        "coverage": {"confirm": False},
        "forgetting": {"eval_windows": "all"},
        "training": TRAINING | {"seed": seed, "output_dir": str(work / "runs" / f"{text}-{seed}")},
    }


def run(*words: str) -> float:
    """Run a command of mypt; its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "mypt", *words], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(work: Path, text: str) -> str:
    """The name of a text that is given as one of Python's or as NAME=FILE, prepared."""
    text, _, source = text.partition("=")
    if not source and not (work / "text").is_dir():
        write_embedded_corpus(work / "text")
    source = source or str(work / "text" / f"{text}.jsonl")
    if not (work / text).is_dir():
        run("prepare", "--source", source, "--out", str(work / text), "--tokenizer", "bpe", "--vocab-size", "512")
    return text


def bench(work: Path, text: str, seed: int) -> dict:
    """The planned run of a text, as predicted and as measured."""
    path = work / f"{text}-{seed}.yaml"
    path.write_text(yaml.safe_dump(recipe(work, text, seed)))
    ladder_seconds = run("ladder", str(path))
    run_seconds = run("train", str(path), "--resume")
    history = json.loads((work / "runs" / f"{text}-{seed}" / "forgetting.json").read_text())["history"]
    record = read_record(work / "runs" / f"{text}-{seed}-ladder")
    found = forecast(record, record.law(), record.parameters, record.tokens, "")
    return {
        "text": text,
        "seed": seed,
        "beyond": found.beyond["compute"],
        "predicted": found.loss.middle,
        "low": found.loss.low,
        "high": found.loss.high,
        "generic": found.generic_loss,
        "measured": history[-1]["sets"][text]["loss"],
        "ladder_seconds": ladder_seconds,
        "run_seconds": run_seconds,
    }


def row(found: dict) -> list[str]:
    measured = found["measured"]
    return [
        found["text"],
        str(found["seed"]),
        f"{found['beyond']:.1f}x",
        f"{found['predicted']:.3f} ({found['low']:.3f} to {found['high']:.3f})",
        f"{measured:.3f}",
        f"{found['predicted'] / measured - 1:+.1%}",
        "yes" if found["low"] <= measured <= found["high"] else "no",
        f"{found['generic']:.3f}",
        f"{found['generic'] / measured - 1:+.0%}",
        f"{found['ladder_seconds']:.0f} s + {found['run_seconds']:.0f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--texts", nargs="+", default=["general", "domain"], help="of Python, or NAME=FILE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="training.seed of a run and its rungs (42)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    texts = [prepare(args.work, text) for text in args.texts]
    found = [bench(args.work, text, seed) for seed in args.seeds for text in texts]
    columns = ["text", "seed", "compute", "predicted", "measured", "error", "inside", "generic", "error"]
    columns.append("CPU: ladder + run")
    print_table("Held out: nats per token", columns, [row(one) for one in found])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    say("CPU seconds of what was not finished before")


if __name__ == "__main__":
    main()
