"""Tokens per CPU second and start-up of the training stream, beside other ways to feed a GPT.

    python scripts/bench_data.py [--work DIR] [--tokens 100000000] [--rounds 7] [--sides ours,nanogpt]

Each side runs in a process of its own, pinned to one core with one thread; the sides take turns, round by round, about
half a CPU second each. Every side gives int64 inputs and targets, (32, block), of the same random uint16 tokens, which
are in the page cache. Start-up is from the end of the imports to the first batch of a dataset of 10 billion tokens:
1,000 shards that are links to one (nanoGPT: one sparse file). Peers are not dependencies of mypt; a row of one that is
missing says how to install it, and PYTHONPATH may name a folder made by `pip install --target`.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np

BATCH, VOCABULARY, SHARD = 32, 50_257, 10_000_000
ROUND = 0.5  # CPU seconds
STARTUP_SHARDS = 1_000


def random_tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, count, dtype=np.uint16)


def windows(tokens: np.ndarray, block: int) -> np.ndarray:
    """(n, block + 1) at stride block, as peers store them."""
    return np.lib.stride_tricks.sliding_window_view(tokens, block + 1)[::block]


def inputs_and_targets(window):
    """torch (32, block + 1) of any integers -> two int64 (32, block)."""
    import torch

    return window[:, :-1].to(torch.int64).contiguous(), window[:, 1:].to(torch.int64).contiguous()


# One class per side: `write` makes a dataset of tokens, `repeat` makes 1,000 shards of its one, `batches` opens it.


class Ours:
    install, package, reading = "pip install -e .", "mypt", "ram"

    def write(self, folder: Path, tokens: np.ndarray, block: int) -> None:
        import xxhash

        from mypt.shards.format import Manifest, Shard, Split, write_manifest

        (folder / "train").mkdir(parents=True)
        shards = []
        for index, part in enumerate(np.split(tokens, range(SHARD, len(tokens), SHARD))):
            name, digest = f"train/shard_{index:05d}.bin", xxhash.xxh3_128(part).hexdigest()
            part.tofile(folder / name)
            shards.append(Shard(name, len(part), 1, 4 * len(part), int(part.min()), int(part.max()), digest))
        write_manifest(folder, Manifest("uint16", VOCABULARY, 0, "0" * 32, {"train": Split(shards)}))

    def repeat(self, folder: Path) -> None:
        path = folder / "dataset_metadata.json"
        content = json.loads(path.read_text())
        shards = content["splits"]["train"]["shards"]
        names = [f"train/shard_{index:05d}.bin" for index in range(STARTUP_SHARDS)]
        content["splits"]["train"]["shards"] = [shards[0] | {"file": name} for name in names]
        path.write_text(json.dumps(content))
        link(folder / names[0], [folder / name for name in names[1:]])

    def batches(self, folder: Path, block: int):
        from mypt import ShardStream

        reading = "auto" if "startup" in folder.name else self.reading
        for batch in ShardStream(folder, block_size=block, micro_batch_size=BATCH, reading=reading):
            yield batch["input_ids"], batch["shift_labels"]


class OursMapped(Ours):
    reading = "readahead"


class NanoGPT:
    """What its train.py does for every batch, written by hand: random places, one array and one copy per row."""

    install, package = "", "numpy"

    def write(self, folder: Path, tokens: np.ndarray, block: int) -> None:
        folder.mkdir(parents=True)
        tokens.tofile(folder / "train.bin")

    def repeat(self, folder: Path) -> None:
        os.truncate(folder / "train.bin", STARTUP_SHARDS * SHARD * 2)

    def batches(self, folder: Path, block: int):
        import torch

        while True:
            data = np.memmap(folder / "train.bin", np.uint16, mode="r")
            places = torch.randint(len(data) - block, (BATCH,))
            yield tuple(
                torch.stack([torch.from_numpy(data[i + shift : i + shift + block].astype(np.int64)) for i in places])
                for shift in (0, 1)
            )


class HFTorch:
    install, package, format = "pip install datasets", "datasets", "torch"

    def write(self, folder: Path, tokens: np.ndarray, block: int) -> None:
        import pyarrow as pa
        from datasets import Dataset

        rows = windows(tokens, block)
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), block + 1)
        Dataset(pa.table({"tokens": values})).save_to_disk(folder, num_shards=-(-len(tokens) // SHARD))

    def repeat(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        names = [f"data-{index:05d}.arrow" for index in range(STARTUP_SHARDS)]
        link(folder / state["_data_files"][0]["filename"], [folder / name for name in names])
        state["_data_files"] = [{"filename": name} for name in names]
        (folder / "state.json").write_text(json.dumps(state))

    def batches(self, folder: Path, block: int):
        import torch
        from datasets import load_from_disk

        data = load_from_disk(folder).with_format(self.format)
        while True:
            for rows in np.random.default_rng().permutation(len(data))[: len(data) // BATCH * BATCH].reshape(-1, BATCH):
                yield inputs_and_targets(torch.as_tensor(data[rows]["tokens"]))


class HFNumpy(HFTorch):
    format = "numpy"


class LitData:
    install, package = "pip install litdata", "litdata"

    def write(self, folder: Path, tokens: np.ndarray, block: int) -> None:
        import torch
        from litdata import TokensLoader
        from litdata.streaming.writer import BinaryWriter

        folder.mkdir(parents=True)
        writer = BinaryWriter(str(folder), chunk_size=SHARD, item_loader=TokensLoader(block_size=block + 1))
        for index, part in enumerate(np.split(tokens, range(1_000_000, len(tokens), 1_000_000))):
            writer[index] = torch.from_numpy(part)
        writer.done()
        writer.merge()

    def repeat(self, folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text())
        names = [f"chunk-0-{index}.bin" for index in range(STARTUP_SHARDS)]
        content["chunks"] = [content["chunks"][0] | {"filename": name} for name in names]
        (folder / "index.json").write_text(json.dumps(content))
        link(folder / names[0], [folder / name for name in names[1:]])

    def batches(self, folder: Path, block: int):
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

        data = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=block + 1), shuffle=True)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=0)
        while True:
            yield from map(inputs_and_targets, loader)


class Mosaic:
    install, package = "pip install mosaicml-streaming", "streaming"

    def write(self, folder: Path, tokens: np.ndarray, block: int) -> None:
        without_torchvision()
        from streaming import MDSWriter

        columns = {"tokens": f"ndarray:uint16:{block + 1}"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=2 * SHARD) as writer:
            for row in windows(tokens, block):
                writer.write({"tokens": np.ascontiguousarray(row)})

    def repeat(self, folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text())
        first = content["shards"][0]
        names = [f"shard.{index:05d}.mds" for index in range(STARTUP_SHARDS)]
        content["shards"] = [first | {"raw_data": first["raw_data"] | {"basename": name}} for name in names]
        (folder / "index.json").write_text(json.dumps(content))
        link(folder / names[0], [folder / name for name in names[1:]])

    def batches(self, folder: Path, block: int):
        without_torchvision()
        import torch
        from streaming import StreamingDataset

        data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
        loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=0, drop_last=True)
        while True:
            for batch in loader:
                yield inputs_and_targets(batch["tokens"])


SIDES = {
    "ours": Ours,
    "ours-readahead": OursMapped,
    "nanogpt": NanoGPT,
    "hf-torch": HFTorch,
    "hf-numpy": HFNumpy,
    "litdata": LitData,
    "mosaic": Mosaic,
}


def link(source: Path, names: list[Path]) -> None:
    for name in names:
        if not name.exists():
            os.link(source, name)


def without_torchvision() -> None:
    """MosaicML Streaming imports it for image datasets, which play no part here; if it lacks, an empty one will do."""
    import types
    from importlib.machinery import ModuleSpec

    import transformers.utils.import_utils  # noqa: F401  looks for torchvision itself, before the empty one is there

    class Empty(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".datasets", ".datasets.folder", ".transforms", ".transforms.functional", ".io"):
            module = Empty(f"torchvision{name}")
            module.__spec__, module.__path__ = ModuleSpec(f"torchvision{name}", None), []
            sys.modules[f"torchvision{name}"] = module


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(side: str, folder: Path, block: int, core: int) -> None:
    """Answers on stdout: the start-up, then for each line on stdin the tokens per CPU second of a round."""
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    warm = SIDES[side]().batches(folder.parent / f"{side}-small-{block}", block)
    next(warm)  # whatever is imported at the first use is not start-up
    del warm
    memory, began = resident(), time.process_time()
    batches = SIDES[side]().batches(folder, block)
    inputs, targets = next(batches)
    startup = {"seconds": time.process_time() - began, "bytes": resident() - memory}
    shape = (BATCH, block)
    assert inputs.shape == targets.shape == shape and inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()
    print(json.dumps(startup), flush=True)
    for _ in sys.stdin:
        count, began = 0, time.process_time()
        while time.process_time() - began < ROUND:
            for _ in range(20):
                inputs, targets = next(batches)
            count += 20
        print(json.dumps(count * BATCH * block / (time.process_time() - began)), flush=True)


def start(side: str, folder: Path, block: int, core: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", side, str(folder), str(block), str(core)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, **pipes)


def answer(process: subprocess.Popen):
    """The next JSON line; peers print other things too."""
    for line in process.stdout:
        if line.startswith(("{", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")):
            return json.loads(line)
    return None


def throughput(work: Path, sides: list[str], block: int, args) -> dict[str, list[float]]:
    processes = {side: start(side, work / f"{side}-{block}", block, args.core) for side in sides}
    rates = {side: [] for side, process in processes.items() if answer(process)}
    for _ in range(args.rounds):
        for side, measured in rates.items():
            print("go", file=processes[side].stdin, flush=True)
            measured.append(answer(processes[side]))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return rates


def prepare(work: Path, side: str, args) -> None:
    """Datasets that are not there yet: small ones for warming up, both blocks, and 10 billion tokens."""
    sizes = {f"{side}-{block}": (args.tokens, block) for block in args.blocks}
    sizes |= {f"{side}-small-{block}": (2_000_000, block) for block in {*args.blocks, 1024}}
    sizes[f"{side}-startup"] = (SHARD, 1024)
    for name, (tokens, block) in sizes.items():
        if not (work / name).exists():
            shutil.rmtree(work / "unfinished", ignore_errors=True)
            SIDES[side]().write(work / "unfinished", random_tokens(tokens), block)
            if name.endswith("startup"):
                SIDES[side]().repeat(work / "unfinished")
            (work / "unfinished").rename(work / name)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cpu = f"{facts.get('model name', platform.machine())}, family {facts.get('cpu family')} model {facts.get('model')}"
    versions = []
    for name in ("torch", "numpy", "datasets", "litdata", "mosaicml-streaming"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{cpu}; load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_data"), help="the datasets are kept here")
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--blocks", type=lambda text: [int(part) for part in text.split(",")], default=[1024, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--sides", default=",".join(SIDES))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print(machine())
    sides = []
    for side in args.sides.split(","):
        try:
            if SIDES[side].package != "streaming":
                __import__(SIDES[side].package)
            prepare(args.work, side, args)
            sides.append(side)
        except ImportError as error:
            print(f"{side}: not measured ({error}); {SIDES[side].install}")
    for block in args.blocks:
        print(f"\nblock {block}, batch {BATCH}, {args.tokens:,} tokens: Mtok per CPU second; ratios of medians")
        rates = throughput(args.work, sides, block, args)
        for side in sides:
            if side not in rates:
                print(f"  {side:15} failed; run it with --child to see why")
                continue
            best, middle = max(rates[side]) / 1e6, statistics.median(rates[side]) / 1e6
            ours = {name: statistics.median(rates[name]) / 1e6 for name in rates if name.startswith("ours")}
            ratios = [f"{name} / it {rate / middle:6.1f}" for name, rate in ours.items()]
            print(f"  {side:15} best {best:7.1f}  median {middle:7.1f}   {'   '.join(ratios)}")
    print(f"\nstart-up, {STARTUP_SHARDS * SHARD:,} tokens, block 1024: CPU seconds and memory to the first batch")
    for side in sides:
        process = start(side, args.work / f"{side}-startup", 1024, args.core)
        found = answer(process)
        process.stdin.close()
        process.wait()
        print(f"  {side:15} " + (f"{found['seconds']:6.2f} s {found['bytes'] / 1e6:8.1f} MB" if found else "failed"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
