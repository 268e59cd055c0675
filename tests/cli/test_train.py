"""`mypt train` as a user types it: exit codes, overrides, one line for bad input."""

import json

import pytest

from mypt.cli.main import build_parser, main
from mypt.cli.train import sort_out
from mypt.yaml12 import dump_yaml
from tests.processes import ROOT, Command


@pytest.fixture
def recipe(make_shards, tmp_path):
    """A recipe file for a two-layer model on numbered tokens with a real tokenizer."""
    from mypt.preparation.prepare import prepare_dataset

    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text that counts its own lines" for number in range(400)))
    data = tmp_path / "data"
    prepare_dataset([str(text)], data, tokenizer="char", val_split="tail", progress=False)
    content = {
        "model": {"preset": "modern-nano", "hidden_size": 48, "num_hidden_layers": 1},
        "data": {"train": str(data), "block_size": 16},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 4, "per_device_train_batch_size": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(content))
    return path


def test_train_then_resume_then_repeat(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--yes"]) == 0
    printed = capsys.readouterr().out
    first, second = printed.splitlines()[:2]
    assert first.startswith("optimizer: adamw (auto: ") and second == "4 steps: training.max_steps"
    assert "step 0: data " in printed and "trained to step 4" in printed
    assert main(["train", str(recipe), "--yes"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", str(recipe), "--resume"]) == 0
    assert "already complete: step 4 of 4" in capsys.readouterr().out


def test_overrides_win_over_the_recipe(recipe, tmp_path):
    out = tmp_path / "other"
    overrides = [f"--training.output_dir={out}", "--training.max_steps=2", "--optimizer.name=adamw"]
    assert main(["train", str(recipe), "--yes", *overrides]) == 0
    assert (out / "checkpoint-2").is_dir()
    assert json.loads((out / "environment.json").read_text())["identity"]["optimizer"] == "adamw"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such.yaml"], "recipe no-such.yaml does not exist"),
        (["RECIPE", "--training.learning_rte=1"], "did you mean 'learning_rate'?"),
        (["RECIPE", "--resum"], "--section.key=value"),
        (["RECIPE", "--data.train=nowhere.txt"], "data source nowhere.txt does not exist"),
        (["RECIPE", "--training.output_dir=null"], "training.output_dir"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(recipe, arguments, words, capsys):
    assert main(["train", *[str(recipe) if word == "RECIPE" else word for word in arguments]]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("mypt train: ") and error.count("\n") <= 2


def test_the_value_of_resume_may_be_left_out_and_stand_anywhere():
    weights = "--data.train={a: 0.5, b: 0.5}"
    forms = {
        ("r.yaml",): ("r.yaml", False, []),
        ("r.yaml", "--resume"): ("r.yaml", True, []),
        ("--resume", "r.yaml"): ("r.yaml", True, []),
        ("r.yaml", "--resume", "--training.max_steps=5"): ("r.yaml", True, ["--training.max_steps=5"]),
        ("r.yaml", "--resume", weights, "--yes"): ("r.yaml", True, [weights]),
        ("--resume", weights, "r.yaml"): ("r.yaml", True, [weights]),
        ("r.yaml", "--resume", "checkpoint-2", "--a.b=1"): ("r.yaml", "checkpoint-2", ["--a.b=1"]),
        ("--resume", "runs/x/checkpoint-2", "r.yaml"): ("r.yaml", "runs/x/checkpoint-2", []),
        ("r.yaml", "--resume=checkpoint-2"): ("r.yaml", "checkpoint-2", []),
    }
    for words, expected in forms.items():
        args, rest = build_parser().parse_known_args(["train", *words])
        args.overrides = rest
        sort_out(args)
        assert (args.recipe, args.resume, args.overrides) == expected, words
    assert main(["train", "--resume"]) == 2


def test_scripts_train_is_the_same_command(recipe, tmp_path):
    answer = tmp_path / "answer.txt"
    for word, code in {"n": 1, "y": 0}.items():
        answer.write_text(f"{word}\n")
        process = Command([recipe], script=ROOT / "scripts" / "train.py", apart=True, stdin=answer)
        assert process.wait() == code, process.output() + process.errors()
        assert ("the answer was 'n'" in process.errors()) == (word == "n")
        assert bool(list((tmp_path / "run").glob("checkpoint-*"))) == (word == "y")
