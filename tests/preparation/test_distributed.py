"""Units that ranks make elsewhere join to the bytes of `mypt prepare`, or the reason is told; any may be run again."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from mypt.errors import DataError, TokenizerError
from mypt.preparation.distributed import finish, start, write_rank
from mypt.preparation.prepare import prepare_dataset
from mypt.shards.format import read_manifest
from mypt.shards.publishing import STAGING
from tests.datasets import output

RANKS = 3


def texts(seed, count=40):
    """Documents with duplicates, also across seeds, and with all that cleaning changes or drops."""
    draw = random.Random(seed)
    words = ["to", "be", "é😀", "e\u0301", "<|endoftext|>", "\n", "the  \t\r\n", "caf\ud8e9", "\x00\x01"]
    some = [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(count)]
    shared = [f"shared document number {draw.randint(0, 9)} " * 8 for _ in range(count)]
    return [text for pair in zip(some, shared, strict=True) for text in pair] + ["", "  \n"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file for each rank, and a folder with a tokenizer."""
    root = tmp_path_factory.mktemp("corpus")
    for rank in range(RANKS):
        write_jsonl(root / f"{rank}.jsonl", texts(rank))
    prepare_dataset(root / "0.jsonl", root / "bpe", "bpe", vocab_size=290, progress=False)
    return root


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))


def by_ranks(corpus, out, order=range(RANKS), given=texts, **settings):
    start(out, corpus / "bpe", "datatrove", **settings)
    for rank in order:
        write_rank(out, rank, RANKS, given(rank))
    return finish(out)


def prepared(corpus, out, **settings):
    sources = [corpus / f"{rank}.jsonl" for rank in range(RANKS)]
    return prepare_dataset(sources, out, corpus / "bpe", progress=False, **settings)


NEAR = pytest.param({"near_dedup": 0.7}, marks=pytest.mark.skipif(not find_spec("rensa"), reason="needs rensa"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokens_per_shard": 99, "dedup": False},
        {"val_split": "tail", "tokens_per_shard": 1000},
        {"document": "line", "filter": "line"},
        {"normalize": False, "filter": False, "lowercase": True},
        NEAR,
    ],
)
def test_the_bytes_are_those_of_prepare(corpus, tmp_path, settings):
    ours, expected = by_ranks(corpus, tmp_path / "a", **settings), prepared(corpus, tmp_path / "b", **settings)
    assert output(tmp_path / "a", metadata=False) == output(tmp_path / "b", metadata=False)
    ours, expected = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    assert replace(ours, sources=[], report={}) == replace(expected, sources=[], report={})
    assert ours.report | {"tokenizer": ""} == expected.report | {"tokenizer": ""}
    (source,) = ours.sources
    for what in ("documents", "bytes", "tokens"):
        assert source[what] == sum(file[what] for file in expected.sources)
    assert not (tmp_path / "a" / STAGING).exists()


def test_a_document_in_parts_that_the_tail_cuts(tmp_path, corpus):
    rows = ["first", "word " * 500_000 + "end", "last " * 20_000]
    write_jsonl(tmp_path / "long.jsonl", rows)
    settings = {"val_split": "tail", "val_fraction": 0.2}
    start(tmp_path / "a", corpus / "bpe", "datatrove", **settings)
    write_rank(tmp_path / "a", 0, 1, rows)
    finish(tmp_path / "a")
    prepare_dataset(tmp_path / "long.jsonl", tmp_path / "b", corpus / "bpe", progress=False, **settings)
    assert output(tmp_path / "a", metadata=False) == output(tmp_path / "b", metadata=False)


def test_ranks_in_any_order_and_twice(corpus, tmp_path):
    by_ranks(corpus, tmp_path / "a")
    start(tmp_path / "b", corpus / "bpe", "datatrove")
    write_rank(tmp_path / "b", 1, RANKS, texts(7))
    by_ranks(corpus, tmp_path / "b", order=[2, 1, 0])
    assert output(tmp_path / "b") == output(tmp_path / "a")


def test_an_attempt_that_fails_leaves_what_was_there(corpus, tmp_path):
    def broken():
        yield from texts(7)
        raise RuntimeError("out of memory, say")

    start(tmp_path / "a", corpus / "bpe", "datatrove")
    for rank in range(RANKS):
        write_rank(tmp_path / "a", rank, RANKS, texts(rank))
    with pytest.raises(RuntimeError):
        write_rank(tmp_path / "a", 1, RANKS, broken())
    finish(tmp_path / "a")
    by_ranks(corpus, tmp_path / "b")
    assert output(tmp_path / "a") == output(tmp_path / "b")


def test_a_rank_without_documents(corpus, tmp_path):
    by_ranks(corpus, tmp_path / "a", given=lambda rank: [] if rank == 1 else texts(rank))
    sources = [corpus / "0.jsonl", corpus / "2.jsonl"]
    prepare_dataset(sources, tmp_path / "b", corpus / "bpe", progress=False)
    assert output(tmp_path / "a", metadata=False) == output(tmp_path / "b", metadata=False)


def test_missing_ranks_are_named(corpus, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="not being prepared by ranks; start it first"):
        finish(out)
    start(out, corpus / "bpe", "datatrove")
    with pytest.raises(DataError, match="no rank has been run"):
        finish(out)
    for rank in (0, 3, 19):
        write_rank(out, rank, 20, texts(rank))
    with pytest.raises(DataError, match=r"17 of 20 ranks are not finished: 1, 2, 4, 5, 6, 7, 8, 9, 10, 11 and 7 more;"):
        finish(out)
    write_rank(out, 0, 21, texts(0))
    with pytest.raises(DataError, match="units of 20 and 21 ranks"):
        finish(out)


def test_ranks_made_otherwise_are_named(corpus, tmp_path):
    out = tmp_path / "out"
    start(out, corpus / "bpe", "datatrove", lowercase=True)
    write_rank(out, 0, RANKS, texts(0))
    start(out, corpus / "bpe", "datatrove", tokens_per_shard=50)
    write_rank(out, 1, RANKS, texts(1))
    start(out, corpus / "bpe", "datatrove")  # how shards are cut changes no unit
    write_rank(out, 2, RANKS, texts(2))
    with pytest.raises(DataError, match="1 of 3 ranks are made with other settings or another tokenizer: 0;"):
        finish(out)
    write_rank(out, 0, RANKS, texts(0))
    finish(out)
    by_ranks(corpus, tmp_path / "expected")
    assert output(out) == output(tmp_path / "expected")


def test_a_finished_directory_is_left_alone(corpus, tmp_path):
    out = tmp_path / "out"
    by_ranks(corpus, out)
    before = output(out)
    start(out, corpus / "bpe", "datatrove")
    assert finish(out) == read_manifest(out)
    with pytest.raises(DataError, match="remove it to make it again"):
        write_rank(out, 0, RANKS, texts(0))
    with pytest.raises(DataError, match=r"another dataset \(val_fraction 0.1 -> 0.2\)"):
        start(out, corpus / "bpe", "datatrove", val_fraction=0.2)
    with pytest.raises(DataError, match="other source text"):
        start(out, corpus / "bpe", "the web")
    assert output(out) == before and not (out / STAGING).exists()
    (out / STAGING / "units").mkdir(parents=True)  # as if killed while it tidied up
    start(out, corpus / "bpe", "datatrove")
    assert finish(out) == read_manifest(out)
    assert output(out) == before and not (out / STAGING).exists()
    (out / "train" / "shard_00000.bin").unlink()
    with pytest.raises(DataError, match="is damaged, files are missing"):
        start(out, corpus / "bpe", "datatrove")


@pytest.mark.parametrize("call", [1, 3, 6])
def test_a_killed_finish_is_repeated(corpus, tmp_path, call):
    out = tmp_path / "out"
    start(out, corpus / "bpe", "datatrove", tokens_per_shard=400)
    for rank in range(RANKS):
        write_rank(out, rank, RANKS, texts(rank))
    code = f"""
import os, signal
from mypt.preparation import distributed
from mypt.shards import publishing
original, calls = os.replace, []
class System:
    def __getattr__(self, name):
        return getattr(os, name)
    def replace(self, *args):
        calls.append(args)
        if len(calls) == {call}:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*args)
publishing.os = System()
distributed.finish({str(out)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    for file in (out / STAGING / "units").glob("*.ids"):
        file.unlink()  # all is ready to be moved
    finish(out)
    by_ranks(corpus, tmp_path / "expected", tokens_per_shard=400)
    assert output(out) == output(tmp_path / "expected")


def test_what_a_killed_prepare_left_is_not_taken_for_a_rank(corpus, tmp_path):
    units = tmp_path / "out" / STAGING / "units"
    units.mkdir(parents=True)
    for name in ("00001.ids", "00001.npy", "00001.json", "tokenizer.key"):
        (units / name).write_text("{}")
    start(tmp_path / "out", corpus / "bpe", "datatrove")
    assert not list(units.glob("00001.*"))


def test_a_tail_that_the_tokenizer_cannot_give_back(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    from mypt.tokenization.load import wrap

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "to": 1, "be": 2}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    wrap(backend).save_pretrained(tmp_path / "words")
    start(tmp_path / "out", tmp_path / "words", "datatrove", val_split="tail")
    write_rank(tmp_path / "out", 0, 1, ["To be or not to be"])
    with pytest.raises(DataError, match="val begins inside document 0 of rank 0, which this tokenizer cannot"):
        finish(tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dedup": "line"}, "dedup line needs the whole text"),
        ({"max_documents": 5}, "max_documents is not for ranks: limit the reader"),
        ({"text_column": "body"}, "text_column is not for ranks"),
        ({"val_fraction": 1}, "val_fraction is 1; it must be 0"),
    ],
)
def test_settings_that_ranks_cannot_have(corpus, tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        start(tmp_path / "out", corpus / "bpe", "datatrove", **settings)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_must_be_there(tmp_path):
    with pytest.raises(TokenizerError, match="bpe is made from the whole text"):
        start(tmp_path / "out", "bpe", "datatrove")


def test_a_rank_that_runs_again_leaves_nothing_of_the_first_time(corpus, tmp_path):
    start(tmp_path / "a", corpus / "bpe", "datatrove")
    write_rank(tmp_path / "a", 0, RANKS, [f"document {number} caf\udce9 " * 5 for number in range(150)])
    for rank in range(RANKS):
        write_rank(tmp_path / "a", rank, RANKS, [f"rank {rank} document {number} " * 5 for number in range(30)])
    assert finish(tmp_path / "a").report["invalid_utf8"] == 0
