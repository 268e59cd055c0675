"""Training with `upload:` ends on the hub, whatever the hub does meanwhile; and nothing waits for it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import CheckFailed, MyPTError
from mypt.recipe import parse_recipe
from mypt.training.callbacks.upload import UploadCallback
from mypt.training.run import train
from mypt.yaml12 import dump_yaml
from tests.hub import TOKEN
from tests.processes import ROOT, Command


@pytest.fixture
def steps(logged_in):
    """steps("me/name"): the titles of the commits to a model."""
    return lambda name: [message for place, _, message, _ in logged_in.commits if place == name]


def test_from_text_to_the_hub_and_again_on_a_resume(recipe_for, corpora, logged_in, steps, capsys):
    content = recipe_for(upload={"uri": "hf://me/text@trained"}, tokenizer={"name": "char"})
    content["data"] = {"train": str(corpora / "domain.txt"), "block_size": 32}
    run = train(parse_recipe(content))
    there = logged_in.models["me/text"]["trained"]
    assert there["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert {"README.md", "tokenizer.json", "recipe.yaml", "coverage.json", "modeling_mypt.py"} <= {*there}
    assert not any(name.endswith((".pt", ".pth", ".bin")) or "state" in name for name in there)
    assert steps("me/text")[-1] == "Finished run" and steps("me/text")[0] == "Step 4"
    assert "me/text" in logged_in.private and {*logged_in.models["me/text"]["main"]} == {".gitattributes"}
    printed = capsys.readouterr()
    assert "uploaded checkpoint-4 to hf://me/text@trained" in printed.out and f"uploaded {run}" in printed.out
    kept = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert TOKEN not in printed.out + printed.err and not any(
        TOKEN.encode() in data for data in [*kept, *there.values()]
    )
    before = logged_in.commits[:]
    train(parse_recipe(content), resume=True)
    assert logged_in.commits == before, "what is there already is not sent again"
    content["training"]["max_steps"] = 16
    train(parse_recipe(content), resume=True)
    assert steps("me/text")[-2:] in (["Step 16", "Finished run"], ["Step 12", "Finished run"])
    assert logged_in.models["me/text"]["trained"]["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_only_the_finished_run_where_the_recipe_says_so(recipe_for, logged_in, steps):
    train(parse_recipe(recipe_for(upload={"uri": "hf://me/once", "every_save": False, "private": False})))
    assert steps("me/once") == ["Finished run"] and "me/once" not in logged_in.private


@pytest.mark.plots
def test_a_failing_hub_stops_no_training_and_a_failed_end_names_the_command(recipe_for, logged_in, weights, capsys):
    content = recipe_for(upload={"uri": "hf://me/fails"})
    logged_in.failing = 1_000
    with pytest.raises(
        CheckFailed, match=r"not on the hub \(.*status 500.*\); run `mypt upload .*run hf://me/fails --pr"
    ):
        train(parse_recipe(content))
    logged_in.failing = 0
    printed = capsys.readouterr().out
    assert (
        "checkpoint-4 was not uploaded" in printed
        and "training continues" in printed
        and "trained to step 12" in printed
    )
    run = content["training"]["output_dir"]
    assert json.loads(Path(run, "result.json").read_text())["reason"] == "upload"
    assert weights(run) and not any(place == "me/fails" for place, *_ in logged_in.commits)
    train(parse_recipe(content), resume=True)  # the same as the command that was named
    assert {*logged_in.models["me/fails"]["main"]} >= {"model.safetensors", "forgetting.json", "loss.png"}


def test_a_run_that_is_killed_while_it_is_sent_does_not_count_as_sent(recipe_for, logged_in, tmp_path):
    content = recipe_for(upload={"uri": "hf://me/killed", "every_save": False})
    content["training"]["seed"] = 7  # weights that the hub does not have yet
    (tmp_path / "recipe.yaml").write_text(dump_yaml(content))
    logged_in.requests.clear()
    logged_in.storing.clear()
    process = Command(["train", tmp_path / "recipe.yaml"], env=logged_in.environment(tmp_path))
    while not any(method == "PUT" for method, _ in logged_in.requests):
        assert process.poll() is None, process.output()
        time.sleep(0.01)
    process.kill()
    logged_in.storing.set()
    result = Path(content["training"]["output_dir"], "result.json")
    ended = json.loads(result.read_text())
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("completed", "upload", 1)
    assert not any(place == "me/killed" for place, *_ in logged_in.commits)
    train(parse_recipe(content), resume=True)
    assert json.loads(result.read_text())["reason"] == "max_steps"
    assert "model.safetensors" in logged_in.models["me/killed"]["main"]


@pytest.mark.parametrize(
    ("uri", "token", "words"),
    [
        ("hf://me/early", "hf_wrong", "the hub refuses the token"),
        ("hf://you/early", TOKEN, "may not write there"),
        ("ftp://host/early", TOKEN, "give hf://user/name"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_made(
    recipe_for, logged_in, monkeypatch, tmp_path, uri, token, words
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MyPTError, match=words):
        train(parse_recipe(recipe_for(upload={"uri": uri})))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run(tmp_path):
    """A folder with a model as a run leaves it, and three checkpoints with other weights each."""
    for seed, name in enumerate(("checkpoint-4", "checkpoint-8", "checkpoint-12", "")):
        torch.manual_seed(seed)
        config = MyPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        MyPTForCausalLM(config).save_pretrained(tmp_path / "run" / name)
    return tmp_path / "run"


def test_saves_do_not_wait_and_of_those_in_line_the_newest_is_sent(run, logged_in, steps):
    callback = UploadCallback("hf://me/line")
    callback.connect()
    logged_in.open.clear()
    for step in (4, 8, 12):
        state = SimpleNamespace(is_world_process_zero=True, global_step=step)
        callback.on_save(SimpleNamespace(output_dir=str(run)), state, None)  # returns, though the hub answers nothing
        while not any("/commit/" in path and "me/line" in path for _, path in logged_in.requests):
            time.sleep(0.01)  # the first is under way
    assert steps("me/line") == []
    logged_in.open.set()
    while steps("me/line") != ["Step 4", "Step 12"]:
        time.sleep(0.01)
    other = SimpleNamespace(is_world_process_zero=False, global_step=4)
    callback.on_save(SimpleNamespace(output_dir=str(run)), other, None)
    callback.finish(run)
    assert steps("me/line") == ["Step 4", "Step 12", "Finished run"]


def test_a_checkpoint_that_trainer_removes_is_sent_all_the_same(run, logged_in, steps):
    callback = UploadCallback("hf://me/rotated")
    callback.connect()
    logged_in.open.clear()
    weights = {}
    for step in (4, 8):
        checkpoint = run / f"checkpoint-{step}"
        weights[step] = (checkpoint / "model.safetensors").read_bytes()
        state = SimpleNamespace(is_world_process_zero=True, global_step=step)
        callback.on_save(SimpleNamespace(output_dir=str(run)), state, None)
        while not any("/commit/" in path and "me/rotated" in path for _, path in logged_in.requests):
            time.sleep(0.01)
        shutil.rmtree(checkpoint)
    logged_in.open.set()
    while steps("me/rotated") != ["Step 4", "Step 8"]:
        time.sleep(0.01)
    there = logged_in.models["me/rotated"]["main"]
    assert there["model.safetensors"] == weights[8] != weights[4]
    assert {"README.md", "config.json", "modeling_mypt.py"} <= {*there}
    callback.finish(run)
    assert not (run / ".upload").exists()


def test_an_upload_under_way_does_not_hold_up_the_end_of_the_process(logged_in, tmp_path):
    """The interpreter waits for the threads of pools, which the library would send several large files with."""
    config = MyPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    MyPTForCausalLM(config).save_pretrained(tmp_path / "checkpoint-4", max_shard_size="10KB")
    callback = UploadCallback("hf://me/shards")
    callback.connect()
    logged_in.storing.clear()
    logged_in.requests.clear()
    before = {*threading.enumerate()}  # of other tests, maybe
    state = SimpleNamespace(is_world_process_zero=True, global_step=4)
    callback.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    while not any(method == "PUT" for method, _ in logged_in.requests):
        time.sleep(0.01)
    new = {*threading.enumerate()} - before
    sending = [thread for thread in new if thread.name.startswith(("upload", "ThreadPool"))]
    assert [thread.name for thread in sending] == ["upload"] and sending[0].daemon
    logged_in.storing.set()
    sending[0].join(30)
    assert len([name for name in logged_in.models["me/shards"]["main"] if name.endswith(".safetensors")]) > 1


@pytest.mark.slow
def test_two_processes_end_together_where_the_token_is_wrong(recipe_for, logged_in, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe_for(upload={"uri": "hf://me/two"})))
    config = str(ROOT / "recipes" / "accelerate" / "cpu_2.yaml")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", config,
        "--main_process_port", "0", str(ROOT / "scripts/train.py"), str(tmp_path / "recipe.yaml"),
    ]  # fmt: skip
    environment = os.environ | logged_in.environment(tmp_path, token="hf_wrong")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert done.stderr.count("mypt train: the hub refuses the token") == 2 and "[rank1]" not in done.stderr
