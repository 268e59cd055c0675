"""`mypt append`: shards of another dataset, and what both have."""

import json

import pytest

from mypt.cli.main import main
from mypt.shards.format import read_manifest


@pytest.fixture
def datasets(tmp_path, capsys):
    for name, numbers, tokenizer in (("old", range(100), "char"), ("new", range(90, 150), str(tmp_path / "old"))):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"text number {index}" for index in numbers))
        command = ["prepare", "--source", str(tmp_path / f"{name}.txt"), "--out", str(tmp_path / name)]
        assert main([*command, "--tokenizer", tokenizer, "--document", "line", "--workers", "1"]) == 0
    capsys.readouterr()
    return tmp_path / "old", tmp_path / "new"


def test_the_table_tells_what_both_have(datasets, capsys):
    old, new = map(str, datasets)
    assert main(["append", old, "--from", f"{new}/"]) == 0
    out = capsys.readouterr().out
    splits = read_manifest(old).splits
    assert splits["train"].documents + splits["val"].documents == 160
    found = [line.split() for line in out.splitlines() if line.startswith("in both")]
    assert sum(int(words[2]) for words in found) == 10
    assert "new.txt" in out
    assert main(["append", old, "--from", new, "--no-overlap", "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert "already holds" in printed.err
    assert facts["shared"] == [] and [source["name"][-7:] for source in facts["sources"]] == ["old.txt", "new.txt"]
    assert main(["verify", old]) == 0


def test_bad_input(datasets, tmp_path, capsys):
    old = str(datasets[0])
    assert main(["append", old, "--from", old]) == 2
    assert main(["append", old, "--from", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    for arguments in ([], ["--from", old, "--source", "a.txt"]):
        with pytest.raises(SystemExit) as stop:
            main(["append", old, *arguments])
        assert stop.value.code == 2
