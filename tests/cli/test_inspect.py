"""`mypt inspect` on a real run, its checkpoints and its data."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mypt.cli.main import main

STEPS, SAVE, BATCH, BLOCK = 4, 2, 2, 16
TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 60


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Four steps of a tiny model on two sources, with an evaluation set to keep."""
    from mypt.preparation.prepare import prepare_dataset
    from mypt.recipe import parse_recipe
    from mypt.training.run import train

    root = tmp_path_factory.mktemp("inspect")
    for name, text in {"one": TEXT, "two": TEXT.upper()}.items():
        (root / f"{name}.txt").write_text(text)
    options = {"val_split": "tail", "progress": False}
    prepare_dataset(root / "one.txt", root / "one", tokenizer="char", **options)
    prepare_dataset(root / "two.txt", root / "two", tokenizer=root / "one", **options)
    recipe = {
        "model": {"preset": "modern-nano", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
        "data": {
            "train": {str(root / "one"): 0.75, str(root / "two"): 0.25},
            "eval": {"one": str(root / "one"), "two": str(root / "two")},
            "block_size": BLOCK,
        },
        "coverage": {"confirm": False},
        "training": {
            "output_dir": str(root / "run"),
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "eval_steps": SAVE,
            "save_steps": SAVE,
            "logging_steps": 1,
            "use_cpu": True,
        },
    }
    return train(parse_recipe(recipe))


def report_of(path, capsys, *options, code=0):
    assert main(["inspect", str(path), "--json", *options]) == code
    return json.loads(capsys.readouterr().out)


def test_a_run_folder_tells_its_whole_story(run_folder, capsys):
    report = report_of(run_folder, capsys)
    assert (report["kind"], report["problems"]) == ("run", [])
    assert report["parameters"]["total"] == report["weights"]["parameters"]
    assert (report["progress"]["step"], report["progress"]["max_steps"]) == (STEPS, STEPS)
    assert report["progress"]["logged_at_step"] == STEPS and report["progress"]["learning_rate"] is not None
    assert [source["samples"] for source in report["coverage"]["seen"]] == [6, 2]  # 8 samples, 3 to 1
    assert [source["tokens"] for source in report["coverage"]["seen"]] == [6 * BLOCK, 2 * BLOCK]
    forgetting = json.loads((run_folder / "forgetting.json").read_text())
    assert report["forgetting"]["sets"] == forgetting["history"][-1]["sets"]
    assert report["forgetting"]["verdict"] == forgetting["verdict"]
    assert report["diagnosis"]["lines"][0].startswith("diagnosis: too few points")
    assert report["recipe"]["training"]["max_steps"] == STEPS
    assert report["checkpoints"] == [{"name": f"checkpoint-{step}", "missing": None} for step in (SAVE, STEPS)]


def test_a_checkpoint_tells_its_own_step(run_folder, capsys):
    report = report_of(run_folder / f"checkpoint-{SAVE}", capsys)
    assert (report["kind"], report["problems"]) == ("checkpoint", [])
    assert report["progress"]["step"] == report["forgetting"]["step"] == SAVE
    assert sum(source["samples"] for source in report["coverage"]["seen"]) == SAVE * BATCH
    assert report["forgetting"]["verdict"] is None  # the verdict in forgetting.json is of a later step
    last = report_of(run_folder / f"checkpoint-{STEPS}", capsys)
    assert last["forgetting"] == report_of(run_folder, capsys)["forgetting"]


def test_the_tables_hold_the_figures(run_folder, capsys):
    assert main(["inspect", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    report = report_of(run_folder, capsys)
    assert f"step {STEPS} of {STEPS}" in printed
    assert f"{report['parameters']['total']:,} parameters in float32" in printed
    for name, reading in report["forgetting"]["sets"].items():
        assert name in printed and f"{reading['loss']:.4f}" in printed
    assert report["forgetting"]["verdict"] in printed
    assert "\n".join(report["diagnosis"]["lines"]) in printed
    assert f"training.output_dir                   {run_folder}\n" in printed
    assert "PROBLEM" not in printed


def test_the_history_of_forgetting_and_the_changed_settings(run_folder, capsys):
    report = report_of(run_folder, capsys)
    history = json.loads((run_folder / "forgetting.json").read_text())["history"]
    assert [entry["step"] for entry in report["forgetting"]["history"]] == [entry["step"] for entry in history]
    for shown, entry in zip(report["forgetting"]["history"], history, strict=True):
        assert {name: read["loss"] for name, read in shown["sets"].items()} == {
            name: read["loss"] for name, read in entry["sets"].items()
        }
    assert {"model.preset", "data.block_size", "training.max_steps"} <= set(report["changed_settings"])
    assert not {"forgetting.tolerance", "data.order", "optimizer.cooldown"} & set(report["changed_settings"])
    assert main(["inspect", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    first = history[0]["sets"]["one"]["loss"]
    assert f"{first:.4f} (+0.0000)" in printed
    assert printed.index("data.block_size") < printed.index("\ndefaults\n") < printed.index("forgetting.tolerance")


def test_two_checkpoints_of_a_run(run_folder, capsys):
    pair = [str(run_folder / f"checkpoint-{step}") for step in (SAVE, STEPS)]
    assert main(["inspect", *pair, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["config"], report["settings"], report["tokenizer"]) == ({}, {}, "same")
    assert [progress["step"] for progress in report["progress"]] == [SAVE, STEPS]
    losses = [report_of(folder, capsys)["forgetting"]["sets"]["one"]["loss"] for folder in pair]
    assert report["losses"]["one"]["loss"] == losses and report["weights"] is None
    assert main(["inspect", *pair, "--weights"]) == 0
    printed = capsys.readouterr().out
    assert "||B - A|| / ||A||" in printed and "settings      no difference" in printed
    assert f"{losses[1] - losses[0]:+.4f}" in printed


def test_two_datasets_and_pairs_of_no_kind(run_folder, capsys):
    one, two = str(run_folder.parent / "one"), str(run_folder.parent / "two")
    assert main(["inspect", one, two, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    assert "splits.train.fingerprint" in fields and "splits.train.tokens" not in fields
    assert main(["inspect", one, two]) == 0
    assert "splits.train.fingerprint" in capsys.readouterr().out
    for command, message in {
        (one, str(run_folder)): "one is a dataset, the other a model",
        (one, two, "--weights"): "--weights has no meaning here",
        (str(run_folder), "--weights"): "--weights compares two checkpoints",
    }.items():
        assert main(["inspect", *command]) == 2
        assert message in capsys.readouterr().err


def test_a_problem_is_printed_and_the_exit_code_is_1(run_folder, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(run_folder / f"checkpoint-{SAVE}", tmp_path / "copy")
    (folder / "scheduler.pt").unlink()
    assert main(["inspect", str(folder)]) == 1
    assert "PROBLEM: not complete" in capsys.readouterr().out
    assert report_of(folder, capsys, code=1)["problems"]


def test_a_dataset_tells_its_sizes(run_folder, capsys):
    report = report_of(run_folder.parent / "one", capsys)
    size = {name: split["bytes"] for name, split in report["splits"].items()}
    assert (report["kind"], report["problems"]) == ("dataset", [])
    assert sum(size.values()) == len(TEXT) and 0.08 < size["val"] / len(TEXT) < 0.12
    assert report["tokenizer"]["name"] == "char"
    assert report["tokenizer"]["vocab_size"] == 257 + len(set(TEXT))
    assert report["settings"]["val_split"] == "tail"
    shard = next(file for file in report["files"] if file["name"] == "train/shard_00000.bin")
    assert shard["bytes"] == 2 * report["splits"]["train"]["tokens"]
    assert main(["inspect", str(run_folder.parent / "one")]) == 0
    assert f"{report['splits']['train']['tokens']:,}" in capsys.readouterr().out


def test_show_prints_the_windows_that_a_model_gets(run_folder, capsys):
    from mypt.streams.shard_stream import ShardStream
    from mypt.tokenization.load import load_tokenizer

    directory = run_folder.parent / "two"
    windows = report_of(directory, capsys, "--show", "3", "--block-size", "20")["windows"]
    stream = ShardStream(directory, block_size=20, micro_batch_size=3)
    assert [window["input_ids"] for window in windows] == next(iter(stream))["input_ids"].tolist()
    assert [window["text"] for window in windows] == load_tokenizer(directory).batch_decode(
        [window["input_ids"] for window in windows]
    )
    tokens = np.fromfile(directory / "train" / "shard_00000.bin", "<u2")
    for window in windows:
        assert tokens[window["first_token"] :][:20].tolist() == window["input_ids"]
    assert main(["inspect", str(directory), "--show", "1", "--block-size", "20"]) == 0
    assert windows[0]["text"] in capsys.readouterr().out


def test_a_damaged_shard_is_named(make_shards, capsys):
    directory = make_shards(train=np.arange(50), per_shard=20)
    shards = [directory / "train" / f"shard_0000{index}.bin" for index in range(3)]
    shards[0].write_bytes(shards[0].read_bytes()[:-2])
    shards[2].unlink()
    report = report_of(directory, capsys, code=1)
    assert report["problems"] == [
        "train/shard_00000.bin holds 38 bytes, the metadata says 40",
        "train/shard_00002.bin is missing",
    ]


def test_a_dataset_of_the_originals_without_metadata(tmp_path, capsys):
    np.arange(9, dtype=np.uint32).tofile(tmp_path / "shard_00000.bin")
    (tmp_path / "tokenizer_state.json").write_text(
        '{"token_kind": "char", "chars": ["' + '", "'.join("abcdefghi") + '"]}'
    )
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["splits"]["train"]["tokens"]) == ("the original MyPT", 9)


def test_a_name_that_cannot_be_printed_is_escaped(make_shards):
    directory = make_shards(train=np.arange(50))
    metadata = directory / "dataset_metadata.json"
    source = {"name": "caf\udce9.txt", "documents": 1, "bytes": 1, "tokens": 50}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"sources": [source]}))
    command, environment = (
        [sys.executable, "-m", "mypt", "inspect", str(directory)],
        {"PYTHONIOENCODING": "utf-8:strict"},
    )
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert shown.returncode == 0 and "caf\\udce9.txt" in shown.stdout, shown.stderr


def test_what_is_neither_is_one_clear_error(run_folder, tmp_path, capsys):
    for path, message in {
        tmp_path: "holds neither config.json nor checkpoint-N (a model) nor dataset_metadata.json (a dataset)",
        tmp_path / "nowhere": "does not exist",
    }.items():
        assert main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert main(["inspect", str(run_folder), "--show", "1"]) == 2
    assert "--show prints windows of a dataset" in capsys.readouterr().err
    for options in (["--show", "-1"], ["--show", "1", "--block-size", "0"], ["--show", "1", "--block-size", "99999"]):
        assert main(["inspect", str(run_folder.parent / "one"), *options]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_torch_is_not_imported(run_folder):
    program = (
        "import sys; from mypt.cli.main import main; "
        f"main(['inspect', {str(run_folder)!r}]); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"
