"""A run that uploads to an object store continues on an empty machine, bit for bit, whatever happened before."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import TrainerState

from mypt.checkpoints.state import STATE_NAME
from mypt.cli.main import main
from mypt.errors import CheckFailed, CheckpointError, RecipeError
from mypt.recipe import load_recipe, parse_recipe
from mypt.remote.place import Place
from mypt.storage.manifest import MANIFEST_NAME
from mypt.storage.uri import parse_uri
from mypt.training.callbacks.upload import UploadCallback
from mypt.training.run import train
from mypt.yaml12 import dump_yaml
from tests.processes import ROOT, WAIT, Command
from tests.stores import SECRET, Wire, s3_environment
from tests.training.test_kill import wait_for


def whole_checkpoints(uri: str) -> list[str]:
    return sorted(
        name.partition("/")[0] for name in Place.parse(uri).files() if name.endswith(MANIFEST_NAME) and "check" in name
    )


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_emptied_folder_continues_from_the_store(recipe_for, whole_run, weights, s3, tmp_path, capsys):
    uri, content = f"{s3}/runs/law", recipe_for(upload={"uri": f"{s3}/runs/law"})
    content["training"]["max_steps"] = 8
    run = train(parse_recipe(content))
    printed = capsys.readouterr().out
    assert f"uploaded {run} to {uri} (manifest " in printed
    assert whole_checkpoints(uri)[-1] == "checkpoint-8"  # an earlier one may have been passed over
    assert {"model.safetensors", "best/model.safetensors", "README.md"} <= {*Place.parse(uri).files()}
    shutil.rmtree(run)  # another machine
    content["training"]["max_steps"] = 12
    train(parse_recipe(content), resume=True)
    printed = capsys.readouterr().out
    assert f"fetched checkpoint-8 from {uri}" in printed and f"resuming from {run / 'checkpoint-8'}" in printed
    assert equal(weights(run), weights(whole_run)) and equal(weights(run / "best"), weights(whole_run / "best"))
    names = ("optimizer.pt", "rng_state.pth")
    assert all(
        (run / "checkpoint-12" / n).read_bytes() == (whole_run / "checkpoint-12" / n).read_bytes() for n in names
    )
    assert "checkpoint-12" in whole_checkpoints(uri)
    kept = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    place = Place.parse(uri)
    sent = [place.read(name) for name in place.files()]
    assert not any(SECRET.encode() in data for data in [*kept, *sent]) and SECRET not in printed


def test_a_killed_machine_and_another_one(recipe_for, whole_run, weights, s3, tmp_path):
    """kill -9 as soon as the store holds a whole checkpoint of a run that goes on; its folder is lost."""
    content = recipe_for(upload={"uri": f"{s3}/killed"})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(content))
    process = Command(["train", tmp_path / "recipe.yaml"])
    while not whole_checkpoints(f"{s3}/killed") and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    shutil.rmtree(content["training"]["output_dir"])
    process = Command(["train", tmp_path / "recipe.yaml", "--resume"])
    assert process.wait() == 0, process.output()
    assert f"from {s3}/killed" in process.output()
    assert equal(weights(tmp_path / "run"), weights(whole_run))


def test_a_store_that_dies_stops_no_training_and_the_exit_code_says_so(
    recipe_for, whole_run, weights, s3, s3_wire, tmp_path, capsys
):
    content = recipe_for(upload={"uri": f"{s3}/dies"})
    s3_wire.cut = 300_000
    with pytest.raises(CheckFailed, match=r"run but not whole in the store \(.*\); run `mypt upload \S+run \S+/dies`"):
        train(parse_recipe(content))
    run = Path(content["training"]["output_dir"])
    printed = capsys.readouterr().out
    assert "was not uploaded" in printed and "training continues" in printed and SECRET not in printed
    assert json.loads((run / "result.json").read_text())["reason"] == "upload"
    assert equal(weights(run), weights(whole_run)) and not (run / ".upload").exists()
    s3_wire.cut = None
    train(parse_recipe(content), resume=True)  # the same as the command that was named
    assert "checkpoint-12" in whole_checkpoints(f"{s3}/dies")
    assert parse_uri(f"{s3}/dies").download(tmp_path / "copy").files["model.safetensors"]


def test_half_an_upload_is_never_resumed_from(whole_run, bucket, tmp_path):
    store = parse_uri(f"{bucket}/half")
    for step in (4, 8):
        folder = store.below(f"checkpoint-{step}")
        folder.send(folder.outgoing(whole_run / f"checkpoint-{step}"), progress=False)
    (store.place / "checkpoint-8").remove([MANIFEST_NAME])
    assert store.restore(tmp_path / "run")[0] == tmp_path / "run" / "checkpoint-4"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("checkpoint-4", "environment.json", "recipe.yaml", "forgetting_baseline.safetensors")
    }
    assert store.restore(tmp_path / "run") == []


def test_a_place_of_another_run_and_a_start_without_resume_are_refused(recipe_for, bucket, tmp_path):
    content = recipe_for(upload={"uri": f"{bucket}/taken", "keep": 1})
    content["training"]["max_steps"] = 4
    train(parse_recipe(content))
    assert whole_checkpoints(f"{bucket}/taken") == ["checkpoint-4"]
    before = Place.parse(f"{bucket}/taken").find()
    content["training"]["output_dir"] = str(tmp_path / "again")
    with pytest.raises(CheckpointError, match="taken already holds checkpoints of this run; add --resume to continue"):
        train(parse_recipe(content))
    content["training"]["seed"] = 7
    for resume in (False, True):
        content["training"]["output_dir"] = str(tmp_path / f"other-{resume}")
        with pytest.raises(CheckpointError, match=r"/taken holds another run .* choose another .*upload\.uri"):
            train(parse_recipe(content), resume=resume)
    assert Place.parse(f"{bucket}/taken").find() == before
    content["upload"]["uri"] += "-own"  # corrected: nothing of the other run was left
    train(parse_recipe(content), resume=True)
    assert whole_checkpoints(f"{bucket}/taken-own") == ["checkpoint-4"]


def test_a_best_checkpoint_of_another_run_is_not_fetched(whole_run, finished_run, tmp_path, capsys):
    uri = f"file://{tmp_path / 'store'}"
    store = parse_uri(uri)
    newest = shutil.copytree(whole_run, tmp_path / "whole") / "checkpoint-12"
    state = json.loads((newest / STATE_NAME).read_text())
    state["best_model_checkpoint"] = "run/checkpoint-4"
    (newest / STATE_NAME).write_text(json.dumps(state))
    for folder in (newest, finished_run / "checkpoint-4"):
        store.below(folder.name).send(store.outgoing(folder), progress=False)
    assert tmp_path / "run" / "checkpoint-4" not in store.restore(tmp_path / "run")
    assert "checkpoint-4 is not of the run of checkpoint-12" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoint-4").exists()


def test_an_upload_of_a_run_does_not_mix_with_another_one(whole_run, finished_run, tmp_path, capsys):
    uri = f"file://{tmp_path / 'store'}"
    assert main(["upload", str(finished_run), uri]) == 0
    before = Place.parse(uri).find()
    assert main(["upload", str(whole_run), uri]) == 2
    assert f"{uri} holds another run or another model; choose another URI" in capsys.readouterr().err
    assert Place.parse(uri).find() == before
    assert main(["upload", str(finished_run), uri]) == 0


def test_a_local_folder_that_is_ahead_of_the_store_is_not_set_back(recipe_for, whole_copy, s3, capsys):
    store = parse_uri(f"{s3}/behind")
    store.below("checkpoint-4").send(store.outgoing(whole_copy / "checkpoint-4"), progress=False)
    train(parse_recipe(recipe_for(upload={"uri": f"{s3}/behind"})), resume=True)
    printed = capsys.readouterr().out
    assert "fetched" not in printed and "already complete" in printed
    assert "checkpoint-12" in whole_checkpoints(f"{s3}/behind")


def test_a_resume_from_an_earlier_checkpoint_gives_up_the_later_ones_in_the_store(
    recipe_for, whole_copy, tmp_path, capsys
):
    uri = f"file://{tmp_path / 'store'}"
    store = parse_uri(uri)
    for step in (4, 8, 12):
        store.below(f"checkpoint-{step}").send(store.outgoing(whole_copy / f"checkpoint-{step}"), progress=False)
    shutil.rmtree(whole_copy / "checkpoint-12")  # the store alone has it
    content = recipe_for(upload={"uri": uri})
    content["training"]["max_steps"] = 8
    train(parse_recipe(content), resume="checkpoint-4")
    assert f"checkpoint-8, checkpoint-12: removed from {uri}" in capsys.readouterr().out
    assert whole_checkpoints(uri) == ["checkpoint-4", "checkpoint-8"]


def test_a_best_checkpoint_that_cannot_be_sent_is_named_and_older_ones_still_go(whole_copy, tmp_path, capsys):
    callback = UploadCallback(f"file://{tmp_path / 'store'}", keep=1)
    store = callback.store
    store.below("checkpoint-8").send(store.outgoing(whole_copy / "checkpoint-8"), progress=False)
    (whole_copy / "checkpoint-4" / "optimizer.pt").unlink()
    state = TrainerState(global_step=12, best_model_checkpoint=str(whole_copy / "checkpoint-4"))
    callback.on_save(SimpleNamespace(output_dir=str(whole_copy)), state, None)
    callback.wait(whole_copy / "checkpoint-12")
    printed = capsys.readouterr().out
    assert "uploaded checkpoint-12 to" in printed and "checkpoint-4 was not uploaded" in printed
    assert "checkpoint-12 was not uploaded" not in printed
    assert whole_checkpoints(callback.uri) == ["checkpoint-12"]


@pytest.mark.slow
def test_a_signal_waits_for_the_last_upload(recipe_for, s3, tmp_path):
    content = recipe_for(upload={"uri": f"{s3}/signal"})
    content["training"] |= {"max_steps": 4_000, "save_steps": 2_000, "eval_steps": 2_000}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(content))
    process = Command(["train", tmp_path / "recipe.yaml"])
    wait_for(tmp_path / "run", 2, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.output()
    step = next(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert f"uploaded {step} to {s3}/signal" in process.output() and whole_checkpoints(f"{s3}/signal") == [step]


def test_the_recipe_says_what_a_kind_of_store_cannot_do(tmp_path):
    for section, words in (
        ({"uri": "hf://me/x", "keep": 2}, "upload.keep is 2, .* whose commits keep every upload: leave it out"),
        ({"uri": "s3://b/x", "private": True}, "upload.private is true, and the rules of a bucket"),
        ({"uri": "s3://b/x", "keep": 0}, "upload.keep is 0, expected 1 or more"),
    ):
        with pytest.raises(RecipeError, match=words):
            parse_recipe({"upload": section})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(parse_recipe({"upload": {"uri": "s3://b/x"}}).to_dict()))
    assert load_recipe(tmp_path / "recipe.yaml").upload.uri == "s3://b/x"


class Launch:
    """`accelerate launch --config_file cpu_2.yaml scripts/train.py ARGUMENTS`, as a user starts it."""

    def __init__(self, arguments: list, log: Path, env: dict[str, str]):
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file",
            str(ROOT / "recipes" / "accelerate" / "cpu_2.yaml"), "--main_process_port", "0",
            str(ROOT / "scripts" / "train.py"), *map(str, arguments),
        ]  # fmt: skip
        self.log, environment = log, {**os.environ, "OMP_NUM_THREADS": "1", **env}
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait(WAIT)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> int:
        """SIGKILL of the launcher and all that it started, at once; returns how many processes there were."""
        launcher = psutil.Process(self._process.pid)
        everyone = [launcher, *launcher.children(recursive=True)]
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(everyone, timeout=WAIT)
        return len(everyone)


@pytest.mark.slow
def test_two_processes_are_killed_in_an_upload_and_two_continue_elsewhere(
    recipe_for, corpora, weights, s3, s3_server, tmp_path
):
    """kill -9 of a launch of two while a checkpoint goes up; its folder and its copies of the data are lost, too.

    The whole run reads the data from this disk, the other from the store.
    """
    content = recipe_for()
    content["training"] |= {"max_steps": 200, "save_steps": 20, "eval_steps": 20, "per_device_train_batch_size": 2}
    content["training"]["output_dir"] = str(tmp_path / "whole")
    (tmp_path / "whole.yaml").write_text(dump_yaml(content))
    whole = Launch([tmp_path / "whole.yaml"], tmp_path / "whole.log", {})
    assert whole.wait() == 0, whole.output()

    for name in ("domain", "general"):
        assert main(["upload", str(corpora / name), f"{s3}/data/{name}"]) == 0
    uri, run, cache = f"{s3}/two", tmp_path / "run", tmp_path / "cache"
    content["data"]["train"] = {f"{s3}/data/domain": 0.75, f"{s3}/data/general": 0.25}
    content["data"]["eval"] = {name: f"{s3}/data/{name}" for name in ("domain", "general")}
    content["data"]["cache_dir"] = str(cache)
    content["training"]["output_dir"] = str(run)
    content["upload"] = {"uri": uri}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(content))
    wire = Wire(s3_server)
    try:
        first = Launch([tmp_path / "recipe.yaml"], tmp_path / "first.log", s3_environment(wire.port))
        while not whole_checkpoints(uri) and first.poll() is None:
            time.sleep(0.05)
        wire.hold = wire.bytes + 20_000  # in the middle of the next one
        while not wire.reached.wait(0.05):
            assert first.poll() is None, first.output()
        assert first.kill() >= 3  # a launcher and two that train
    finally:
        wire.close()
    found = whole_checkpoints(uri)
    assert found and "checkpoint-200" not in found, first.output()
    shutil.rmtree(run)
    shutil.rmtree(cache)

    second = Launch([tmp_path / "recipe.yaml", "--resume"], tmp_path / "second.log", {})
    assert second.wait() == 0, second.output()
    newest = max(int(name.rpartition("-")[2]) for name in found)
    assert second.output().count(f"fetched checkpoint-{newest} from {uri}") == 1
    for name in ("", "best"):
        assert equal(weights(run / name), weights(tmp_path / "whole" / name)), name
    for name in ("optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"):
        files = [folder / "checkpoint-200" / name for folder in (run, tmp_path / "whole")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    assert "checkpoint-200" in whole_checkpoints(uri)
    for log in (first.output(), second.output()):
        assert SECRET not in log


@pytest.mark.slow
def test_two_processes_end_together_where_the_store_holds_another_run(recipe_for, finished_run, tmp_path):
    """The main process alone fetches and compares; the other one must not wait for it for ever."""
    uri = f"file://{tmp_path / 'store'}"
    assert main(["upload", str(finished_run), uri]) == 0
    before = Place.parse(uri).find()
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe_for(upload={"uri": uri})))
    for options in ((), ("--resume",)):
        launch = Launch([tmp_path / "recipe.yaml", *options], tmp_path / f"{len(options)}.log", {})
        assert launch.wait() != 0
        assert launch.output().count("mypt train: ") == 2 and "holds another run" in launch.output()
        assert "[rank1]" not in launch.output(), launch.output()
        left = [path.name for path in (tmp_path / "run").iterdir()] if (tmp_path / "run").exists() else []
        assert left == [], launch.output()
    assert Place.parse(uri).find() == before
