"""`mypt subset`: the sizes by which a subset is asked for, and what is printed."""

import json

import pytest

from mypt.cli.main import main


@pytest.fixture
def data(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n".join(f"text number {index}" for index in range(200)))
    command = ["prepare", "--source", str(tmp_path / "a.txt"), "--out", str(tmp_path / "data"), "--tokenizer", "char"]
    assert main([*command, "--document", "line", "--workers", "1"]) == 0
    capsys.readouterr()
    return tmp_path / "data"


def test_the_table_and_json(data, tmp_path, capsys):
    command = ["subset", str(data), "--out", str(tmp_path / "out"), "--samples", "50", "--val", "proportional"]
    assert main(command) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert rows["train"][0] == "50"
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["splits"]["train"]["documents"] == 50 and facts["history"][0]["seed"] == 42
    assert "already holds this subset" in printed.err
    assert main([*command, "--seed", "7"]) == 2
    assert "already holds another dataset" in capsys.readouterr().err


def test_one_size_at_most(data, tmp_path, capsys):
    assert main(["subset", str(data), "--out", str(tmp_path / "a"), "--fraction", "0.5"]) == 0
    assert main(["subset", str(data), "--out", str(tmp_path / "b"), "--tokens", "900"]) == 0
    with pytest.raises(SystemExit) as stop:
        main(["subset", str(data), "--out", str(tmp_path / "c"), "--tokens", "9", "--samples", "1"])
    assert stop.value.code == 2


def test_ten_thousand_by_default(data, tmp_path, capsys):
    assert main(["subset", str(data), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["history"][0]["samples"] == 10_000
    assert "documents: all are taken" in printed.err
