"""Datasets of given texts, with a real tokenizer, and processes that are killed at any touch of a file."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from mypt.preparation.report import REPORT_NAME
from mypt.shards.format import METADATA_NAME, Manifest, dtype_for, write_manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.writer import ShardWriter
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import largest_id, load_tokenizer, save_tokenizer, tokenizer_hash
from mypt.tokenization.train import build_char_tokenizer

ALPHABET = "".join(map(chr, range(32, 127))) + "\nüß"


@pytest.fixture
def make_dataset(tmp_path):
    """make_dataset("name", train=[texts], val=[texts]); `cut`: train ends, and val begins, inside a document."""

    def make(
        name="data", *, train, val=(), per_shard=50, dtype=None, tokenizer=None, sources=None, cut=False, settings=None
    ) -> Path:
        directory = tmp_path / name
        tokenizer = tokenizer or build_char_tokenizer(ALPHABET)
        dtype, splits = dtype or dtype_for(largest_id(tokenizer)), {}
        for split, texts in {"train": train, "val": val}.items():
            writer = ShardWriter(directory, split, dtype, per_shard)
            for index, (text, ids) in enumerate(zip(texts, encode_documents(tokenizer, list(texts)), strict=True)):
                if not (cut and split == "train" and index == len(texts) - 1):
                    ids = np.append(ids, np.uint32(tokenizer.eos_token_id))
                writer.write(ids, [len(ids)], [len(text.encode())])
            splits[split] = writer.close()
        save_tokenizer(tokenizer, directory)
        facts = {"name": f"{name}.txt", **{key: sum(getattr(s, key) for s in splits.values()) for key in
                                           ("documents", "bytes", "tokens")}}  # fmt: skip
        manifest = Manifest(
            dtype=dtype,
            vocab_size=largest_id(tokenizer) + 1,
            eos_token_id=tokenizer.eos_token_id,
            tokenizer_hash=tokenizer_hash(tokenizer),
            splits=splits,
            sources=sources or [facts],
            settings=settings or {"tokens_per_shard": per_shard},
            report={"tokenizer": "char"},
        )
        write_manifest(directory, manifest)
        return directory

    return make


def stream(directory: Path, split: str) -> list[int]:
    """The ids of a split, read as docs/shard_format.md says."""
    manifest = open_dataset(directory)
    shards = [np.fromfile(directory / shard.file, manifest.numpy_dtype) for shard in manifest.splits[split].shards]
    return np.concatenate([*shards, np.empty(0, manifest.numpy_dtype)]).tolist()


def texts(directory: Path, split: str) -> list[str]:
    """The documents of a split as text; the last one may have no end."""
    tokenizer, documents = load_tokenizer(directory), [[]]
    for id in stream(directory, split):
        if id == tokenizer.eos_token_id:
            documents.append([])
        else:
            documents[-1].append(id)
    documents = documents if documents[-1] else documents[:-1]
    return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in documents]


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def output(directory: Path, metadata: bool = True) -> dict[str, bytes]:
    """What equal preparations have equal: all but the report, which tells how long it took (and the metadata)."""
    left_out = {REPORT_NAME} if metadata else {REPORT_NAME, METADATA_NAME}
    return {name: data for name, data in contents(directory).items() if name not in left_out}


def die_at(touch: int, function, *arguments) -> bool:
    """Run function(*arguments) in a process of its own, killed (-9) when it touches the file system for the
    `touch`-th time to change it. Returns whether it was killed; a failure of the function fails the test."""
    child = os.fork()
    if child == 0:
        left = touch

        def count(event: str, details: tuple) -> None:
            nonlocal left
            writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.utime"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            function(*arguments)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
