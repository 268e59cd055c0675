"""A step whose loss is no number: stop, skip or roll back, found at that step, and exact after a resume."""

import copy
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from mypt.errors import MyPTError, RecipeError
from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer
from mypt.training.run import finish
from mypt.training.stability.safety import MOST_SKIPS


def poison(trainer, *samples: int) -> None:
    """From here on the model's output for these samples of the stream is no number."""
    stream = copy.copy(trainer.train_dataset)
    stream.config, windows = replace(stream.config, micro_batch_size=1), []
    for stream.start_sample in samples:
        windows.append(next(iter(stream))["input_ids"][0])

    def hook(module, inputs, output):
        bad = [any(torch.equal(row, window) for window in windows) for row in inputs[0]]
        return output.masked_fill(torch.tensor(bad)[:, None, None], math.nan)

    trainer.model.get_input_embeddings().register_forward_hook(hook)


def run(content: dict, *samples: int, resume: bool = False, watch: TrainerCallback | None = None):
    trainer = build_trainer(parse_recipe(content), resume=resume)
    poison(trainer, *samples)
    if watch:
        trainer.add_callback(watch)
    return trainer, finish(trainer)


class Weights(TrainerCallback):
    """All parameters and optimizer states before and after every step, and the learning rates."""

    def __init__(self):
        self.before, self.after, self.rates = {}, {}, {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.before[state.global_step + 1] = self._all(**kwargs)
        self.rates[state.global_step + 1] = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args, state, control, **kwargs):
        self.after[state.global_step] = self._all(**kwargs)

    def _all(self, model, optimizer, **kwargs):
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (*model.parameters(), *states)]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def events(folder) -> list[dict]:
    return json.loads((folder / "coverage.json").read_text())["events"]


def assert_resumes_exactly(content, whole, weights, rewind, tmp_path, *samples):
    """From the save before the poisoned step and from the one behind it."""
    for step in (4, 8):
        content["training"]["output_dir"] = str(rewind(whole, tmp_path / f"from-{step}", step))
        _, resumed = run(content, *samples, resume=True)
        left, right = weights(whole), weights(resumed)
        assert all(torch.equal(left[name], right[name]) for name in left), step
        for name in ("coverage.json", "forgetting.json"):
            assert json.loads((whole / name).read_text()) == json.loads((resumed / name).read_text()), step


def test_stop_names_the_step_the_samples_the_text_and_the_last_good_checkpoint(recipe_for):
    content = recipe_for()
    content["training"]["logging_steps"] = 100  # it is not found at a log
    seen = Weights()
    with pytest.raises(MyPTError) as raised:
        run(content, 22, watch=seen)
    message = str(raised.value)
    for words in ("loss became nan in step 6", "samples 20 to 23", "sample 22", "train/shard_00000.bin token",
                  "the last good checkpoint is", "checkpoint-4", "--resume", "safety.on_nan", "0.003"):  # fmt: skip
        assert words in message
    assert "\n" not in message and raised.value.exit_code == 2
    assert max(seen.after) == 5, "no step ended after the one that broke"


def test_skip_leaves_out_that_update_alone(recipe_for, weights, rewind, tmp_path, capsys):
    content, seen = recipe_for(safety={"on_nan": "skip"}), Weights()
    _, whole = run(content, 22, watch=seen)
    assert "no update in step 6" in capsys.readouterr().out
    assert equal(seen.before[6], seen.after[6]) and not equal(seen.before[7], seen.after[7])
    (event,) = events(whole)
    assert (event["sample"], event["step"], event["changes"]) == (20, 5, {})
    assert event["skipped"] == {"samples": [20, 23], "loss": "nan", "grad_norm": "nan"}
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in logged if "loss" in entry]
    assert steps == [2, 4, 8, 10, 12], "steps 5 and 6 were to share a line"
    assert all(entry["loss"] > 1 for entry in logged if "loss" in entry) and logged[-1]["train_loss"] > 1
    assert_resumes_exactly(content, whole, weights, rewind, tmp_path, 22)


def test_skip_ends_after_some_in_a_row(recipe_for):
    bad = range(0, 4 * (MOST_SKIPS + 1), 4)
    with pytest.raises(MyPTError, match=rf"in step {MOST_SKIPS + 1} .*{MOST_SKIPS} steps before it were skipped"):
        run(recipe_for(safety={"on_nan": "skip"}), *bad)


def test_rollback_restores_and_goes_on_with_the_next_samples_at_half_the_rate(recipe_for, weights, rewind, tmp_path):
    content, seen = recipe_for(safety={"on_nan": "rollback"}, optimizer={"schedule": "linear"}), Weights()
    _, whole = run(content, 22, watch=seen)
    assert equal(seen.after[6], seen.after[4]), "checkpoint-4: the weights and the optimizer's state"
    assert not equal(seen.after[5], seen.after[4])
    assert seen.rates[12] == pytest.approx(seen.rates[2] / 11 / 2, rel=1e-6), "linear to zero at the end, halved"
    (event,) = events(whole)
    assert event["sample"] == 24 and event["changes"] == {"learning_rate": [0.003, 0.0015]}
    assert event["rollback"] == {"to": "checkpoint-4", "samples": [20, 23], "loss": "nan", "grad_norm": "nan"}
    assert json.loads((whole / "coverage.json").read_text())["next_sample"] == 48
    assert_resumes_exactly(content, whole, weights, rewind, tmp_path, 22)


@pytest.mark.parametrize(("logging_steps", "found_before"), [(2, 24), (100, 28)])
def test_as_on_a_gpu_a_step_late_or_at_the_next_log(recipe_for, weights, tmp_path, logging_steps, found_before):
    content, seen = recipe_for(safety={"on_nan": "rollback"}), Weights()
    content["training"]["logging_steps"] = logging_steps
    trainer = build_trainer(parse_recipe(content))
    poison(trainer, 22)
    trainer.add_callback(seen)
    trainer.monitor.late = True
    whole = finish(trainer)
    (event,) = events(whole)
    assert event["sample"] == found_before and event["rollback"]["samples"] == [20, 23]
    assert equal(seen.before[found_before // 4 + 1], seen.after[4])
    assert all(tensor.isfinite().all() for tensor in weights(whole).values())
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(entry["loss"] is not None for entry in logged if "loss" in entry)


def test_a_rate_given_by_hand_ends_the_halving(recipe_for, rewind, tmp_path):
    content = recipe_for(safety={"on_nan": "rollback"})
    _, whole = run(content, 22)
    content["training"] |= {"output_dir": str(rewind(whole, tmp_path / "resumed", 8)), "learning_rate": 0.002}
    trainer, _ = run(content, resume=True)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.002


def test_rollback_needs_a_checkpoint_and_ends_after_three(recipe_for, tmp_path):
    content = recipe_for(safety={"on_nan": "rollback"})
    with pytest.raises(MyPTError, match=r"in step 2 .*nothing to go back to"):
        run(content, 6)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(MyPTError, match=r"in step 9 .*3 rollbacks did not help.*now 0.000375"):
        run(content, 20, 24, 28, 32)


class Breaker(TrainerCallback):
    """What an update that overflows leaves behind: the loss was fine, and its gradient."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.get_input_embeddings().weight.data[0] = math.inf


def test_weights_that_an_update_broke_are_not_saved(recipe_for, tmp_path):
    content = recipe_for()
    content["training"]["save_steps"] = 1
    with pytest.raises(MyPTError, match=r"the weights became nan or infinite by the update in step 1 .*samples 0 to 3"):
        run(content, watch=Breaker(1))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_weights_that_an_update_broke_are_rolled_back_before_they_are_measured(recipe_for, tmp_path):
    content = recipe_for(safety={"on_nan": "rollback"})
    content["training"]["save_steps"] = 6
    _, whole = run(content, watch=Breaker(8))  # measured, and not saved
    (event,) = events(whole)
    assert event["sample"] == 32 and event["rollback"]["to"] == "checkpoint-6"
    assert [entry["step"] for entry in json.loads((whole / "forgetting.json").read_text())["history"]] == [0, 4, 8, 12]


def test_a_rollback_keeps_the_settings_that_a_resume_changed(recipe_for, rewind, tmp_path):
    content = recipe_for(safety={"on_nan": "rollback"})
    _, whole = run(content)
    resumed = {"output_dir": str(rewind(whole, tmp_path / "resumed", 4)), "weight_decay": 0.5, "adam_beta2": 0.9}
    content["training"] |= resumed
    trainer, _ = run(content, 22, resume=True)
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.9)}
    assert max(group["weight_decay"] for group in trainer.optimizer.param_groups) == 0.5


def test_what_cannot_be_promised_is_refused(recipe_for):
    with pytest.raises(RecipeError, match="on_nan is 'ignore', expected one of: stop, skip, rollback"):
        parse_recipe(recipe_for(safety={"on_nan": "ignore"}))
    content = recipe_for(safety={"on_nan": "rollback"})
    content["training"]["lr_scheduler_type"] = "reduce_lr_on_plateau"
    with pytest.raises(RecipeError, match="rollback halves the learning rate, which"):
        run(content)


def test_early_stopping_saves_stops_and_stays_stopped(recipe_for, tmp_path, capsys):
    content = recipe_for(safety={"early_stopping_patience": 2})
    content["training"] |= {"learning_rate": 0.0, "eval_steps": 3, "save_steps": 12}
    trainer, folder = run(content)
    assert trainer.state.global_step == 6 and (folder / "checkpoint-6").is_dir()
    assert (folder / "model.safetensors").is_file()
    assert "domain has not been below" in capsys.readouterr().out
    run(content, resume=True)
    assert "already complete: step 6 of 12 (stopped early; raise safety." in capsys.readouterr().out
    content["safety"]["early_stopping_patience"] = 4
    trainer, folder = run(content, resume=True)
    assert trainer.state.global_step == 12
