"""Shared pieces: small real datasets, written by the package's own writer."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest


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
                writer.write(np.asarray(ids), text_bytes=3 * len(ids))
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
