"""Records that cannot be read are skipped and listed on request; invalid bytes are counted where they stay."""

import gzip
import json
from functools import partial

import numpy as np
import pytest

from mypt.errors import DataError
from mypt.preparation.prepare import append_text, prepare_dataset
from mypt.preparation.report import REPORT_NAME, SKIPPED_NAME
from mypt.shards.publishing import STAGING
from mypt.text.opening import conversion, guess_encoding
from tests.datasets import die_at, output, texts


def prepare(sources, out, **options):
    return prepare_dataset(sources, out, "char", progress=False, **options)


def skipped(out):
    return [json.loads(line) for line in (out / SKIPPED_NAME).read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def folder(tmp_path):
    """Three files with a few bad records, and one that is binary."""
    for number in range(3):
        rows = [json.dumps({"text": f"record {number} {row} of a file " * 3}) for row in range(40)]
        rows[10 + number] = '{"text": "cut\u2028 off'
        rows[20] = json.dumps({"text": number})
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "3.txt").write_bytes(b"\x7fELF\x02\x01" + bytes(50))
    return tmp_path


def test_the_first_bad_record_stops_and_says_how_to_go_on(folder):
    with pytest.raises(DataError, match=r"3\.txt is an ELF program, not text.*--on-error skip"):
        prepare(f"{folder}/*.*", folder / "out")
    with pytest.raises(DataError, match=r"0\.jsonl:11: broken JSON.*--on-error skip"):
        prepare(f"{folder}/*.jsonl", folder / "out")
    assert not (folder / "out" / SKIPPED_NAME).exists()


@pytest.mark.parametrize("options", [{}, {"dedup": "line"}, {"max_documents": 100}])
def test_skipped_records_are_counted_and_listed_in_order(folder, options):
    sources = [f"{folder}/{number}.*" for number in range(4)]
    manifest = prepare(sources, folder / "out", on_error="skip", **options)
    assert manifest.report["skipped"] == {"broken_json": 3, "not_a_text": 3} | (
        {} if "max_documents" in options else {"unreadable": 1}
    )
    found = skipped(folder / "out")
    places = [(entry["path"][-7:], entry["place"], entry["reason"]) for entry in found]
    expected = [(f"{number}.jsonl", f"line {line}", reason) for number in range(3)
                for line, reason in ((11 + number, "broken_json"), (21, "not_a_text"))]  # fmt: skip
    assert places[:6] == expected and len(places) == 7 - ("max_documents" in options)
    assert found[0]["beginning"] == '{"text": "cut\u2028 off' and "Unterminated string" in found[0]["detail"]
    assert manifest.report["documents_read"] == (100 if "max_documents" in options else 114)
    if not options:
        prepare(sources[:3], folder / "three", on_error="skip")
        with pytest.raises(DataError, match=r"was prepared with --on-error skip, and 6 records or files were skipped"):
            prepare(sources[:3], folder / "three")
        assert prepare(sources, folder / "out", on_error="skip").splits == manifest.splits
        again = prepare(sources[:1], folder / "out2", on_error="skip")
        appended = append_text(folder / "out2", sources[1:], on_error="skip", progress=False)
        assert skipped(folder / "out2") == found
        assert appended.history[-1]["report"]["skipped"] == {"broken_json": 2, "not_a_text": 2, "unreadable": 1}
        assert again.report["skipped"] == {"broken_json": 1, "not_a_text": 1}


def test_skipping_nothing_changes_nothing(folder):
    rows = "".join(json.dumps({"text": f"record {row}"}) + "\n" for row in range(30))
    (folder / "good.jsonl").write_text(rows)
    prepare(folder / "good.jsonl", folder / "stop")
    prepare(folder / "good.jsonl", folder / "skip", on_error="skip")
    assert output(folder / "stop") == output(folder / "skip") and not (folder / "skip" / SKIPPED_NAME).exists()
    assert prepare(folder / "good.jsonl", folder / "stop", on_error="skip").report["documents"] == 30


def test_killed_anywhere_the_list_is_that_of_an_unbroken_call(folder):
    sources = [f"{folder}/{number}.*" for number in range(4)]
    run = partial(prepare, sources, on_error="skip")
    run(folder / "whole")
    expected, touch = output(folder / "whole"), 9
    while die_at(touch, run, folder / f"out{touch}"):
        run(folder / f"out{touch}")
        assert output(folder / f"out{touch}") == expected, touch
        touch += 17
    assert touch > 40


def test_the_list_of_a_killed_call_is_not_that_of_a_clean_one(folder):
    (folder / "out" / STAGING).mkdir(parents=True)
    (folder / "out" / STAGING / SKIPPED_NAME).write_text("{}\n")  # killed before it was published, and then repaired
    (folder / "good.jsonl").write_text("".join(json.dumps({"text": f"record {row}"}) + "\n" for row in range(30)))
    prepare(folder / "good.jsonl", folder / "out")
    assert not (folder / "out" / SKIPPED_NAME).exists()


def test_invalid_bytes_count_where_they_are_kept(tmp_path):
    latin = "Ein Text in einer anderen Kodierung: Grüße aus Köln, und die Größe der Städte. "
    lines = [f"{latin}{number}" for number in range(3)]
    (tmp_path / "a.txt").write_bytes("\n".join(lines).encode("latin-1"))
    (tmp_path / "b.txt").write_text("clean text\n" * 9)
    (tmp_path / "c.txt").write_bytes(b"fine and well \xff\n" * 2)
    (tmp_path / "copy.txt").write_bytes("\n".join(lines).encode("latin-1"))  # a duplicate
    (tmp_path / "dropped.txt").write_bytes(b"\xfe\xfd\xfc\xfb")  # no text
    count = sum(c in "üßöä" for c in "".join(lines))
    for options, expected in [
        ({}, count + 2),
        ({"dedup": False}, 2 * count + 2),
        ({"dedup": "line"}, count + 1),
        ({"max_documents": 2}, count),
        ({"filter": "line", "document": "line"}, count + 1),
    ]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        manifest = prepare(f"{tmp_path}/*.txt", out, val_fraction=0, **options)
        assert manifest.report["invalid_utf8"] == expected, options
        assert expected == "".join(texts(out, "train")).count("\ufffd")
        files = json.loads((out / REPORT_NAME).read_text())["invalid_utf8_files"]
        assert files[0]["file"] == f"{tmp_path}/a.txt" and "iconv -f" in files[0]["convert"]
        if not options.keys() & {"max_documents", "filter"}:
            (entry,) = [entry for entry in files if entry["file"].endswith("dropped.txt")]
            assert (entry["bytes"], entry["dropped"]) == (0, 4)
        assert sum(entry["bytes"] for entry in files) == expected


def test_the_guess_and_the_command_that_converts(tmp_path):
    prose = {
        "cp1251": "Привет, мир. Это обычный русский текст, в котором есть разные слова и знаки препинания. ",
        "shift_jis": "これは日本語の文章です。今日はとても良い天気なので、公園を散歩しました。",
    }
    for encoding, text in prose.items():
        path = tmp_path / f"a b {encoding}.txt"
        path.write_bytes(b"plain ascii\n" * 9_000 + (text * 20).encode(encoding))
        guess = guess_encoding(str(path))
        assert (text * 20).encode(encoding).decode(guess) == text * 20
        assert conversion(str(path), guess) == f"iconv -f {guess} -t UTF-8 '{path}' > '{path.with_suffix('')}.utf8.txt'"
    (tmp_path / "c.txt").write_bytes("größer ".encode() * 99 + b"\xff")
    assert guess_encoding(str(tmp_path / "c.txt")) is None  # damaged UTF-8
    packed = tmp_path / "d.jsonl.gz"
    packed.write_bytes(gzip.compress((prose["cp1251"] * 9).encode("cp1251")))
    assert (
        conversion(str(packed), "CP1251") == f"gzip -dc {packed} | iconv -f CP1251 -t UTF-8 > {tmp_path}/d.utf8.jsonl"
    )


def test_random_bytes_are_not_bad_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(np.random.default_rng(0).bytes(3_000))
    with pytest.raises(DataError, match="is binary"):
        prepare(tmp_path / "a.txt", tmp_path / "out")
