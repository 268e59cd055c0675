"""`mypt verify`: exit 0, 1 or 2, and what is printed."""

import json

import pytest

from mypt.cli.main import main


@pytest.fixture
def datasets(tmp_path, capsys):
    """Two prepared datasets; two documents that `one` holds out are train in `two`."""
    shared = [f"a text that both have, number {index}" for index in range(40)]
    texts = {
        "one": [f"only one {index}" for index in range(60)] + shared,
        "two": [f"only two {index}" for index in range(60)],
    }
    prepare(tmp_path, "one", texts["one"])
    held_out = [text for text in shared if text in held_out_texts(tmp_path / "one")][:2]
    assert len(held_out) == 2
    prepare(tmp_path, "two", texts["two"] + held_out, "--val-fraction", "0", "--tokenizer", str(tmp_path / "one"))
    capsys.readouterr()
    return tmp_path / "one", tmp_path / "two"


def prepare(root, name, lines, *options):
    (root / f"{name}.txt").write_text("\n".join(lines))
    options = options if "--tokenizer" in options else ("--tokenizer", "char", "--val-fraction", "0.4")
    command = ["prepare", "--source", str(root / f"{name}.txt"), "--out", str(root / name), "--document", "line"]
    assert main([*command, *options, "--workers", "1"]) == 0


def held_out_texts(directory):
    import numpy as np

    from mypt.tokenization.load import load_tokenizer

    tokenizer = load_tokenizer(directory)
    ids = np.fromfile(directory / "val" / "shard_00000.bin", "<u2").tolist()
    return tokenizer.decode(ids).split("<|endoftext|>")


def test_a_whole_dataset_is_ok(datasets, capsys):
    assert main(["verify", str(datasets[0])]) == 0
    out = capsys.readouterr().out
    assert "ok: " in out and "PROBLEM" not in out


def test_damage_is_named_and_exit_1(datasets, capsys):
    shard = datasets[0] / "train" / "shard_00000.bin"
    data = bytearray(shard.read_bytes())
    data[9] ^= 4
    shard.write_bytes(data)
    assert main(["verify", str(datasets[0])]) == 1
    assert "PROBLEM: train/shard_00000.bin: was changed" in capsys.readouterr().out
    assert main(["verify", *map(str, datasets), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["directories"][0]["problems"][0]["file"] == "train/shard_00000.bin"
    assert report["directories"][1]["problems"] == [] and report["shared"] == [] and report["ok"] is False


def test_a_name_makes_no_line_of_the_report(datasets, capsys):
    (datasets[0] / "train" / "x.bin\nok: 0.0 MB, 0.0 s\n.bin").touch()
    assert main(["verify", str(datasets[0])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith(("ok", ".bin"))]
    assert [line for line in lines if line.startswith("PROBLEM: train/x.bin\\nok: 0.0 MB, 0.0 s\\n.bin: ")]


def test_val_text_in_the_others_train_is_exit_1(datasets, capsys):
    assert main(["verify", *map(str, datasets)]) == 1
    out = capsys.readouterr().out
    assert f"PROBLEM: 2 val documents of {datasets[0]} are in train of {datasets[1]}" in out
    assert main(["verify", *map(str, datasets), "--json", "--no-lines", "--workers", "2"]) == 1
    first = json.loads(capsys.readouterr().out)["shared"][0]
    assert (first["split"], first["other_split"], first["shared_documents"], first["lines"]) == (
        "val",
        "train",
        2,
        None,
    )


def test_bad_input_is_exit_2(datasets, tmp_path, capsys):
    for arguments in ([str(tmp_path)], [str(datasets[0])] * 2, [str(datasets[0]), "--workers", "0"]):
        assert main(["verify", *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
