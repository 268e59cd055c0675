"""The number of documents is exact where metadata has it, near where lines are alike, and never made up."""

import gzip
import json
from pathlib import Path

import pytest

from mypt.text.sources import document_count, find_units

TEXTS = [f"{number:04d} " + "word " * 40 for number in range(9_000)]


def write(folder: Path, kind: str) -> str:
    path = folder / f"texts.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=700)
    elif kind == "arrow":
        pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS}).save_to_disk(path)
    elif kind == "csv":
        path.write_text("text\n" + "\n".join(TEXTS) + "\n")
    else:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith(".gz") else lines)
    return str(path)


@pytest.mark.parametrize(
    "kind, low, high",
    [
        ("parquet", 9_000, 9_000),
        ("arrow", 9_000, 9_000),
        ("jsonl", 8_900, 9_100),
        ("csv", 8_900, 9_100),
        ("jsonl.gz", 0, 0),
    ],
)
def test_the_documents_of_a_source(tmp_path, kind, low, high):
    assert low <= document_count(find_units([write(tmp_path, kind)])) <= high


def test_one_part_that_is_not_known_makes_the_whole_unknown(tmp_path):
    both = [write(tmp_path, "jsonl"), write(tmp_path, "jsonl.gz")]
    assert document_count(find_units(both)) == 0
    assert document_count(find_units(both[:1] * 2)) == pytest.approx(18_000, rel=0.01)
