"""A subset is whole documents in their order, every one as likely, each source with its share."""

import shutil

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.preparation.subset import choose, subset_dataset
from mypt.shards.format import read_manifest
from mypt.shards.verify import verify_dataset
from tests.datasets import contents, die_at, stream, texts

TRAIN = [
    f"{source}{index} " * (1 + index % 5)
    for source, count in (("a", 70), ("b", 20), ("c", 10))
    for index in range(count)
]
VAL = [f"val {index}" for index in range(20)]
SOURCES = [
    {"name": name, "documents": train + val, "bytes": 0, "tokens": 0, "splits": {"train": train, "val": val}}
    for name, train, val in (("a.txt", 70, 14), ("b.txt", 20, 4), ("c.txt", 10, 2))
]


def subset(directory, out, **options):
    return subset_dataset(directory, out, progress=False, **options)


@pytest.mark.parametrize(("documents", "count"), [(10, 3), (1_000, 10), (7, 7), (7, 8), (1, 1), (100, 99)])
def test_chosen_ordinals_are_distinct_ascending_and_as_many_as_asked(documents, count):
    for seed in range(20):
        chosen = choose(documents, count, seed)
        assert len(chosen) == min(documents, count)
        assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < documents


@pytest.mark.parametrize(("documents", "count"), [(30, 20), (30, 7), (31, 16)])
def test_every_document_is_as_likely(documents, count):
    draws = 6_000
    times = np.bincount(np.concatenate([choose(documents, count, seed) for seed in range(draws)]), minlength=documents)
    share = count / documents
    assert np.abs(times - draws * share).max() < 5 * np.sqrt(draws * share * (1 - share))


def test_every_part_of_the_data_keeps_its_share():
    for seed in range(50):
        chosen = choose(100_000, 1_000, seed)
        for begin, end in ((0, 70_000), (70_000, 99_000), (99_000, 100_000), (99_900, 100_000)):
            assert abs(np.count_nonzero((chosen >= begin) & (chosen < end)) - (end - begin) / 100) <= 2


def test_a_seed_means_the_same_on_every_machine_and_version():
    chosen = [95, 216, 316, 400, 481, 622, 736, 842, 869, 962]
    assert choose(1_000, 10, 42).tolist() == chosen != choose(1_000, 10, 43).tolist()


@pytest.mark.parametrize("per_shard", [3, 64, 10_000])
def test_whole_documents_in_their_order(make_dataset, tmp_path, per_shard):
    directory = make_dataset(train=TRAIN, val=VAL, sources=SOURCES, per_shard=per_shard)
    manifest = subset(directory, tmp_path / "out", samples=30)
    chosen = choose(100, 30, 42)
    assert texts(tmp_path / "out", "train") == [TRAIN[index] for index in chosen]
    assert stream(tmp_path / "out", "val") == stream(directory, "val")
    assert manifest.splits["train"].documents == 30
    assert manifest.splits["train"].bytes == sum(len(TRAIN[index].encode()) for index in chosen)
    assert [source["splits"] for source in manifest.sources] == [
        {"train": sum(TRAIN[index][0] == name for index in chosen), "val": val}
        for name, val in (("a", 14), ("b", 4), ("c", 2))
    ]
    assert sum(source["tokens"] for source in manifest.sources) == sum(s.tokens for s in manifest.splits.values())
    shares = [source["splits"]["train"] for source in manifest.sources]
    assert all(abs(share - expected) <= 2 for share, expected in zip(shares, (21, 6, 3), strict=True))
    assert manifest.history[-1]["fingerprints"]["train"] == read_manifest(directory).fingerprint("train")
    assert verify_dataset(tmp_path / "out")["problems"] == []


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(make_dataset, tmp_path):
    directory = make_dataset(train=TRAIN, val=VAL)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        subset(directory, tmp_path / name, samples=30, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert stream(tmp_path / "a", "train") != stream(tmp_path / "c", "train")


def test_val_in_the_same_proportion(make_dataset, tmp_path):
    directory = make_dataset(train=TRAIN, val=VAL)
    subset(directory, tmp_path / "out", samples=30, val="proportional")
    kept = texts(tmp_path / "out", "val")
    assert len(kept) == 6 and [text for text in VAL if text in kept] == kept


def test_fraction_and_tokens(make_dataset, tmp_path):
    directory = make_dataset(train=TRAIN, val=VAL)
    assert subset(directory, tmp_path / "a", fraction=0.25).splits["train"].documents == 25
    tokens = read_manifest(directory).splits["train"].tokens
    for asked in (tokens // 10, tokens // 2):
        got = subset(directory, tmp_path / f"{asked}", tokens=asked).splits["train"].tokens
        assert asked - 3 * tokens / len(TRAIN) < got <= asked
    said = []
    assert subset(directory, tmp_path / "b", tokens=tokens, say=said.append).splits["train"].documents == 100
    assert subset(directory, tmp_path / "c", say=said.append).splits["train"].documents == 100
    assert said == [f"train has {tokens:,} tokens: all are taken", "train has 100 documents: all are taken"]


@pytest.mark.parametrize("per_shard", [5, 1_000])
def test_a_cut_document_keeps_its_open_end(make_dataset, tmp_path, per_shard):
    directory = make_dataset(train=TRAIN, val=VAL, cut=True, per_shard=per_shard)
    manifest = subset(directory, tmp_path / "out", fraction=1)
    assert stream(tmp_path / "out", "train") == stream(directory, "train")
    assert manifest.splits["train"].documents == 100
    assert verify_dataset(tmp_path / "out")["problems"] == []


def test_documents_over_several_chunks(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("mypt.shards.scan.CHUNK_TOKENS", 4)
    directory = make_dataset(train=TRAIN, val=VAL, sources=SOURCES)
    manifest = subset(directory, tmp_path / "out", samples=30)
    assert texts(tmp_path / "out", "train") == [TRAIN[index] for index in choose(100, 30, 42)]
    assert manifest.splits["train"].documents == 30
    assert sum(source["splits"]["train"] for source in manifest.sources) == 30


def test_a_directory_is_kept(make_dataset, tmp_path):
    directory, said = make_dataset(train=TRAIN, val=VAL), []
    subset(directory, tmp_path / "out", samples=30)
    before = contents(tmp_path / "out")
    subset(directory, tmp_path / "out", samples=30, say=said.append)
    assert "already holds this subset" in said[0]
    for options in ({"samples": 31}, {"samples": 30, "seed": 1}, {"samples": 30, "val": "proportional"}):
        with pytest.raises(DataError, match="already holds another dataset"):
            subset(directory, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"holds train.bin"):
        subset(directory, tmp_path / "full")


def test_killed_at_any_touch_of_a_file_the_same_call_ends_in_the_same_bytes(make_dataset, tmp_path):
    directory, out, kills = make_dataset(train=TRAIN[:9], val=VAL[:3], per_shard=100), tmp_path / "out", 0
    subset(directory, tmp_path / "expected", samples=4)
    while die_at(kills, lambda: subset(directory, out, samples=4)):
        subset(directory, out, samples=4)
        assert contents(out) == contents(tmp_path / "expected")
        shutil.rmtree(out)
        kills += 1
    assert kills > 15


def test_damage_is_not_copied(make_dataset, tmp_path):
    directory = make_dataset(train=TRAIN, val=VAL)
    shard = directory / "val" / "shard_00001.bin"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"val/shard_00001\.bin was changed"):
        subset(directory, tmp_path / "out", samples=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 3, "tokens": 4}, "samples and tokens were given"),
        ({"samples": 0}, "samples is 0; it must be 1 or more"),
        ({"fraction": 1.5}, "fraction is 1.5; it must be above 0, at most 1"),
        ({"tokens": 1}, "no document was found to fit in 1 tokens"),
        ({"val": "half"}, "val is 'half'"),
    ],
)
def test_sizes_out_of_range(make_dataset, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        subset(make_dataset(train=TRAIN, val=VAL), tmp_path / "out", **options)
