"""Shared pieces: small datasets by the package's own writer, and a world in which documented commands run."""

import argparse
import contextlib
import ctypes
import gc
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RUST_BACKTRACE"] = "0"  # of the panics that tests provoke; finding its symbols takes a second each

import numpy as np
import pytest

from tests.datasets import make_dataset  # noqa: F401
from tests.hub import hub, logged_in  # noqa: F401
from tests.processes import Command, launch, leave_out_pictures
from tests.runs import (  # noqa: F401
    adapted_models,
    corpora,
    finished_run,
    made_once,
    recipe_for,
    rewind,
    run_copy,
    tiny_recipe,
    untrained_models,
    weights,
    whole_copy,
    whole_run,
)
from tests.stores import az, az_server, azure_account, bucket, gs, gs_server, s3, s3_server, s3_wire  # noqa: F401
from tests.studies import postgresql, sweep_recipe  # noqa: F401

# A shell's background job begins with Ctrl-C ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest, in the order they begin: no worker is left with one when the others have ended. Those that
# fork this process often come first, while it is small.
LONG = (
    "test_docs.py",
    "test_jit_stream.py",
    "test_prepare.py",
    "test_kill.py",
    "test_streaming.py",
    "test_compiled.py",
    "test_objects.py",
    "test_lora.py",
    "test_run.py",
    "test_stream.py",
    "test_datasets.py",
    "test_attention.py",
    "test_faults.py",
    "test_gguf.py",
    "test_page.py",
    "test_distributed.py",
    "test_fast_decoder.py",
    "test_export.py",
    "test_auto.py",
    "test_hub.py",
    "test_init_from.py",
    "test_onnx.py",
    "test_fast.py",
    "test_memory.py",
    "test_dedup.py",
    "test_original_checkpoint.py",
    "test_shard_stream.py",
    "test_engine.py",
    "test_schedules.py",
    "test_damage.py",
    "test_recipes.py",
    "test_data_tokenizer.py",
    "test_signals.py",
    "test_agreement.py",
    "test_demo.py",
    "test_guard.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


_frozen = {"modules": 0}


def pytest_collection_finish():
    freeze()


def pytest_runtest_setup():
    if len(sys.modules) > _frozen["modules"] + 100:  # which the last test imported
        freeze()


def freeze() -> None:
    """Keep what was imported out of every garbage collection to come: training collects at each of its ends."""
    gc.collect()
    gc.freeze()
    if "PYTEST_XDIST_WORKER" in os.environ:  # of few tests it would be the longest
        use_huge_pages()
    _frozen["modules"] = len(sys.modules)


def use_huge_pages() -> None:
    """Put this process's memory into huge pages, where Linux can: a fork then copies a third of the page tables.

    Many hundred processes are forked from this one, by DataLoaders, by workers and by tests that kill them.
    """
    maps, size, collapse = Path("/proc/self/maps"), 2**21, 25  # MADV_COLLAPSE, since Linux 6.1
    if not maps.exists():
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in maps.read_text().splitlines():
        area, access, _, _, inode, *name = line.split()
        if access.startswith("rw-p") and inode == "0" and name in ([], ["[heap]"]):
            first, last = (int(end, 16) for end in area.split("-"))
            first, last = -(-first // size) * size, last // size * size
            if first < last:
                advise(first, last - first, collapse)  # what it refuses stays as it is


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """Every export measures bits per byte and speed, here on little."""
    for name, value in {"MEASURED": 64, "DECODED": 4, "REPEATS": 1}.items():
        monkeypatch.setattr(f"mypt.conversion.parity.{name}", value)


@pytest.fixture
def make_shards(tmp_path):
    """Write token arrays as a dataset directory: make_shards("name", train=ids, val=ids, per_shard=1000)."""
    from mypt.shards.format import Manifest, Split, write_manifest
    from mypt.shards.writer import ShardWriter

    def make(name="data", *, train, val=None, per_shard=1_000, dtype="uint16", vocab_size=None, eos=0) -> Path:
        directory = tmp_path / name
        splits = {}
        for split, ids in {"train": train, "val": val}.items():
            writer = ShardWriter(directory, split, dtype, tokens_per_shard=per_shard)
            if ids is not None:
                writer.write(np.asarray(ids), [len(ids)], [3 * len(ids)])
            splits[split] = writer.close() if ids is not None else Split()
        largest = max(int(np.max(ids)) for ids in (train, val) if ids is not None)
        manifest = Manifest(
            dtype=dtype,
            vocab_size=vocab_size or largest + 1,
            eos_token_id=eos,
            tokenizer_hash="0" * 32,
            splits=splits,
        )
        write_manifest(directory, manifest)
        return directory

    return make


ROOT = Path(__file__).parents[1]

# What every documented run is cut to: the same code in a second or two.
SHORT = (
    "--training.eval_steps=1", "--training.save_steps=2", "--training.per_device_train_batch_size=2",
    "--training.gradient_accumulation_steps=1", "--training.bf16=false", "--data.block_size=32",
    "--data.tokens_per_step=", "--forgetting.eval_windows=4", "--yes",
)  # fmt: skip
TINY = (
    "--model.num_hidden_layers=1", "--model.hidden_size=32", "--model.num_attention_heads=2",
    "--model.num_key_value_heads=1", "--model.head_dim=16", "--model.intermediate_size=64",
)  # fmt: skip


@pytest.fixture(scope="session")
def quickstart_world(tmp_path_factory) -> Path:
    """What a reader has after the quickstart, made by its commands on little text: recipes, scripts, data, runs.

    Curves are a half of a tiny run, and are not drawn.
    """
    return made_once(tmp_path_factory, "world", make_world)


def make_world(root: Path) -> None:
    for name in ("recipes", "scripts", "docs"):
        (root / name).symlink_to(ROOT / name)
    text = root / "data" / "quickstart" / "text"
    text.mkdir(parents=True)
    documents = {"general": [topic[:2_000] for _, topic in sorted(topics.items())], "domain": _functions(argparse)}
    for name, group in documents.items():
        (text / f"{name}.jsonl").write_text("".join(json.dumps({"text": item}) + "\n" for item in group[:80]))
    (root / "input.txt").write_text("\n\n".join(documents["general"][:40]), encoding="utf-8")
    run = CommandRunner()
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        for command in (
            "mypt prepare --source data/quickstart/text/general.jsonl --out data/quickstart/general --vocab-size 320",
            "mypt prepare --source data/quickstart/text/domain.jsonl --out data/quickstart/domain"
            " --tokenizer data/quickstart/general",
            "mypt prepare --source input.txt --out data/corpus --tokenizer data/quickstart/general --val-split tail",
            "mypt train recipes/quickstart_general.yaml",
            "mypt train recipes/quickstart_domain.yaml",
            "mypt train recipes/quickstart_domain.yaml --training.output_dir=runs/quickstart/replay"
            " '--data.train={data/quickstart/domain: 0.9, data/quickstart/general: 0.1}'",
            "mypt train recipes/pretrain.yaml --training.output_dir=runs/first --tokenizer.vocab_size=320",
        ):
            run(command)


def _functions(module) -> list[str]:
    """The source of every class and function of a module."""
    own = [item for item in vars(module).values() if getattr(item, "__module__", "") == module.__name__]
    return [inspect.getsource(item) for item in own]


@pytest.fixture
def run_command(quickstart_world, tmp_path, monkeypatch):
    """run_command("mypt plan modern-nano") in a copy of the quickstart's world; it fails unless the exit code is 0."""
    shutil.copytree(quickstart_world, tmp_path / "world", symlinks=True)
    monkeypatch.chdir(tmp_path / "world")
    leave_out_pictures(monkeypatch)
    return CommandRunner()


class CommandRunner:
    """Runs documented commands in the current folder: `mypt` in this process, others in one of their own.

    Training is cut short; each time it is resumed it takes two steps more. A run that the world came with makes
    room for the page's own, while a page that starts one run twice is refused like any reader.
    """

    def __init__(self):
        self.started: set[str] = set()

    def __call__(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if words[0] == "mypt":
            code = self._mypt(words[1:])
        elif words[:2] == ["accelerate", "launch"]:
            script = next(index for index, word in enumerate(words) if word.endswith("train.py"))
            options, arguments = words[2:script], self._short(words[script + 1 :])
            if len(options) == 2 and options[0] == "--config_file":
                print(launch(Path(options[1]).absolute(), *arguments))
                code = 0
            else:
                launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
                done = subprocess.run(
                    [*launcher, *options, words[script], *arguments],
                    capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
                )  # fmt: skip
                print(done.stdout, done.stderr)
                code = done.returncode
        elif words[0] == "python":
            if words[1] == "scripts/train.py":
                words[2:] = self._short(words[2:])
            process = Command(words[2:], script=Path(words[1]).absolute())
            code = process.wait()
            print(process.output())
        else:
            pytest.fail(f"`{line}` is a kind of command that this test does not know")
        assert code == 0, f"`{line}` ended with exit code {code}"

    def _mypt(self, words: list[str]) -> int:
        from mypt.cli.main import main

        if words[0] == "train":
            words[1:] = self._short(words[1:])
        elif words[0] == "generate":
            words += ["--max-new-tokens", "4"]
        elif words[0] == "sweep" and "--dry-run" not in words:
            words += ["--dry-run"]
        try:
            return main(words)
        except SystemExit as stop:  # argparse
            return stop.code

    def _short(self, words: list[str]) -> list[str]:
        """The arguments of `mypt train` for a tiny model and two more steps than its run folder has."""
        from mypt.recipe import load_recipe

        target, *options = words
        recipe = load_recipe(target, [option for option in options if "." in option.partition("=")[0]])
        run = Path(recipe.training["output_dir"])
        if "--resume" not in options and str(run) not in self.started:
            shutil.rmtree(run, ignore_errors=True)
        self.started.add(str(run))
        steps = 2 + max((int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*")), default=0)
        sizes = () if recipe.model.init_from or Path(target).is_dir() else TINY
        return [target, *options, *sizes, *SHORT, f"--training.max_steps={steps}"]
