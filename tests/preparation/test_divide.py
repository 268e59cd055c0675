"""Val has the share of the tokens that was asked for, and every source is on both sides, with large documents too."""

import json
import random

import numpy as np
import pytest

from mypt.preparation.assignment import Share, groups_to_cut
from mypt.preparation.prepare import append_text, prepare_dataset
from mypt.streams.document_reader import is_held_out
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.train import build_char_tokenizer
from tests.datasets import output, texts

WORDS = "abcdefghijklmnopqrstuvwxyz "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_char_tokenizer(WORDS + "\n"), folder)
    return folder


def text(size, seed):
    return "".join(random.Random(seed).choices(WORDS, k=size)).strip().ljust(size, "x")


def records(path, rows):
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def shares(manifest):
    """Val's share of the tokens, and the documents of each source on each side."""
    val, train = (manifest.splits[name].tokens for name in ("val", "train"))
    return val / (val + train), [tuple(source["splits"].values()) for source in manifest.sources]


def test_groups_to_cut_by_hand():
    good, bad, worse = Share(100_000, 100_000, 11_000), Share(50_000, 50_000, 20_000), Share(50_000, 50_000, 0)
    assert groups_to_cut({"good": good}, set(), 0.1) == []
    assert groups_to_cut({"good": good, "bad": bad}, set(), 0.1) == ["bad"]  # 31,000 of 150,000; then 1,000 too many
    assert groups_to_cut({"good": good, "bad": bad, "worse": worse}, {"worse"}, 0.1) == ["worse", "bad"]
    assert groups_to_cut({"bad": bad}, set(), 0.1, present=1_000_000) == []  # 15,000 too many of 1,050,000
    assert groups_to_cut({"a": Share(900, 900, 0)}, set(), 0.1) == ["a"]  # val may not be empty
    assert groups_to_cut({"a": Share(900, 900, 0)}, set(), 0.1, present=9) == []  # within a block
    assert groups_to_cut({"a": Share(1_100, 1_100, 500)}, set(), 0.1) == []
    assert groups_to_cut({"a": Share(2_000, 500, 400)}, set(), 0.1) == ["a"]  # a block is 250 tokens there


def test_three_files_of_unequal_size(tmp_path, tokenizer):
    """0.09, 0.045 and 0.11 MB, of which the last has many documents: by hash whole files are on one side."""
    (tmp_path / "a.txt").write_text(text(90_000, 1))
    (tmp_path / "b.txt").write_text(text(45_000, 2))
    records(tmp_path / "c.jsonl", [text(500, seed) for seed in range(220)])
    sources = [tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl")]
    manifest = prepare_dataset(sources, tmp_path / "out", tokenizer, progress=False)
    share, sides = shares(manifest)
    assert share == pytest.approx(0.1, abs=0.02)
    assert sides[:2] == [(1, 1), (1, 1)] and sum(sides[2]) == 220 and min(sides[2]) > 5
    train, val = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "val")
    assert train[0] + val[0] == text(90_000, 1) and len(val[0]) == 9_000
    assert train[1] + val[1] == text(45_000, 2) and len(val[1]) == 4_500
    assert not set(train) & set(val) and manifest.report["contaminated"] == 0
    assert manifest.report["val"]["tail_of"] == list(map(str, sources[:2])) and len(manifest.report["val"]["cut"]) == 2
    assert any("val is the last 0.1 of the tokens of 2 of 3 sources" in note for note in manifest.report["notes"])


@pytest.mark.parametrize("workers", [1, 2])
def test_of_few_documents_each_file_gives_its_tail(tmp_path, tokenizer, workers):
    """Also where one glob names them: the tail of the whole would be of the last file alone."""
    sizes = {"a.txt": 9_000, "b.txt": 4_500, "c.txt": 11_000}
    for seed, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).write_text(text(size, seed))
    manifest = prepare_dataset(f"{tmp_path}/*.txt", tmp_path / "out", tokenizer, workers=workers, progress=False)
    assert shares(manifest)[0] == pytest.approx(0.1, abs=0.002)
    train, val = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "val")
    for seed, (before, behind) in enumerate(zip(train, val, strict=True)):
        assert before + behind == text(list(sizes.values())[seed], seed)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("count", [2, 19, 25, 60])
def test_the_share_holds_for_few_unequal_documents(tmp_path, tokenizer, count, fraction):
    draw = random.Random(count)
    for source in "ab":
        rows = [text(int(4 ** draw.uniform(4, 8)), draw.random()) for _ in range(count)]
        records(tmp_path / f"{source}.jsonl", rows)
    manifest = prepare_dataset([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"], tmp_path / "out", tokenizer,
                               val_fraction=fraction, progress=False)  # fmt: skip
    share, sides = shares(manifest)
    block = 1_000 / sum(split.tokens for split in manifest.splits.values())
    assert abs(share - fraction) <= max(min(0.03, 0.3 * fraction), block) and np.min(sides) > 0
    assert manifest.report["contaminated"] == 0


def test_a_split_by_hash_that_is_good_stays_as_it_is(tmp_path, tokenizer):
    records(tmp_path / "a.jsonl", [text(300, seed) for seed in range(400)])
    (tmp_path / "short.txt").write_text(text(900, 0))
    sources = [tmp_path / "a.jsonl", tmp_path / "short.txt"]
    manifest = prepare_dataset(sources, tmp_path / "out", tokenizer, progress=False)
    alone = prepare_dataset(sources, tmp_path / "alone", tokenizer, progress=False, hash_only=True)
    assert manifest.splits == alone.splits and "val" not in manifest.report
    assert output(tmp_path / "out") == output(tmp_path / "alone")
    (note,) = [note for note in manifest.report["notes"] if "only" in note]
    assert note == f"in train only: 1 of 2 sources, too short to divide ({tmp_path}/short.txt)"


def test_copies_stay_on_one_side(tmp_path, tokenizer):
    long = text(40_000, 1)
    records(tmp_path / "a.jsonl", [long, *(text(3_000, seed) for seed in range(20)), text(3_000, 3), text(3_000, 4)])
    records(tmp_path / "b.jsonl", [text(2_000, 9), text(3_000, 3), text(3_000, 5), long])
    sources = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for fraction in (0.1, 0.3, 0.7):
        out = tmp_path / f"{fraction}"
        manifest = prepare_dataset(sources, out, tokenizer, dedup=False, val_fraction=fraction, progress=False)
        train, val = texts(out, "train"), texts(out, "val")
        assert manifest.report["contaminated"] == 0 and not set(train) & set(val)
        assert train.count(long) + val.count(long) == 2


def test_appended_text_is_divided_too_and_what_was_cut_is_known(tmp_path, tokenizer):
    out, first, more = tmp_path / "out", text(60_000, 1), text(30_000, 2)
    (tmp_path / "a.txt").write_text(first)
    (tmp_path / "b.txt").write_text(text(20_000, 3))
    manifest = prepare_dataset([tmp_path / "a.txt", tmp_path / "b.txt"], out, tokenizer, progress=False)
    assert shares(manifest)[1] == [(1, 1), (1, 1)]
    before = {split: texts(out, split) for split in ("train", "val")}
    manifest = append_text(out, [records(tmp_path / "c.jsonl", [first, more])], progress=False)
    assert shares(manifest)[0] == pytest.approx(0.1, abs=0.01)
    after = {split: texts(out, split) for split in ("train", "val")}
    assert after["train"] == [*before["train"], more[:27_000]] and after["val"] == [*before["val"], more[27_000:]]
    assert append_text(out, [records(tmp_path / "d.jsonl", [more])], progress=False) == manifest


def test_by_hash_alone_val_is_what_a_stream_leaves_out(tmp_path, tokenizer):
    rows = [text(4 ** (seed % 8), seed) for seed in range(120)]
    source = records(tmp_path / "a.jsonl", rows)
    manifest = prepare_dataset(source, tmp_path / "out", tokenizer, hash_only=True, dedup=False, progress=False)
    assert texts(tmp_path / "out", "val") == [row.rstrip() for row in rows if is_held_out(row.rstrip(), 0.1)]
    assert "val" not in manifest.report
