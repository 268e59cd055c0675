"""A file of completions grows line by line and is continued where it ends."""

import json

import pytest

from mypt.errors import MyPTError
from mypt.generation.results import ResultsFile

JOBS = [("a", 1), ("a", 2), ("b\n", 1)]


def record(number: int) -> dict:
    prompt, seed = JOBS[number]
    return {"prompt": prompt, "seed": seed, "text": f"text {number} é"}


def write(path, numbers, resume=False) -> ResultsFile:
    results = ResultsFile(str(path), resume)
    results.continue_for(JOBS)
    for number in numbers:
        results.write(record(number))
    return results


def test_each_completion_is_a_line_at_once(tmp_path):
    path = tmp_path / "new" / "out.jsonl"
    results = write(path, [])
    assert path.read_bytes() == b""
    for number in range(3):
        results.write(record(number))
        assert [json.loads(line) for line in path.open(encoding="utf-8")] == [record(n) for n in range(number + 1)]


def test_an_interrupted_file_is_continued_behind_its_last_whole_line(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        results = ResultsFile(str(path), resume=True)
        assert results.done == whole[:cut].count(b"\n")
        assert results.seed == (1 if results.done else None)
        write(path, range(results.done, 3), resume=True)
        assert path.read_bytes() == whole


def test_a_file_is_not_written_over(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, [0])
    with pytest.raises(MyPTError, match="exists already; --resume continues it"):
        ResultsFile(str(path))


def test_a_file_of_other_jobs_is_refused_and_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, [0, 1])
    before = path.read_bytes() + b'{"cut'
    path.write_bytes(before)
    for jobs in ([("a", 1), ("b", 1)], [("a", 1), ("a", 3)], [("a", 1)]):
        with pytest.raises(MyPTError, match="line 2 is of prompt 'a', seed 2, but"):
            ResultsFile(str(path), resume=True).continue_for(jobs)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"nonsense\n", b"[1]\n", b'{"text": "a"}\n', b"3\n"])
def test_what_is_no_file_of_completions_is_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(MyPTError, match=r"other line 1 is damaged.*name a file of completions"):
        ResultsFile(str(tmp_path / "other"), resume=True)
