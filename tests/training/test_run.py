"""A whole run leaves what the contract names, and a resume gives the uninterrupted run, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from mypt.checkpoints.checksums import CHECKSUMS_NAME
from mypt.cli.main import main
from mypt.errors import CheckFailed, CheckpointError, DataError, FolderInUse, MyPTError, RecipeError, TokenizerError
from mypt.folders import LOCK_NAME
from mypt.recipe import load_recipe, parse_recipe, save_recipe
from mypt.training.build import build_trainer
from mypt.training.run import finish, train


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def losses(run: Path) -> list[dict]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # the last entry holds Trainer's mean over the steps of its own session
    return [{key: entry[key] for key in entry if key.endswith("loss")} for entry in entries[:-1]]


def result(run) -> dict:
    return json.loads(Path(run, "result.json").read_text())


def ending(run) -> tuple:
    return tuple(result(run)[name] for name in ("state", "reason", "exit_code"))


class CountsSteps(TrainerCallback):
    """Counts steps, and reads what MyPT's own callbacks have logged before it is asked."""

    def __init__(self):
        self.steps, self.speeds = 0, []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.speeds += ["throughput/tokens_per_second" in logs] * ("loss" in logs)


def test_callbacks_of_the_user_come_after_mypt_s_own(recipe_for):
    own = CountsSteps()
    finish(build_trainer(parse_recipe(recipe_for(training={"max_steps": 2})), callbacks=[own]))
    assert own.steps == 2 and own.speeds and all(own.speeds)


@pytest.mark.plots
def test_the_run_folder_holds_what_the_contract_names(recipe_for):
    run = train(parse_recipe(recipe_for()))
    for name in (
        "model.safetensors", "config.json", "tokenizer.json", "recipe.yaml", "metrics.jsonl", "loss.png",
        "forgetting.json", "forgetting.png", "coverage.json", "diagnosis.json", "environment.json",
        "best/model.safetensors", "checkpoint-12/trainer_state.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert not list(run.rglob("training_args.bin")), "Trainer's pickle can hold a token"
    ledger = json.loads((run / "coverage.json").read_text())
    assert ledger["next_sample"] == 48
    assert [entry["samples"] for entry in ledger["seen"]] == [36, 12]
    history = json.loads((run / "forgetting.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 4, 8, 12]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0, "the baseline is logged"
    best = min(history[1:], key=lambda entry: entry["constrained_loss"])
    state = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best["step"]
    found = result(run)
    assert [found[name] for name in ("state", "reason", "exit_code", "step", "max_steps", "best_step")] == [
        "completed", "max_steps", 0, 12, 12, best["step"]
    ]  # fmt: skip
    assert found["objective"] == best["constrained_loss"] and found["seconds"] > 0
    assert found["message"].startswith("trained to step 12 in")
    train(parse_recipe(recipe_for()), resume=True)
    assert result(run) == found, "nothing was left to train"


def test_two_runs_of_one_recipe_are_equal(whole_run, weights, tmp_path):
    again = load_recipe(whole_run)  # the resolved recipe repeats the run
    again.training["output_dir"] = str(tmp_path / "again")
    assert equal(weights(whole_run), weights(train(again)))


BF16 = {"bf16": True, "use_cpu": True}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"gradient_accumulation_steps": 2}, "optimizer": {"name": "adamw"}},
        {"training": {"dataloader_num_workers": 2}, "optimizer": {"schedule": "wsd"}},
        {"training": BF16},
        {"training": {"optim": "adamw_torch"}},
        {
            "training": BF16 | {"gradient_accumulation_steps": 2},
            "optimizer": {"name": "adamw", "schedule": "linear"},
            "data": {"curriculum": {"start_length": 8, "steps": 10}},
        },
        {
            "training": {"gradient_accumulation_steps": 2},
            "optimizer": {"schedule": "cosine"},
            "data": {"curriculum": {"start_length": 8, "steps": 10}},
        },
    ],
    ids=["muon", "accumulation-adamw", "workers-wsd", "bf16", "hf-optim", "adamw-all", "muon-all"],
)
def test_a_resume_is_the_uninterrupted_run(recipe_for, weights, tmp_path, sections, rewind):
    """All with dropout and a mixture. LoRA: test_lora.py, streamed text: test_streaming.py."""
    content = recipe_for(**sections)
    whole = train(parse_recipe(content))
    content["training"]["output_dir"] = str(rewind(whole, tmp_path / "resumed", step=8))
    resumed = train(parse_recipe(content), resume=True)
    assert equal(weights(whole), weights(resumed))
    assert losses(whole) == losses(resumed)
    for name in ("coverage.json", "forgetting.json"):
        assert json.loads((whole / name).read_text()) == json.loads((resumed / name).read_text())


def test_another_micro_batch_is_the_same_run_to_rounding(recipe_for, weights, tmp_path, rewind):
    content = recipe_for(model={"hidden_dropout": 0.0})
    whole = train(parse_recipe(content))
    run = rewind(whole, tmp_path / "resumed", step=4)
    content["training"] |= {"output_dir": str(run), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    train(parse_recipe(content), resume=True)
    for left, right in zip(losses(whole), losses(run), strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    left, right = weights(whole), weights(run)
    assert max((left[name] - right[name]).abs().max().item() for name in left) < 1e-5
    ledgers = [json.loads((path / "coverage.json").read_text()) for path in (whole, run)]
    assert ledgers[0]["seen"] == ledgers[1]["seen"]


def test_resuming_a_finished_run_trains_nothing(recipe_for, whole_copy, capsys):
    content, run = recipe_for(), whole_copy
    before = {path: path.stat().st_mtime_ns for path in run.rglob("checkpoint-*/*")}
    ledger = json.loads((run / "coverage.json").read_text())
    for name in ("model.safetensors", "coverage.json"):  # killed right after the last save
        (run / name).unlink()
    train(parse_recipe(content), resume=True)
    assert "already complete: step 12 of 12" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("checkpoint-*/*")}
    assert (run / "model.safetensors").is_file()
    assert json.loads((run / "coverage.json").read_text()) == ledger


def test_a_longer_run_goes_on_and_records_what_changed(recipe_for, whole_copy, capsys):
    content, run = recipe_for(), whole_copy
    content["training"] |= {"max_steps": 16, "learning_rate": 1e-3, "per_device_train_batch_size": 8}
    train(parse_recipe(content), resume=True)
    ledger = json.loads((run / "coverage.json").read_text())
    assert ledger["next_sample"] == 12 * 4 + 4 * 8
    changes = ledger["events"][0]["changes"]
    assert ledger["events"][0]["sample"] == 48
    assert changes["max_steps"] == [12, 16] and changes["learning_rate"] == [0.003, 0.001]
    assert changes["per_device_train_batch_size"] == [4, 8]
    assert "changed from step 12 on: learning_rate 0.003 -> 0.001" in capsys.readouterr().out
    rates = [
        entry["learning_rate"]
        for entry in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "learning_rate" in entry and entry["step"] > 12
    ]
    assert rates and all(rate == pytest.approx(1e-3) for rate in rates)


def test_the_lock_on_data_seed_block_and_model(recipe_for, whole_copy, corpora):
    base = recipe_for()
    changed = {
        "seed": base | {"training": base["training"] | {"seed": 7}},
        "block_size": base | {"data": base["data"] | {"block_size": 16}},
        "data": base | {"data": base["data"] | {"train": str(corpora / "domain")}},
        "model": base | {"model": base["model"] | {"num_hidden_layers": 1}},
        "optimizer": base | {"optimizer": {"name": "adamw", "schedule": "constant"}},
    }
    for what, content in changed.items():
        with pytest.raises(CheckpointError, match=f"holds another run.*{what}"):
            train(parse_recipe(content), resume=True)
    with pytest.raises(CheckpointError, match="add --resume"):
        train(parse_recipe(base))


def test_a_half_written_checkpoint_is_skipped_with_a_word(recipe_for, whole_run, weights, tmp_path, capsys, rewind):
    content = recipe_for()
    run = rewind(whole_run, tmp_path / "broken", step=12)
    (run / "checkpoint-12" / "trainer_state.json").unlink()
    half = run / "checkpoint-8" / "optimizer.pt"
    half.write_bytes(half.read_bytes()[:1000])
    content["training"]["output_dir"] = str(run)
    train(parse_recipe(content), resume=True)
    printed = capsys.readouterr().out
    assert "skipping" in printed and "optimizer.pt" in printed and "resuming from" in printed
    assert equal(weights(whole_run), weights(run))
    assert (run / "incomplete-checkpoint-12").is_dir()


def test_what_was_set_aside_goes_once_a_complete_checkpoint_has_come_as_far(recipe_for, whole_copy):
    content, run = recipe_for(), whole_copy
    for name in ("incomplete-checkpoint-8", "incomplete-checkpoint-12", "incomplete-checkpoint-16"):
        (run / name).mkdir()
    content["training"]["max_steps"] = 16
    train(parse_recipe(content), resume=True)  # from step 12
    assert [path.name for path in run.glob("incomplete-*")] == ["incomplete-checkpoint-16"]


def test_init_from_adapts_a_model_and_its_baseline_is_that_model(recipe_for, corpora, tmp_path):
    base = recipe_for(data=recipe_for()["data"] | {"train": str(corpora / "general")})
    first = train(parse_recipe(base))
    final = json.loads((first / "forgetting.json").read_text())["history"][-1]["sets"]
    content = recipe_for(forgetting={"eval_windows": 20, "target": "domain", "guard": ["general"]})
    content["model"] = {"init_from": str(first)}
    content["training"]["output_dir"] = str(tmp_path / "adapted")
    adapted = train(parse_recipe(content))
    baseline = json.loads((adapted / "forgetting.json").read_text())["history"][0]["sets"]
    for name in ("domain", "general"):
        assert baseline[name]["loss"] == pytest.approx(final[name]["loss"], abs=1e-6)
        assert baseline[name]["delta"] == 0


@pytest.fixture(scope="module")
def general_run(tiny_recipe, corpora, tmp_path_factory) -> Path:
    """A model that has learned enough general text to forget some of it."""
    content = tiny_recipe(tmp_path_factory.mktemp("general") / "run", data={"train": str(corpora / "general")})
    content["training"] |= {"max_steps": 60, "eval_steps": 60, "save_steps": 60}
    return train(parse_recipe(content))


@pytest.mark.parametrize("preset", [False, True])
def test_when_no_step_kept_the_guards_the_least_bad_one_is_best_and_the_exit_says_so(
    recipe_for, general_run, corpora, tmp_path, preset
):
    content = recipe_for(data=recipe_for()["data"] | {"train": str(corpora / "domain")})
    if not preset:  # whose start is random weights, towards which nobody would interpolate
        content["model"] = {"init_from": str(general_run)}
        content["forgetting"]["interpolate"] = "off"
    rate = 3.0 if preset else 0.1
    content["training"] |= {"output_dir": str(tmp_path / "adapted"), "learning_rate": rate}
    with pytest.raises(CheckFailed, match="no saved step kept every guarded set"):
        train(parse_recipe(content))
    assert ending(tmp_path / "adapted") == ("completed", "infeasible", 1)
    history = json.loads((tmp_path / "adapted" / "forgetting.json").read_text())["history"]
    least = min(history[1:], key=lambda entry: entry["sets"]["general"]["delta"])
    best = (tmp_path / "adapted" / "best" / "model.safetensors").read_bytes()
    assert best == (tmp_path / "adapted" / f"checkpoint-{least['step']}" / "model.safetensors").read_bytes()
    with pytest.raises(CheckFailed):  # asking again gives the same answer
        train(parse_recipe(content), resume=True)


def test_a_text_file_is_prepared_into_the_run_first(recipe_for, corpora, tmp_path):
    content = recipe_for()
    content["data"] = {"train": str(corpora / "domain.txt"), "block_size": 32}
    content["tokenizer"] = {"name": "char"}
    content["training"]["max_steps"] = 4
    run = train(parse_recipe(content))
    assert (run / "data" / "dataset_metadata.json").is_file()
    metrics = (run / "metrics.jsonl").read_text()
    assert "eval_domain_loss" in metrics
    train(parse_recipe(content), resume=True)
    train(load_recipe(run), resume=True)  # from the run folder alone
    again = load_recipe(run)
    again.training["output_dir"] = str(tmp_path / "again")
    assert (train(again) / "data" / "dataset_metadata.json").is_file()


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"training": {"max_steps": 3}}, 3),
        ({"training": {"num_train_epochs": 0.01}}, 6),  # ceil(0.01 x 2253 samples / 4)
        ({"coverage": {"target": 0.01, "confirm": False}}, 6),  # ceil(0.01 x 72,112 / (4 x 32))
    ],
)
def test_the_length_follows_the_recipe(recipe_for, given, steps, capsys):
    content = recipe_for()
    del content["training"]["max_steps"]
    for name, values in given.items():
        content[name] = content.get(name, {}) | values
    run = train(parse_recipe(content))
    assert (run / f"checkpoint-{steps}").is_dir(), capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing(recipe_for):
    content = recipe_for()
    content["training"] |= {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 1}
    with pytest.raises(MyPTError, match=r"became (nan|inf).*--resume|the model is broken"):
        train(parse_recipe(content))
    assert not list(Path(content["training"]["output_dir"]).glob("checkpoint-*"))
    assert ending(content["training"]["output_dir"]) == ("failed", "diverged", 2)


def test_bad_input_is_one_clear_error(recipe_for, corpora, tmp_path):
    def refused(error, pattern, **sections):
        with pytest.raises(error, match=pattern):
            train(parse_recipe(recipe_for(**sections)))

    data = recipe_for()["data"]
    refused(DataError, "does not exist", data=data | {"train": str(tmp_path / "nowhere")})
    refused(DataError, "has one already; set tokenizer.name", data=data | {"train": str(corpora / "domain.txt")})
    refused(RecipeError, "longer than the model's 64 positions",
            data=data | {"block_size": 128}, model={"max_position_embeddings": 64})  # fmt: skip
    refused(MyPTError, "forgetting names the set 'nothing'", forgetting={"target": "nothing"})
    refused(RecipeError, "model.preset", model={"preset": "modern-tinny"})
    refused(RecipeError, "below the tokenizer's", model={"vocab_size": 5})
    refused(RecipeError, "keep one of them", optimizer={"name": "adamw"},
            training=recipe_for()["training"] | {"optim": "adamw_torch"})  # fmt: skip
    refused(RecipeError, "unknown optimizer.name 'no_such_optimizer'", optimizer={"name": "no_such_optimizer"})
    refused(RecipeError, "training:", training=recipe_for()["training"] | {"lr_scheduler_type": "no_such"})
    missing = recipe_for()
    missing["model"] = {"init_from": str(tmp_path / "no-model")}
    with pytest.raises(CheckpointError, match="neither a folder here nor a model"):
        train(parse_recipe(missing))
    short = recipe_for(data=data | {"block_size": 64_000})
    short["model"] |= {"max_position_embeddings": 64_000}
    with pytest.raises(DataError, match="block_size 64000 needs at least 64001 tokens"):
        train(parse_recipe(short))


def test_another_tokenizer_is_refused(recipe_for, whole_run, corpora, tmp_path):
    from mypt.preparation.prepare import prepare_dataset

    other = tmp_path / "other"
    prepare_dataset(
        [str(corpora / "domain.txt")], other, tokenizer="bpe", vocab_size=300, val_split="tail", progress=False
    )
    data = recipe_for()["data"] | {"train": {str(corpora / "domain"): 1, str(other): 1}}
    with pytest.raises(TokenizerError, match="different tokenizers"):
        train(parse_recipe(recipe_for(data=data)))
    content = recipe_for(data={"train": str(other), "eval": {"other": str(other)}, "block_size": 32})
    content["model"] = {"init_from": str(whole_run)}
    content["training"]["output_dir"] = str(tmp_path / "second")
    with pytest.raises(TokenizerError, match="different tokenizers"):
        train(parse_recipe(content))


def test_a_folder_of_somebody_else_is_refused(recipe_for, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    for name in ("checkpoint-5/model.safetensors", "tokenizer.json", "data/notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
        before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
        with pytest.raises(CheckpointError, match="was not made by mypt train, so nothing is written there"):
            train(parse_recipe(recipe_for()), resume=True)
        assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before
        shutil.rmtree(run)
    moved.mkdir()
    (moved / "slurm-7.out").write_text("queued")  # a scheduler's log is no obstacle
    run.symlink_to("moved")
    train(parse_recipe(recipe_for(training={"max_steps": 2})))
    assert (moved / "model.safetensors").is_file() and not (moved / LOCK_NAME).exists()
    (moved / "notes.txt").write_text("mine")  # in a folder of our own, it is left alone
    train(parse_recipe(recipe_for(training={"max_steps": 4})), resume=True)
    assert (moved / "notes.txt").read_text() == "mine" and (moved / "slurm-7.out").read_text() == "queued"


def test_a_folder_has_one_run_and_its_process_is_named(recipe_for, tmp_path):
    hold = (
        "import sys; from mypt.folders import WriterLock; WriterLock(sys.argv[1]).acquire(); print(); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(FolderInUse, match=f"another process is writing {tmp_path}/run: pid {other.pid} on "):
        train(parse_recipe(recipe_for()))
    other.kill()
    other.communicate()
    trainer = build_trainer(parse_recipe(recipe_for()))  # the killed process has left its file
    assert json.loads((tmp_path / "run" / LOCK_NAME).read_text())["pid"] == os.getpid()
    again = build_trainer(parse_recipe(recipe_for()))  # one process, one writer
    trainer.give_back()
    assert (tmp_path / "run" / LOCK_NAME).exists()
    again.give_back()
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_a_run_goes_on_from_a_chosen_checkpoint_and_the_later_ones_are_kept(
    recipe_for, whole_run, weights, tmp_path, capsys, rewind
):
    content, whole = recipe_for(), whole_run
    last, run = weights(whole), tmp_path / "line"
    shutil.copytree(whole, run)
    shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4")
    content["training"]["output_dir"] = str(run)
    recipe = parse_recipe(content)
    for given, words in {
        "checkpoint-5": "there is no checkpoint checkpoint-5 in .*; give one of checkpoint-4, checkpoint-8, ch",
        str(whole / "checkpoint-4"): "is not a checkpoint of the run in .*init_from",
        str(tmp_path / "checkpoint-4"): "is not a checkpoint of the run in",
        str(run): "is not a checkpoint of the run in",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            train(recipe, resume=given)
    (run / "checkpoint-8" / "checkpoint-is-incomplete.txt").touch()
    with pytest.raises(
        CheckpointError, match=r"checkpoint-8 is not complete: .*; give one of checkpoint-4, checkpoint-12"
    ):
        train(recipe, resume="checkpoint-8")
    assert not list(run.glob("aside-*"))
    for number, given in enumerate(["checkpoint-4", run / "checkpoint-4"], start=1):
        capsys.readouterr()
        train(parse_recipe(content), resume=given)
        assert f"checkpoint-8: moved to {run / f'aside-{number}'}, since the run resumes from checkpoint-4" in (
            capsys.readouterr().out
        )
        assert equal(last, weights(run)), "the same steps again are the same run"
        assert {path.name for path in (run / f"aside-{number}").iterdir()} == {"best", "checkpoint-12", "checkpoint-8"}
        assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (4, 8, 12)}
    assert json.loads((whole / "forgetting.json").read_text()) == json.loads((run / "forgetting.json").read_text())


def test_a_line_whose_best_was_removed_finds_a_new_one(recipe_for, whole_copy):
    content, run = recipe_for(), whole_copy
    state = run / "checkpoint-8" / "trainer_state.json"
    said = json.loads(state.read_text()) | {"best_metric": -1.0, "best_model_checkpoint": str(run / "checkpoint-2")}
    state.write_text(json.dumps(said | {"best_global_step": 2}))
    (run / "checkpoint-8" / CHECKSUMS_NAME).unlink()
    train(parse_recipe(content), resume="checkpoint-8")
    assert (run / "best" / "model.safetensors").read_bytes() == (run / "checkpoint-12/model.safetensors").read_bytes()


def test_a_length_in_passes_stays_the_length_when_the_batch_changes(recipe_for, tmp_path, rewind):
    content = recipe_for(coverage={"confirm": False, "target": 0.02})
    del content["training"]["max_steps"]
    whole = train(parse_recipe(content))
    ledger = json.loads((whole / "coverage.json").read_text())
    assert (ledger["step"], ledger["next_sample"]) == (12, 48)  # ceil(0.02 x 72,000 / 32) = 45 samples of 4
    run = rewind(whole, tmp_path / "resumed", step=4)
    content["training"] |= {"output_dir": str(run), "gradient_accumulation_steps": 2}
    train(parse_recipe(content), resume=True)
    ledger = json.loads((run / "coverage.json").read_text())
    assert (ledger["step"], ledger["next_sample"]) == (8, 48)  # 16 samples done, 29 left in steps of 8


def test_a_resume_evaluates_and_saves_as_often_as_the_recipe_says_now(recipe_for, whole_run, tmp_path, rewind):
    content = recipe_for()
    run = rewind(whole_run, tmp_path / "resumed", step=4)
    content["training"] |= {"output_dir": str(run), "eval_steps": 2, "save_steps": 6}
    train(parse_recipe(content), resume=True)
    history = json.loads((run / "forgetting.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 4, 6, 8, 10, 12]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-4", "checkpoint-6"]


def test_a_short_run_is_evaluated_as_planned_and_a_resume_keeps_its_windows(recipe_for, tmp_path, rewind, capsys):
    content = recipe_for(forgetting={"eval_windows": None})
    del content["training"]["eval_steps"]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    run = train(parse_recipe(content))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation: "))
    assert main(["plan", str(path)]) == 0
    assert line in capsys.readouterr().out.splitlines()
    assert main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"]["points"] == 2
    # A longer run of the same recipe: other intervals, the windows of the baseline.
    train(parse_recipe(content | {"training": content["training"] | {"max_steps": 24}}), resume=True)
    history = json.loads((run / "forgetting.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 12, 24]
    recorded = load_recipe(run)
    assert (recorded.forgetting.eval_windows, recorded.training["eval_steps"]) == (64, 24)
    # A run that recorded other windows and intervals goes on with them.
    old = recipe_for(training={"output_dir": str(tmp_path / "old"), "eval_steps": 2}, forgetting={"eval_windows": 100})
    run = rewind(train(parse_recipe(old)), tmp_path / "resumed", step=4)
    content["training"]["output_dir"] = str(run)
    train(parse_recipe(content), resume=True)
    history = json.loads((run / "forgetting.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 2, 4, 6, 8, 10, 12]
    assert load_recipe(run).forgetting.eval_windows == 100


def test_a_resume_is_evaluated_as_before_while_the_run_is_as_long_and_anew_once_epochs_change_that(recipe_for, capsys):
    content = recipe_for(forgetting={"eval_windows": 2, "action": "stop", "tolerance": 9.0, "time_budget": 0.001})
    for key in ("eval_steps", "max_steps"):
        del content["training"][key]
    content["training"]["num_train_epochs"] = 0.02
    run = train(parse_recipe(content))
    assert load_recipe(run).training["eval_steps"] == 2, "of 12 steps: a stop needs every evaluation"
    line = "forgetting.eval_windows as set and every evaluation that forgetting.action stop may act on, though above"
    assert line in capsys.readouterr().out
    recorded = load_recipe(run)
    recorded.training["eval_steps"] = 3  # as if another version had chosen
    save_recipe(recorded, run / "recipe.yaml")
    train(parse_recipe(content), resume=True)
    assert load_recipe(run).training["eval_steps"] == 3
    assert "; above forgetting.time_budget 0.001, as when the run began" in capsys.readouterr().out
    content["training"]["num_train_epochs"] = 0.022
    train(parse_recipe(content), resume=True)
    assert load_recipe(run).training["eval_steps"] == 2, "of 13 steps"


def test_a_moved_run_folder_and_moved_data_are_still_that_run(whole_run, corpora, weights, tmp_path, rewind):
    rewind(whole_run, tmp_path / "moved", step=8)
    shutil.copytree(corpora, tmp_path / "elsewhere")
    recipe = load_recipe(tmp_path / "moved")
    assert recipe.training["output_dir"] == str(tmp_path / "moved")
    recipe.data.train = {str(tmp_path / "elsewhere" / name): w for name, w in (("domain", 0.75), ("general", 0.25))}
    assert equal(weights(train(recipe, resume=True)), weights(whole_run))


def test_a_stopped_run_stays_stopped_until_the_recipe_changes(recipe_for, general_run, corpora, tmp_path, capsys):
    content = recipe_for(
        data=recipe_for()["data"] | {"train": str(corpora / "domain")},
        forgetting={"eval_windows": 20, "action": "stop", "interpolate": "off"},
    )
    content["model"] = {"init_from": str(general_run)}
    content["training"] |= {"output_dir": str(tmp_path / "adapted"), "learning_rate": 0.1}
    for _ in range(2):
        with pytest.raises(CheckFailed):
            train(parse_recipe(content), resume=True)
        assert [path.name for path in (tmp_path / "adapted").glob("checkpoint-*")] == ["checkpoint-4"]
        assert ending(tmp_path / "adapted") == ("stopped", "infeasible", 1)
    assert "stopped by the forgetting guard" in capsys.readouterr().out
    content["forgetting"]["interpolate"] = "auto"
    train(parse_recipe(content), resume=True)
    assert ending(tmp_path / "adapted") == ("stopped", "interpolated", 0)
    content["forgetting"] |= {"action": "warn", "interpolate": "off"}
    with pytest.raises(CheckFailed):
        train(parse_recipe(content), resume=True)
    assert (tmp_path / "adapted" / "checkpoint-12").is_dir()


def test_half_precision_weights_train_and_load_as_the_same_model(recipe_for):
    content = recipe_for(model={"dtype": "bfloat16"})
    model = build_trainer(parse_recipe(content)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("stock", [True, False], ids=["llama", "mypt"])
def test_documents_of_a_window_do_not_see_each_other_in_training(recipe_for, tmp_path, stock):
    content = recipe_for(data=recipe_for()["data"] | {"document_mask": True}, model={"hidden_dropout": 0.0})
    if stock:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=384, **sizes)).save_pretrained(tmp_path / "llama")
        content["model"] = {"init_from": str(tmp_path / "llama")}
    trainer = build_trainer(parse_recipe(content))
    batch = next(iter(trainer.train_dataset))
    first, second = batch["input_ids"].clone(), batch["input_ids"].clone()
    second[:, :16] += 1
    batch["position_ids"] = torch.arange(16).repeat(2).expand(len(first), -1)  # two documents of 16 tokens
    logits = []
    for inputs in (first, second):
        given = batch | {"input_ids": inputs, "labels": inputs}
        logits.append(trainer.compute_loss(trainer.model, given, return_outputs=True)[1].logits)
    assert torch.equal(logits[0][:, 16:], logits[1][:, 16:])
    assert not torch.equal(logits[0][:, :16], logits[1][:, :16])


def test_a_damaged_environment_file_is_one_clear_error(recipe_for, whole_copy):
    (whole_copy / "environment.json").write_text('{"iden')
    with pytest.raises(CheckpointError, match=r"environment\.json is damaged"):
        train(parse_recipe(recipe_for()), resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("save_total_limit", 1), ("save_only_model", True), ("push_to_hub", True), ("per_device_train_batch_size", 0),
     ("gradient_accumulation_steps", 0), ("seed", -1)],
)  # fmt: skip
def test_settings_that_would_break_a_promise_are_refused(recipe_for, key, value):
    with pytest.raises(RecipeError, match=key):
        parse_recipe(recipe_for(training=recipe_for()["training"] | {key: value}))


def test_a_trainer_measures_what_it_is_given_and_says_when_there_is_nothing(recipe_for, tmp_path):
    trainer = build_trainer(parse_recipe(recipe_for()))
    trainer.evaluate()
    trainer.evaluate()
    assert [entry["step"] for entry in trainer.forgetting.history] == [0], "measured again"
    windows = [{"input_ids": torch.arange(32), "labels": torch.arange(32)}]
    assert set(trainer.evaluate(windows)) >= {"eval_loss"}
    assert len(trainer.forgetting.history) == 1
    content = recipe_for(data={"eval": {}})
    content["training"]["output_dir"] = str(tmp_path / "blind")
    blind = build_trainer(parse_recipe(content))
    blind.forgetting = None
    with pytest.raises(MyPTError, match="there is no evaluation set"):
        blind.evaluate()


def test_a_resume_below_one_pass_that_is_not_wanted_is_one_clear_error(recipe_for):
    content = recipe_for(coverage={"strict": False, "confirm": False})
    content["training"]["max_steps"] = 4
    run = train(parse_recipe(content))
    before = (run / "forgetting.json").read_text()
    content["training"]["max_steps"], content["coverage"]["strict"] = 8, True
    with pytest.raises(CheckFailed, match=r"coverage\.strict is true"):
        train(parse_recipe(content), resume=True)
    assert (run / "forgetting.json").read_text() == before
    assert ending(run) == ("stopped", "declined", 1) and result(run)["step"] == 4
