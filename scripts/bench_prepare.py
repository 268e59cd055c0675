"""Text to GPT-2 tokens on one core: `mypt prepare` beside other ways, in CPU seconds of the whole process.

    python scripts/bench_prepare.py [--text FILE ...] [--megabytes 97] [--core 0] [--sides NAME ...] [--before FOLDER]

Each side is a process of its own, one at a time, on one core, from its start to its end: imports and loading count.
Measured is the time of the processor, which other jobs change less than the clock, and the most memory.

  floor      what nobody can leave out: read lines, parse JSON, encode with fastokens, write uint16
  mypt       mypt prepare: documents cleaned, deduplicated, divided into train and val, shards with checksums
  before     the same in the checkout of mypt in --before; its files must be those of mypt, byte for byte
  lines      mypt prepare --filter line --dedup line: what the loop does
  loop       the way of the original MyPT: collapse blanks, skip short and repeated lines, encode each with tiktoken
  batches    tiktoken in batches of documents on one thread, nothing else
  nanogpt    the way of nanoGPT: load_dataset, a map that encodes one document at a time with tiktoken, a memmap
  datasets   the way of the HF examples: load_dataset, map with the fast tokenizer, batched
  datatrove  its JSON lines reader and DocumentTokenizer, unshuffled

Without --text: two files of JSON lines with documents of 3,000 characters, of Python sources (this Python and its
packages) and of prose (the system's manual pages, in all languages that it has).
Needs pip install mypt[offline,fast]; for loop, batches and nanogpt tiktoken; for datatrove mypt[datatrove].
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

CHARACTERS = 3_000  # of a document
SHARD_TOKENS = 10_000_000
TOGETHER = 300  # documents in a batch
SHORT = 3  # characters; the loop skips shorter lines
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EOS = 50256
KILOBYTE = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes there, in kB elsewhere
PACKAGES = ("mypt", "fastokens", "tokenizers", "tiktoken", "datasets", "datatrove", "numpy")
REPORT = "prepare_report.json"  # it tells the time, so it differs


def floor(text: Path, out: Path) -> None:
    import fastokens
    import numpy as np

    backend = fastokens.Tokenizer.from_json_str((out.parent / "gpt2" / "tokenizer.json").read_text())
    backend.no_truncation()
    with open(text, "rb") as lines, open(out / "train.bin", "wb") as file:
        texts = (json.loads(line)["text"] for line in lines)
        while batch := list(islice(texts, TOGETHER)):
            ids, _ = backend.encode_batch_flat(batch, split_special_tokens=True)
            file.write(np.frombuffer(ids, "<u4").astype("<u2").data)


def prepare(text: Path, out: Path, *settings: str) -> None:
    from mypt.cli.main import main

    command = ["prepare", "--source", str(text), "--out", str(out / "data"), "--tokenizer", "gpt2", "--workers", "1"]
    sys.exit(main([*command, *settings]))


def lines(text: Path, out: Path) -> None:
    prepare(text, out, "--filter", "line", "--dedup", "line")


def gpt2_encoding(out: Path):
    """tiktoken's GPT-2, from the vocabulary in `out`'s neighbour: tiktoken would download it."""
    import tiktoken

    content = json.loads((out.parent / "gpt2" / "tokenizer.json").read_text())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    ranks = {bytes(map(letters.get, token)): id for token, id in content["model"]["vocab"].items() if id != EOS}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": EOS})


def loop(text: Path, out: Path) -> None:
    import numpy as np

    encoding, seen, waiting, shards = gpt2_encoding(out), set(), [], 0

    def write(ids: list[int]) -> None:
        nonlocal shards
        np.array(ids, dtype=np.uint32).tofile(out / f"shard_{shards:05d}.bin")
        shards += 1

    for line in (line for document in documents(text) for line in document.split("\n")):
        line = " ".join(line.split())
        if len(line) < SHORT or line in seen:
            continue
        seen.add(line)
        waiting.extend(encoding.encode_ordinary(line))
        if len(waiting) >= SHARD_TOKENS:
            write(waiting[:SHARD_TOKENS])
            waiting = waiting[SHARD_TOKENS:]
    write(waiting)


def batches(text: Path, out: Path) -> None:
    import numpy as np

    encoding, texts = gpt2_encoding(out), documents(text)
    with open(out / "train.bin", "wb") as file:
        while batch := list(islice(texts, TOGETHER)):
            for ids in encoding.encode_ordinary_batch(batch, num_threads=1):
                np.array([*ids, EOS], np.uint16).tofile(file)


def nanogpt(text: Path, out: Path) -> None:
    import numpy as np

    encoding = gpt2_encoding(out)

    def encode(example: dict) -> dict:
        ids = [*encoding.encode_ordinary(example["text"]), EOS]
        return {"ids": ids, "len": len(ids)}

    whole = load(text, out)
    parts = whole.train_test_split(test_size=0.1, seed=1)
    for name, part in parts.items():
        part = part.map(encode, remove_columns=part.column_names, num_proc=1)
        stream = np.memmap(out / f"{name}.bin", np.uint16, "w+", shape=(sum(part["len"]),))
        place = 0
        for batch in part.with_format("numpy").iter(1024):
            ids = np.concatenate(batch["ids"])
            stream[place : place + len(ids)] = ids
            place += len(ids)
        stream.flush()


def datasets(text: Path, out: Path) -> None:
    import numpy as np
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained(str(out.parent / "gpt2"))
    whole = load(text, out)
    encoded = whole.map(
        lambda batch: {"ids": tokenizer(batch["text"])["input_ids"]}, batched=True, remove_columns=whole.column_names
    )
    with open(out / "train.bin", "wb") as file:
        for batch in encoded.with_format("arrow").iter(1000):
            batch["ids"].combine_chunks().flatten().to_numpy().astype(np.uint16).tofile(file)


def datatrove(text: Path, out: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = str(out.parent / "gpt2" / "tokenizer.json")
    steps = [
        JsonlReader(str(text.parent), glob_pattern=text.name),
        DocumentTokenizer(str(out), tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, logging_dir=str(out / "logs")).run()


def load(text: Path, out: Path):
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return load_dataset("json", data_files=str(text), split="train", cache_dir=str(out / "cache"))


def documents(text: Path) -> Iterator[str]:
    """The texts of a file of JSON lines."""
    with open(text, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


SIDES = {
    "floor": floor, "mypt": prepare, "before": prepare, "lines": lines, "loop": loop, "batches": batches,
    "nanogpt": nanogpt, "datasets": datasets, "datatrove": datatrove,
}  # fmt: skip


def measure(side: str, text: Path, out: Path, core: int, tree: Path) -> dict:
    """Run a side in a process of its own."""
    alone = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--side", side, "--text", str(text), "--out", str(out), "--core", str(core)]
    out.mkdir()
    with open(out / "output.txt", "w+") as output:
        environment = os.environ | alone | {"PYTHONPATH": str(tree)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"the side {side} failed:\n{output.read()[-3000:]}")
    return {"seconds": usage.ru_utime + usage.ru_stime, "peak_memory_mb": round(usage.ru_maxrss / KILOBYTE)}


def files(dataset: Path) -> dict[str, str]:
    """SHA-256 of the files of a dataset directory, by name, without what tells the time."""
    paths = (path for path in dataset.rglob("*") if path.is_file() and path.name != REPORT)
    return {str(path.relative_to(dataset)): digest(path) for path in paths if path.name != ".mypt.lock"}


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pieces(texts: Iterator[str], size: float) -> Iterator[str]:
    """JSON lines with documents of CHARACTERS, none twice, until they are `size` bytes."""
    seen: set[int] = set()  # hashes: a process that is started counts the memory of this one as its own
    for text in texts:
        for start in range(0, len(text), CHARACTERS):
            piece = text[start : start + CHARACTERS]
            if len(piece) < CHARACTERS // 6 or hash(piece) in seen:
                continue
            seen.add(hash(piece))
            line = json.dumps({"text": piece}, ensure_ascii=False) + "\n"
            size -= len(line.encode())
            yield line
            if size <= 0:
                return


def sources() -> Iterator[str]:
    for name in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(name)).rglob("*.py")):
            if path.is_file():
                yield path.read_text("utf-8", "replace")


def manuals() -> Iterator[str]:
    for path in sorted(Path("/usr/share/man").rglob("*.gz")):
        yield gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


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
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def compare(text: Path, args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """The figures of all sides on one text; checks that mypt's files are those of 1 and 2 workers, and of before."""
    found, here = {}, Path(__file__).resolve().parents[1]
    for side in args.sides:
        if side != "before" or args.before:
            tree = args.before.resolve() if side == "before" else here
            found[side] = measure(side, text.resolve(), folder / side, args.core, tree)
            found[side]["mb_per_second"] = text.stat().st_size / 1e6 / found[side]["seconds"]
    if "mypt" in found:
        command = [sys.executable, "-m", "mypt", "prepare", "--source", text.resolve(), "--tokenizer", "gpt2"]
        environment = os.environ | {"PYTHONPATH": str(here)}
        subprocess.run([*command, "--out", folder / "two", "--workers", "2"], env=environment, check=True,
                       capture_output=True)  # fmt: skip
        for other, dataset in {"2 workers": folder / "two", "before": folder / "before" / "data"}.items():
            if dataset.is_dir() and files(folder / "mypt" / "data") != files(dataset):
                raise SystemExit(f"{text}: the files of mypt and of {other} differ")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", help='JSON lines with documents in "text" (default: made here)')
    parser.add_argument("--megabytes", type=float, default=97, help="10^6 bytes of each text that is made")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["floor", "mypt", "before"], help="what to run")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout of mypt, for the side before")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {args.core})
        SIDES[args.side](args.text[0], args.out)
        return
    from mypt.tokenization.data_tokenizer import load_data_tokenizer

    report = {"processor": processor(), "versions": versions(), "texts": {}}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = args.text
        if texts is None:
            texts = [folder / "sources.jsonl", folder / "manuals.jsonl"]
            for path, made in zip(texts, (sources(), manuals()), strict=True):
                with open(path, "w", encoding="utf-8") as file:
                    file.writelines(pieces(made, args.megabytes * 1e6))
        for text in texts:
            own = folder / f"{len(report['texts'])}"
            load_data_tokenizer("gpt2").save_pretrained(str(own / "gpt2"))
            sides = compare(text, args, own)
            report["texts"][text.name] = {"megabytes": text.stat().st_size / 1e6, "sides": sides}
    if args.json:
        print(json.dumps(report, indent=1))
        return
    print(f"one core of {report['processor']}; Python {platform.python_version()}, {report['versions']}")
    for name, found in report["texts"].items():
        print(f"\n{name}, {found['megabytes']:.1f} MB")
        print(f"{'side':11}{'CPU s':>8}{'MB/s':>8}{'peak MB':>9}")
        for side, figures in found["sides"].items():
            print(f"{side:11}{figures['seconds']:8.1f}{figures['mb_per_second']:8.1f}{figures['peak_memory_mb']:9,}")


if __name__ == "__main__":
    main()
