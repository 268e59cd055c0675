"""Sources to units to documents: the same documents in the same order, whatever the format and the unit size."""

import gzip
import json
import os
import pickle
import random
from dataclasses import asdict
from itertools import pairwise

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mypt.errors import DataError
from mypt.text import find_files, plain, sources
from mypt.text.sources import Unit, digest, find_units, read_documents, stamp

TEXTS = ["first", "zwei\nZeilen, und", "", "drei 😀\r\n", 'en"de']


def read(*paths, **choices):
    units = find_units(paths, **choices)
    return [document.text for unit in units for document in read_documents(unit)]


def write(path, texts):
    """The texts as a file of the kind that its name says."""
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"n": range(len(texts)), "text": texts}), path, row_group_size=2)
    elif kind.startswith("jsonl"):
        data = "\n".join(json.dumps({"n": n, "text": text}) for n, text in enumerate(texts)).encode()
        path.write_bytes(compress(path, data))
    elif kind.startswith("csv"):
        rows = "".join('{},"{}"\r\n'.format(n, text.replace('"', '""')) for n, text in enumerate(texts))
        path.write_bytes(compress(path, f"n,text\r\n{rows}".encode()))
    else:
        path.write_bytes(compress(path, "\n\n".join(texts).encode()))
    return path


def compress(path, data):
    if path.suffix == ".zst":
        return pytest.importorskip("zstandard").compress(data)
    return gzip.compress(data) if path.suffix == ".gz" else data


RECORDS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz", "a.csv.zst", "a.parquet"]


@pytest.mark.parametrize("name", RECORDS)
def test_records_give_their_texts_in_order(tmp_path, name):
    assert read(write(tmp_path / name, TEXTS)) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "noname", "a.txt.gz", "a.md.zst"])
def test_text_is_a_document_or_cut_into_some(tmp_path, name):
    path = write(tmp_path / name, ["one\ntwo", "three"])
    assert read(path) == ["one\ntwo\n\nthree"]
    assert read(path, document="block") == ["one\ntwo", "three"]
    assert read(path, document="line") == ["one", "two", "", "three"]


def test_a_record_is_cut_when_asked(tmp_path):
    path = write(tmp_path / "a.jsonl", ["one\n\ntwo\nthree"])
    assert read(path, document="block") == ["one", "two\nthree"]
    assert read(path, document="line") == ["one", "", "two", "three"]


def test_a_long_record_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "LONGEST", 10)
    monkeypatch.setattr(sources, "LONGEST", 10)
    (unit,) = find_units(
        [write(tmp_path / "a.jsonl", ["short", "a long text of words", "another text that is too long"])]
    )
    assert [(document.text, document.ended) for document in read_documents(unit)] == [
        ("short", True),
        ("a long text of words", True),
        ("another text", False),
        (" that is too long", True),
    ]


def test_a_dataset_directory(tmp_path):
    rows = datasets.Dataset.from_dict({"n": range(5), "text": TEXTS})
    rows.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([3, 1])}).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "one") == read(tmp_path / "two") == read(f"{tmp_path}/two#train") == TEXTS
    assert read(f"{tmp_path}/two#test") == [TEXTS[3], TEXTS[1]]
    with pytest.raises(DataError, match="no split 'dev'; add one of: #train, #test"):
        find_units([f"{tmp_path}/two#dev"])
    with pytest.raises(DataError, match="without splits"):
        find_units([f"{tmp_path}/one#test"])
    with pytest.raises(DataError, match=r"no column 'body'; .*: n, text"):
        find_units([tmp_path / "one"], text_column="body")
    (tmp_path / "two" / "train" / "state.json").unlink()
    with pytest.raises(DataError, match=r"two.train is not a whole dataset directory"):
        find_units([tmp_path / "two"])


def random_file(path, seed):
    draw = random.Random(seed)
    texts = [
        "".join(draw.choices(["word ", "\n", "\n\n", "\r\n", "é", " \n"], k=draw.randrange(30))) for _ in range(40)
    ]
    if path.suffix == ".txt":
        return write(path, texts)
    if path.suffix:
        return write(path, [text.replace("\r\n", "\n") for text in texts] if path.suffix == ".csv" else texts)
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("document", ["file", "block", "line"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.csv", "rows"])
def test_documents_do_not_depend_on_the_size_of_a_unit(tmp_path, name, document, monkeypatch):
    path = random_file(tmp_path / name, seed=7)
    whole = read(path, document=document)
    monkeypatch.setattr(sources, "BUNDLE_BYTES", 0)
    counts = []
    for size in (10, 50, 1000):
        monkeypatch.setattr(find_files, "UNIT_BYTES", size)
        monkeypatch.setattr(sources, "UNIT_BYTES", size)
        units = find_units([path], document=document)
        counts.append(len(units))
        assert [item.text for unit in units for item in read_documents(unit)] == whole
        assert all(unit.stop == after.start for unit, after in pairwise(units))
    if name != "a.csv" and (name, document) != ("a.txt", "file"):
        assert counts[0] > counts[2] > 1
    else:
        assert counts == [1, 1, 1]


def test_small_neighbours_of_a_kind_are_one_unit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLE_BYTES", 30)
    for name, size in {"a.txt": 10, "b.txt": 20, "c.txt": 1, "d.jsonl": 0, "e.md": 5, "f.txt": 40, "g.txt": 1}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    units = find_units([f"{tmp_path}/*", tmp_path / "a.txt"])
    names = [[path.removeprefix(f"{tmp_path}/") for path in unit.paths] for unit in units]
    assert all(len(paths) == 1 for paths in names), "few files are units of their own"
    monkeypatch.setattr(sources, "FEWEST_FOR_HASH", 7)
    units = find_units([f"{tmp_path}/*", tmp_path / "a.txt"])
    names = [[path.removeprefix(f"{tmp_path}/") for path in unit.paths] for unit in units]
    assert names == [["a.txt", "b.txt"], ["c.txt"], ["d.jsonl"], ["e.md"], ["f.txt"], ["g.txt"], ["a.txt"]]
    assert [unit.kind for unit in units] == ["text", "text", "jsonl", "text", "text", "text", "text"]
    assert units[0].name == f"{tmp_path}/a.txt (and 1 more)"
    assert units[0].source == f"{tmp_path}/*" and units[-1].source == f"{tmp_path}/a.txt"


def test_a_unit_travels(tmp_path):
    unit = Unit("s", "text", ("big.txt",), 16, 32, "line")
    assert pickle.loads(pickle.dumps(unit)) == unit
    fields = json.loads(json.dumps(asdict(unit)))
    assert Unit(**fields | {"paths": tuple(fields["paths"])}) == unit
    assert unit.name == "big.txt[16:32]"


def test_only_a_large_text_file_is_cut_into_blocks_and_it_is_said(tmp_path):
    for name, size in {"l.txt": 1_000_001, "s.txt": 1_000_000, "r.jsonl": 1_000_001}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    said = []
    units = find_units([f"{tmp_path}/*"], say=said.append)
    assert {unit.paths[0][-5:]: unit.document for unit in units} == {"l.txt": "block", "s.txt": "file", "jsonl": "file"}
    assert said == [
        "1 of 3 files are larger than 1 MB: a document there is a block between blank lines (--document changes this)"
    ]
    assert {unit.document for unit in find_units([f"{tmp_path}/*"], keep_whole=True, say=said.append)} == {"file"}
    assert {unit.document for unit in find_units([f"{tmp_path}/*"], document="line", say=said.append)} == {"line"}
    assert len(said) == 1


def test_globs_are_sorted_and_sources_keep_their_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "z.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path / "z.md", f"{tmp_path}/**/*.txt") == ["z.md", "a.txt", "b.txt", "sub/c.txt"]


def test_a_name_with_brackets_or_a_hash_is_a_path(tmp_path):
    for name in ("a[1].txt", "a#b.txt"):
        (tmp_path / name).write_text(name)
        assert read(tmp_path / name) == [name]


def test_invalid_utf8_comes_out_as_surrogates_in_every_format(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\xffb")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xffb"}\n')
    (tmp_path / "a.csv").write_bytes(b"text\na\xffb\n")
    raw = pyarrow.StringArray.from_buffers(
        1, pyarrow.array([0, 3], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xffb")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "a.parquet")
    for kind in ("txt", "jsonl", "csv", "parquet"):
        assert read(tmp_path / f"a.{kind}") == ["a\udcffb"]


def test_a_digest_is_of_kind_and_content_not_of_name_and_time(tmp_path):
    for name in ("a.txt", "b.txt", "c.md", "d.jsonl"):
        (tmp_path / name).write_text("other" if name == "b.txt" else "same")
    prints = {name: digest(find_units([tmp_path / name])[0]) for name in ("a.txt", "b.txt", "c.md", "d.jsonl")}
    assert prints["a.txt"] == prints["c.md"]
    assert len({prints[name] for name in ("a.txt", "b.txt", "d.jsonl")}) == 3
    both = [digest(Unit("", "text", tuple(f"{tmp_path}/{name}.txt" for name in order))) for order in ("ab", "ba")]
    assert len({*both, *prints.values()}) == 5


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "rows"])
def test_a_change_changes_the_digest_of_the_unit_that_holds_it(tmp_path, name, monkeypatch):
    """Equal digests mean equal documents: also when a document ends behind the bytes of its unit."""
    monkeypatch.setattr(sources, "BUNDLE_BYTES", 0)
    for module in (find_files, sources):
        monkeypatch.setattr(module, "UNIT_BYTES", 40)
    texts = [f"document {n} of ten\nwith a second line" for n in range(10)]
    found = []
    for sub, changed in {
        "one": texts,
        "two": texts,
        "three": [*texts[:4], texts[4].replace("a", "A"), *texts[5:]],
    }.items():
        (tmp_path / sub).mkdir()
        if name == "rows":
            datasets.Dataset.from_dict({"text": changed}).save_to_disk(str(tmp_path / sub / name))
        else:
            write(tmp_path / sub / name, changed)
        units = find_units([tmp_path / sub / name], document="block")
        found.append([(digest(unit), [item.text for item in read_documents(unit)]) for unit in units])
    assert found[0] == found[1]
    differ = [one[0] != three[0] for one, three in zip(found[0], found[2], strict=True)]
    assert sum(differ[:-1]) == 1 and len(differ) > 3
    assert not differ[-1] or name == "a.parquet"  # its last unit holds the footer, with statistics of all
    assert [*differ[:-1], False] == [one[1] != three[1] for one, three in zip(found[0], found[2], strict=True)]


def test_a_stamp_changes_with_size_or_time(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some")
    (unit,) = find_units([path])
    before = stamp(unit)
    assert stamp(unit) == before
    os.utime(path, ns=(0, 1))
    touched = stamp(unit)
    path.write_text("more text")
    os.utime(path, ns=(0, 1))
    assert len({before, touched, stamp(unit)}) == 3
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
        stamp(unit)
    for use in (digest, lambda unit: list(read_documents(unit))):
        with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
            use(unit)


def test_an_ending_in_capitals_is_the_same_kind(tmp_path):
    (tmp_path / "A.JSONL").write_text('{"text": "a"}')
    (tmp_path / "A.TXT.GZ").write_bytes(gzip.compress(b"b"))
    units = find_units([tmp_path / "A.JSONL", tmp_path / "A.TXT.GZ"])
    assert [document.text for unit in units for document in read_documents(unit)] == ["a", "b"]


def test_source_errors_say_what_to_pass(tmp_path):
    for name in ("a.zip", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for source, message in [
        (tmp_path, r"is a directory; .*\*\*/\*\.txt"),
        (tmp_path / "missing.txt", "missing.txt does not exist"),
        (f"{tmp_path}/*.md", "no file matches the glob"),
        (tmp_path / "a.zip", "archive"),
        (tmp_path / "a.tar.gz", "archive"),
        (tmp_path / "pipe", "a pipe or a device"),
        ("hf://", r"not of the form hf://NAME\[:CONFIG\]\[@REVISION\]\[#SPLIT\]"),
    ]:
        with pytest.raises(DataError, match=message):
            find_units([source])
    with pytest.raises(DataError, match="no source given"):
        find_units([])
