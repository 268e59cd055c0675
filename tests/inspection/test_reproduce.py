"""The printed commands give the same losses in an empty folder, and what differs here is found."""

import inspect
import json
import shlex
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from mypt.checkpoints.environment import this_session
from mypt.cli.main import main
from mypt.errors import CheckpointError
from mypt.inspection.dataset_commands import recorded_datasets
from mypt.inspection.reproduce import describe_reproduction, reproduce
from mypt.recipe import parse_recipe
from mypt.shards.format import read_manifest
from mypt.training.run import train
from mypt.yaml12 import dump_yaml
from tests.processes import leave_out_pictures
from tests.runs import made_once

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES |= {"head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 64}
STEPS = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2}
TEXTS = ("text/a note.txt", "text/code.py", "text/more.txt", "raw.txt")


def lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith("#")]


def run_all(commands: list[str]) -> None:
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "mypt" and main(words[1:]) == 0, line


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Datasets of every origin and three runs: a base, one adapted from it, one of a text."""
    return made_once(tmp_path_factory, "reproduce", make_world)


def make_world(root: Path) -> None:
    prose = "\n\n".join(text for _, text in sorted(topics.items()))
    (root / "text").mkdir()
    for name, text in zip(TEXTS, (prose[:30_000], inspect.getsource(textwrap), prose[30_000:40_000], prose[:20_000]),
                          strict=True):  # fmt: skip
        (root / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out_pictures(patch)
        for command in (
            "mypt prepare --source 'text/a note.txt' --out data/general --vocab-size 300 --lowercase --seed 7"
            " --document block --val-fraction 0.2",
            "mypt prepare --source text/code.py --out data/code --tokenizer data/general --val-split tail --normalize"
            " --filter line --no-dedup --tokens-per-shard 4000",
            "mypt append data/general --source text/more.txt",
            "mypt subset data/general --out data/part --fraction 0.7 --seed 5",
            "mypt append data/code --from data/part --no-overlap",
        ):
            run_all([command])
        model, data = {"preset": "modern-nano"} | SIZES, {"block_size": 32}
        common = {"coverage": {"confirm": False}, "forgetting": {"eval_windows": 10}}
        recipes = {
            "base": {"model": model, "data": data | {"train": "data/part"}},
            "adapted": {
                "model": {"init_from": "runs/base"},
                "data": data | {"train": {"data/code": 0.8, "data/part": 0.2},
                                "eval": {"code": "data/code", "general": "data/general"}},
            },
            "raw": {"model": model, "data": data | {"train": "raw.txt"}, "tokenizer": {"name": "char"}},
        }  # fmt: skip
        for name, recipe in recipes.items():
            recipe |= common | {"training": STEPS | {"output_dir": f"runs/{name}", "bf16": False}}
            (root / f"{name}.yaml").write_text(dump_yaml(recipe))
            train(parse_recipe(recipe))


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    leave_out_pictures(monkeypatch)


@pytest.fixture
def elsewhere(world, tmp_path, monkeypatch) -> Path:
    """An empty folder with nothing but the texts."""
    (tmp_path / "text").mkdir()
    for name in TEXTS:
        shutil.copy(world / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logged(run: Path) -> list[dict]:
    """Every logged number that is not a time."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    timed = ("throughput/", "train_runtime", "train_samples", "train_steps")
    return [{key: value for key, value in entry.items() if not key.startswith(timed)} for entry in entries]


@pytest.mark.parametrize("name", ["adapted", "raw"])
def test_the_commands_give_the_same_losses_in_an_empty_folder(world, elsewhere, capsys, name):
    assert main(["inspect", str(world / "runs" / name), "--reproduce"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert len(output) == len(set(output))
    run_all([line for line in output if not line.startswith("#")])
    [again] = elsewhere.glob("runs/*-again")
    assert again.name == f"{name}-again"
    assert logged(again) == logged(world / "runs" / name) and any("loss" in entry for entry in logged(again))
    for file in ("model.safetensors", "forgetting.json"):
        assert (again / file).read_bytes() == (world / "runs" / name / file).read_bytes()
    first, second = (json.loads((run / "environment.json").read_text()) for run in (world / "runs" / name, again))
    assert first["run"] == second["run"]
    known = {dataset["name"]: dataset["splits"] for dataset in second["datasets"]}
    for dataset in first["datasets"]:
        assert known[dataset["name"].replace(f"runs/{name}/", f"runs/{name}-again/")] == dataset["splits"]


def test_the_commands_work_where_the_run_is_and_touch_nothing_of_it(world, tmp_path, monkeypatch):
    root = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(root)
    before = (root / "runs" / "adapted" / "model.safetensors").read_bytes()
    report = reproduce(Path("runs/adapted"))
    assert report["problems"] == [] and report["differs"] == []
    assert len(report["commands"]) == len(report["done"]) + 1
    run_all([line for line in report["commands"] if line not in report["done"]])
    assert logged(root / "runs" / "adapted-again") == logged(root / "runs" / "adapted")
    assert (root / "runs" / "adapted" / "model.safetensors").read_bytes() == before
    assert "adapted-again-2" in reproduce(Path("runs/adapted"))["commands"][-1]


def test_changed_and_missing_text_is_a_problem(world, elsewhere):
    run = world / "runs" / "adapted"
    assert reproduce(run)["problems"] == []
    (elsewhere / "text" / "code.py").write_text("another = 1\n" * 500)
    assert any("text/code.py is not the one" in problem for problem in reproduce(run)["problems"])
    (elsewhere / "text" / "code.py").unlink()
    assert any("text/code.py cannot be read" in problem for problem in reproduce(run)["problems"])
    (elsewhere / "raw.txt").write_text("another text")
    assert any("raw.txt is not the one" in problem for problem in reproduce(world / "runs" / "raw")["problems"])
    assert main(["inspect", str(run), "--reproduce"]) == 1


def test_other_data_under_the_same_name_is_a_problem(world, elsewhere):
    main(["prepare", "--source", "raw.txt", "--out", "data/code", "--tokenizer", "char", "--val-split", "tail"])
    report = reproduce(world / "runs" / "adapted")
    assert any("data/code holds other data" in problem for problem in report["problems"])
    changed = next(one for one in report["differs"] if one["what"] == "data/code/train")
    recorded = json.loads((world / "runs" / "adapted" / "environment.json").read_text())["datasets"]
    expected = next(dataset for dataset in recorded if dataset["name"] == "data/code")["splits"]["train"]
    assert expected["fingerprint"] in changed["recorded"] and expected["fingerprint"] not in changed["here"]


def test_another_start_model_is_a_problem(world, tmp_path, monkeypatch):
    root = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(root)
    shutil.copy(root / "runs" / "base" / "checkpoint-2" / "model.safetensors", root / "runs" / "base")
    assert any("holds other weights" in problem for problem in reproduce(Path("runs/adapted"))["problems"])


def test_versions_machine_and_commit_are_compared(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    run = shutil.copytree(world / "runs" / "raw", tmp_path / "raw")
    environment = json.loads((run / "environment.json").read_text())
    here = this_session()
    assert environment["packages"] == here["packages"] and environment["git"] == here["git"]
    environment["packages"] |= {"torch": "1.0", "gone": "2.0"}
    environment["machine"]["threads"] = 77
    environment["git"] = {"mypt": {"commit": "a" * 40, "dirty": True}, "folder": None}
    (run / "environment.json").write_text(json.dumps(environment))
    report = reproduce(run)
    differs = {one["what"]: (one["recorded"], one["here"]) for one in report["differs"]}
    assert differs["torch"] == ("1.0", here["packages"]["torch"]) and differs["gone"] == ("2.0", "not installed")
    assert differs["threads"][0] == 77 and differs["git of mypt"][0] == f"{'a' * 12}, changed"
    assert any("not committed" in note for note in report["notes"]) and report["problems"] == []
    text = "\n".join(describe_reproduction(report))
    assert "#   torch: recorded 1.0; here " in text and lines(text) == report["commands"]


def test_a_resume_with_other_settings_is_told(world, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "world"))
    assert main(["train", "raw.yaml", "--resume", "--training.max_steps=8"]) == 0
    notes = reproduce(Path("runs/raw"))["notes"]
    assert any("at step 6 it was resumed with max_steps 6 -> 8" in note for note in notes)


def test_an_upload_is_left_out_and_a_section_can_be(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    run = shutil.copytree(world / "runs" / "raw", tmp_path / "raw")
    with open(run / "recipe.yaml", "a") as file:
        file.write("upload: {uri: hf://me/model}\n")
    report = reproduce(run)
    assert report["commands"][-1].endswith("--upload=null") and any("hf://me/model" in note for note in report["notes"])
    from mypt.recipe import load_recipe

    assert load_recipe(run).upload and load_recipe(run, ["--upload=null"]).upload is None


def test_a_run_of_an_early_version_is_told_by_what_is_here(world, tmp_path, monkeypatch):
    root = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(root)
    path = root / "runs" / "adapted" / "environment.json"
    environment = json.loads(path.read_text())
    commands = reproduce(path.parent)["commands"]
    for name in ("datasets", "git"):
        del environment[name]
    path.write_text(json.dumps(environment))
    report = reproduce(path.parent)
    assert report["commands"] == commands and any("did not record" in note for note in report["notes"])


def test_what_is_no_run_is_refused(world, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="records no run"):
        reproduce(tmp_path)
    assert main(["inspect", str(tmp_path / "nothing"), "--reproduce"]) == 2
    assert main(["inspect", str(world / "runs" / "raw"), "--reproduce", "--weights"]) == 2
    assert "leave out" in capsys.readouterr().err


def test_a_secret_in_the_name_of_a_source_is_not_recorded(world):
    manifest = read_manifest(world / "data" / "code")
    names = ("https://ann:s3cret@example.org/a.txt", "az://box/b.txt?sig=s3cret")
    sources = [source | {"name": name} for source, name in zip(manifest.sources, names, strict=False)]
    sources += manifest.sources[len(names) :]
    found = recorded_datasets({"data": ["train"]}, {"data": replace(manifest, sources=sources)})
    text = json.dumps(found)
    assert "s3cret" not in text and "https://***@example.org/a.txt" in text


def test_what_a_run_records_holds_no_variable_and_no_place_of_the_environment(world, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    root = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(root)
    assert main(["train", "raw.yaml", "--training.output_dir=runs/other"]) == 0
    assert main(["report", "runs/other", "--samples", "0"]) == 0
    for path in (root / "runs" / "other").glob("*.*"):
        assert b"very-secret-value" not in path.read_bytes(), path


def test_data_that_a_run_needs_again_is_made_again_though_its_base_is_here(world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    shutil.rmtree("data/part")
    found = reproduce(Path("runs/adapted"))
    part = [line for line in found["commands"] if "--out data/part" in line]
    assert part and not {*part} & {*found["done"]} and not found["problems"]


@pytest.mark.parametrize("content", [None, "{"])
def test_a_base_without_a_record_of_its_training_is_a_note(world, tmp_path, monkeypatch, content):
    shutil.copytree(world, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    Path("runs/base/environment.json").unlink()
    if content:
        Path("runs/base/environment.json").write_text(content)
    found = reproduce(Path("runs/adapted"))
    assert any("runs/base" in note for note in found["notes"]) and not found["problems"]
    assert not any("runs/base" in line for line in found["commands"] if line.startswith("mypt train"))


def test_another_or_a_missing_tokenizer_is_a_problem(world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    path = Path("runs/adapted/environment.json")
    record = json.loads(path.read_text())
    [code] = [dataset for dataset in record["datasets"] if dataset["name"] == "data/code"]
    [first] = [command for command in code["commands"] if command[1] == "prepare"]
    first[first.index("--tokenizer") + 1] = "tokenizers/here/mine"
    path.write_text(json.dumps(record))
    shutil.rmtree("data/code")
    assert any("tokenizers/here/mine cannot be read" in one for one in reproduce(Path("runs/adapted"))["problems"])
    shutil.copytree("runs/raw", "tokenizers/here/mine")  # of characters
    assert any(
        "is not the one that the data was made with" in one for one in reproduce(Path("runs/adapted"))["problems"]
    )
