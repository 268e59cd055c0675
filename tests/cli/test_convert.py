"""`mypt convert`: datasets and checkpoints of the original's from the command line."""

import json

import numpy as np
import pytest
import torch
import yaml

from mypt.cli.main import main
from tests.checkpoints.original_mypt import STATE, OriginalModel, write_bundle, write_single


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


def test_a_checkpoint_becomes_a_model_that_every_command_takes(tmp_path, capsys):
    model = OriginalModel()
    old = str(write_bundle(tmp_path / "old", model, optimizer=True))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.save({"input_ids": ids, "logits": model(ids)}, tmp_path / "expected.pt")
    check = ["--check", str(tmp_path / "expected.pt")]
    assert main(["convert", old, "--out", str(tmp_path / "dry"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would make" in printed and not (tmp_path / "dry").exists()
    assert main(["convert", old, "--out", str(tmp_path / "new"), *check]) == 0
    printed = capsys.readouterr().out
    assert "bundle, fused attention, step 7" in printed and "logits differ by at most" in printed
    assert "note: the optimizer's state is not carried over" in printed
    assert main(["convert", old, "--out", str(tmp_path / "new")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "new")]) == 0
    assert f"from {old}, bundle of the original MyPT, step 7" in capsys.readouterr().out
    assert main(["generate", str(tmp_path / "new"), "--prompt", "ab", "--max-new-tokens", "4"]) == 0
    capsys.readouterr()
    assert main(["convert", old, "--out", str(tmp_path / "json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["era"] == "fused"


def test_with_bytes_it_can_be_evaluated_on_a_converted_dataset(tmp_path, capsys):
    data, chars = tmp_path / "data", STATE["chars"]
    ids = np.random.default_rng(0).integers(0, len(chars), 400).astype(np.uint32)
    for split, part in {"train": ids[:200], "val": ids[200:]}.items():
        (data / split).mkdir(parents=True)
        part.tofile(data / split / "shard_00000.bin")
    (data / "tokenizer_state.json").write_text(json.dumps(STATE))
    old = str(write_bundle(tmp_path / "old", OriginalModel()))
    assert main(["convert", str(data), "--out", str(tmp_path / "shards")]) == 0
    assert main(["convert", old, "--out", str(tmp_path / "new"), "--add-bytes"]) == 0
    assert main(["evaluate", str(tmp_path / "new"), "--data", f"old={tmp_path / 'shards'}"]) == 0


def test_all_of_a_folder_and_the_exit_code(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_bundle(folder / "one", OriginalModel())
    write_single(folder / "two.pt", OriginalModel(per_head=True))
    torch.save({"logits": 1}, folder / "other.pt")
    command = ["convert", str(folder), "--out", str(tmp_path / "new"), "--all"]
    assert main(command) == 0
    printed = capsys.readouterr()
    states = [line.split()[:2] for line in printed.out.splitlines()[1:]]
    assert states == [["one", "converted"], ["other", "skipped"], ["two", "converted"]]
    assert "holds no model_state_dict" in printed.err
    (folder / "three.pt").write_bytes(b"")
    assert main([*command[:-2], str(tmp_path / "again"), "--all", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["two"]["step"] == 7 and "three.pt" in told["three"]["error"]


def test_options_of_the_other_kind_are_refused(tmp_path, capsys):
    old = str(write_bundle(tmp_path / "old", OriginalModel()))
    assert main(["convert", old, "--out", str(tmp_path / "new"), "--dtype", "uint16"]) == 2
    assert "--dtype: only for a dataset" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.bin").touch()
    assert main(["convert", str(tmp_path / "data"), "--out", str(tmp_path / "new"), "--dry-run"]) == 2
    assert "--dry-run: only for a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["bundle", "weights of a bundle", "single file"])
def test_commands_that_are_given_an_original_checkpoint_name_the_one_that_converts_it(
    form, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if form == "single file":
        old = write_single(tmp_path / "old.pt", OriginalModel())
    else:
        old = write_bundle(tmp_path / "old", OriginalModel())
        old = old / "model.pt" if form.startswith("weights") else old
    recipe = tmp_path / "recipe.yaml"
    content = {"model": {"init_from": str(old)}, "data": {"train": "text.txt"}, "training": {"output_dir": "run"}}
    recipe.write_text(yaml.safe_dump(content))
    for command in (
        "generate OLD --prompt ab",
        "evaluate OLD --data x=y",
        "plan OLD",
        "estimate OLD",
        f"train {recipe}",
    ):
        assert main(command.replace("OLD", str(old)).split()) == 2
        said = capsys.readouterr().err.strip()
        assert f"{old} is a checkpoint of the original MyPT; convert it, then name models/old: mypt convert" in said
    assert main(said.rpartition("mypt ")[2].split()) == 0
    assert main(["generate", "models/old", "--prompt", "ab", "--max-new-tokens", "4"]) == 0
