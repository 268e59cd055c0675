"""`mypt convert`: a dataset of the original's from the command line."""

import json

import numpy as np

from mypt.cli.main import main


def test_the_table_and_json(tmp_path, capsys):
    ids = np.arange(5_000) % 5
    (tmp_path / "old").mkdir()
    ids.astype(np.uint32).tofile(tmp_path / "old" / "shard_00000.bin")
    (tmp_path / "old" / "tokenizer_state.json").write_text(json.dumps({"token_kind": "char", "chars": list("abcd\n")}))
    command = ["convert", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    assert main(command) == 0
    assert "uint16, vocabulary 262" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["splits"]["train"] == {"shards": 1, "tokens": 5_000, "documents": 1, "bytes": 5_000}
    assert "already converted" in printed.err
    assert main(["verify", str(tmp_path / "new")]) == 0
    assert main(["inspect", str(tmp_path / "new")]) == 0
    assert f"convert       of: {tmp_path / 'old'}, from: the original MyPT" in capsys.readouterr().out


def test_nanogpt_needs_its_dtype(tmp_path, capsys):
    (np.arange(5_000) % 300).astype(np.uint16).tofile(tmp_path / "train.bin")
    command = ["convert", str(tmp_path), "--out", str(tmp_path / "new"), "--tokenizer"]
    (tmp_path / "a.txt").write_text("abcdefghijklmnop " * 100 + "".join(map(chr, range(192, 250))))
    prepared = [
        "prepare",
        "--source",
        str(tmp_path / "a.txt"),
        "--out",
        str(tmp_path / "tokens"),
        "--tokenizer",
        "char",
    ]
    assert main([*prepared, "--workers", "1"]) == 0
    capsys.readouterr()
    assert main([*command, str(tmp_path / "tokens")]) == 2
    assert "--dtype uint16" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "tokens"), "--dtype", "uint16"]) == 0
