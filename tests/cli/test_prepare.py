"""`mypt prepare` from the command line: what it prints and where."""

import argparse
import json

import pytest

from mypt.cli.prepare import add_arguments, run
from mypt.errors import DataError


def prepare(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(arguments))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"paragraph {i}  \n\n" for i in range(200)))
    return str(path)


def test_the_report_for_people(source, tmp_path, capsys):
    command = ["--source", source, "--out", str(tmp_path / "out"), "--tokenizer", "char", "--document", "block"]
    prepare(*command)
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert int(rows["train"][0]) + int(rows["val"][0]) == 200
    assert rows["dropped"] == ["0", "duplicates"]
    assert rows["next"] == ["mypt", "plan", "--tokens", rows["train"][1].replace(",", "")]
    assert "characters" in err
    prepare(*command)
    assert "already prepared" in capsys.readouterr().err


def test_json_is_all_that_is_on_stdout(source, tmp_path, capsys):
    flags = ["--tokenizer", "bpe", "--vocab-size", "270", "--val-split", "tail", "--val-fraction", "0.25", "--json"]
    prepare("--source", source, source, "--out", str(tmp_path / "out"), *flags)
    facts = json.loads(capsys.readouterr().out)
    text = (tmp_path / "a.txt").read_text()
    assert facts["vocab_size"] == 270
    assert facts["splits"]["train"]["bytes"] == int(len(text) * 0.75)
    assert facts["report"]["duplicates"] == 1


def test_switches(source, tmp_path, capsys):
    base = ["--source", source, "--tokenizer", "char", "--val-fraction", "0", "--document", "line", "--json"]
    prepare(*base, "--out", str(tmp_path / "a"))
    cleaned = json.loads(capsys.readouterr().out)["report"]
    prepare(
        *base, "--out", str(tmp_path / "b"), "--no-normalize", "--no-filter", "--no-dedup", "--max-documents", "100"
    )
    raw = json.loads(capsys.readouterr().out)["report"]
    assert (cleaned["normalized"], cleaned["dropped"], cleaned["documents"]) == (200, {"empty": 200}, 200)
    assert (raw["normalized"], raw["dropped"], raw["documents_read"]) == (0, {"empty": 50}, 100)


def test_bad_input_is_a_line(tmp_path, capsys):
    with pytest.raises(DataError) as error:
        prepare("--source", str(tmp_path / "no.txt"), "--out", str(tmp_path / "out"))
    assert str(error.value).count("\n") == 0
    with pytest.raises(SystemExit) as exit:
        prepare("--source", "a.txt", "--out", "out", "--vocab-size", "many")
    assert exit.value.code == 2
    assert "--vocab-size" in capsys.readouterr().err
