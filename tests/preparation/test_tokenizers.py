"""Tokenizers of every family through prepare and verify: an EOS behind each document and nowhere else."""

import itertools
import json
import warnings

import numpy as np
import pytest
import torch

from mypt.cli.main import main
from mypt.preparation.prepare import append_text, prepare_dataset
from mypt.shards.verify import verify_dataset
from mypt.streams.jit_stream import JitStream
from mypt.text import plain, sources
from mypt.tokenization import encode, fast, long_text
from mypt.tokenization.load import load_tokenizer
from mypt.tokenization.long_text import plain_text
from tests.tokenization.families import llama, unigram, wordlevel

DOCUMENTS = [f"the cat{number} sat </s> on the <s> mat\nthe end" for number in range(30)]


def written(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def stored(directory, manifest):
    """The ids of each document, EOS left out."""
    files = [directory / shard.file for split in manifest.splits.values() for shard in split.shards]
    ids = np.concatenate([np.fromfile(file, manifest.numpy_dtype) for file in files])
    assert ids[-1] == manifest.eos_token_id
    return [part[:-1] for part in np.split(ids, np.flatnonzero(ids == manifest.eos_token_id) + 1)[:-1]]


@pytest.mark.parametrize(("make", "dropped"), [(unigram, 0), (wordlevel, 60)])
def test_eos_stands_only_between_documents(make, dropped, tmp_path, capsys):
    make().save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out"
    manifest = prepare_dataset(written(tmp_path / "a.jsonl", DOCUMENTS), out, tmp_path / "tokenizer", val_fraction=0.3)
    assert len(stored(out, manifest)) == 30
    assert manifest.report.get("dropped_ids", 0) == dropped
    assert manifest.report["loss"]["lost"] > 0 and "this tokenizer loses" in capsys.readouterr().err
    manifest = append_text(out, written(tmp_path / "b.jsonl", [f"{text} more" for text in DOCUMENTS]))
    assert len(stored(out, manifest)) == 60
    assert manifest.history[-1]["report"].get("dropped_ids", 0) == dropped
    assert main(["verify", str(out)]) == 0 and not verify_dataset(out)["problems"]
    stream = JitStream(tmp_path / "a.jsonl", load_tokenizer(out), block_size=8, seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ids = torch.cat([batch["input_ids"].flatten() for batch in itertools.islice(stream, 60)])
    assert any("were dropped" in str(warning.message) for warning in said) == bool(dropped)
    longest = max(map(len, stored(out, manifest)))
    ends = torch.nonzero(ids == manifest.eos_token_id).flatten()
    first = {tuple(part) for part in map(np.ndarray.tolist, stored(out, manifest))}
    between = [tuple(ids[a + 1 : b].tolist()) for a, b in itertools.pairwise(ends.tolist())]
    assert len(between) > 10 and set(between) <= first and len(max(between, key=len)) <= longest


def test_a_long_document_has_the_ids_of_the_whole(tmp_path, monkeypatch):
    for module, name, value in ((plain, "LONGEST", 900), (sources, "LONGEST", 900), (long_text, "WINDOW", 500)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(long_text, "OVERLAPS", (80, 200))
    monkeypatch.setattr(encode, "LONG", 1_000)
    monkeypatch.setattr(fast, "LONG", 1_000)
    llama().save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    documents = ["the cat " * 900, "short", "xthecat" * 700, "x" * 5_000 + "\n" + "the cat\n" * 300]
    file, out = written(tmp_path / "a.jsonl", documents), tmp_path / "out"
    manifest = prepare_dataset(file, out, tmp_path / "tokenizer", normalize=False, val_fraction=0)
    with plain_text(tokenizer.backend_tokenizer):
        expected = [tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in documents]
    assert [part.tolist() for part in stored(out, manifest)] == expected
    assert manifest.splits["train"].bytes == sum(map(len, documents)) and "loss" not in manifest.report
    # Cut in two by the tail split, each half has the ids of its own text.
    manifest = prepare_dataset(file, tmp_path / "cut", tmp_path / "tokenizer", val_fraction=0.5, val_split="tail")
    text = "".join(documents)
    assert sum(split.bytes for split in manifest.splits.values()) == len(text)
    train = np.fromfile(tmp_path / "cut/train/shard_00000.bin", manifest.numpy_dtype)
    whole = train[np.flatnonzero(train == manifest.eos_token_id)[-1] + 1 :]
    half = text[len("".join(documents[:2])) : int(len(text) * 0.5)]
    with plain_text(tokenizer.backend_tokenizer):
        assert whole.tolist() == tokenizer.backend_tokenizer.encode(half, add_special_tokens=False).ids
