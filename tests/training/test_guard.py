"""The guard acts in a run: what it changes, that it is recorded, and that a resume repeats it to the last bit."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from mypt.errors import CheckFailed, RecipeError
from mypt.evaluation.forgetting import ACTIONS
from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.inspection.describe import describe
from mypt.recipe import parse_recipe
from mypt.storage.card import model_card
from mypt.streams.shard_stream import ShardStream
from mypt.training.build import build_trainer
from mypt.training.run import finish, train
from tests.processes import launch
from tests.training.test_kill import kill_three_times, start, twins
from tests.training.test_safety import Weights, equal

RATE, STEPS, EVERY = 4e-3, 32, 4


@pytest.fixture
def guarded(recipe_for, adapted_models, corpora):
    """guarded(action, ...): a recipe that adapts the model of prose to code, which it forgets prose by."""

    def build(action: str, guard: dict | list | None = None, **data) -> dict:
        sources = recipe_for()["data"] | {"train": str(corpora / "domain")} | data
        forgetting = {"action": action, "guard": guard, "eval_windows": 64, "interpolate": "off"}
        content = recipe_for(data=sources, forgetting=forgetting)
        content["model"] = {"init_from": str(adapted_models / "base")}
        steps = {"max_steps": STEPS, "eval_steps": EVERY, "save_steps": EVERY, "logging_steps": 1}
        content["training"] |= {"learning_rate": RATE} | steps
        return content

    return build


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def rates(run: Path) -> dict[int, float]:
    """The learning rate that each step was taken with."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


def run_of(content: dict, *watch) -> Path:
    """Train to the end; whether a step kept the guard is not the question here."""
    trainer = build_trainer(parse_recipe(content), watch)
    with contextlib.suppress(CheckFailed):
        finish(trainer)
    trainer.give_back()
    return Path(content["training"]["output_dir"])


def assert_resumes_exactly(content, whole, weights, rewind, tmp_path, *steps):
    for step in steps:
        content["training"]["output_dir"] = str(rewind(whole, tmp_path / f"from-{step}", step))
        trainer = build_trainer(parse_recipe(content), resume=True)
        trainer.train(resume_from_checkpoint=trainer.checkpoint)
        trainer.give_back()
        last = f"checkpoint-{STEPS}"
        left, right = (weights(run / last) for run in (whole, tmp_path / f"from-{step}"))
        assert all(torch.equal(left[name], right[name]) for name in left), step
        for name in ("coverage.json", "forgetting.json"):
            assert read(whole, name) == read(tmp_path / f"from-{step}", name), (step, name)


def recorded(run: Path) -> tuple[list[dict], list[dict]]:
    """The actions of a run, and the events of its ledger that the guard caused."""
    events = [event for event in read(run, "coverage.json")["events"] if "guard" in event]
    return read(run, "forgetting.json")["actions"], events


def test_reduce_lr_halves_the_rate_from_the_next_step_on(guarded, weights, rewind, tmp_path, capsys):
    content = guarded("reduce_lr")
    whole = run_of(content)
    (first, *others), events = recorded(whole)
    at, change = first["step"], first["sets"]["general"]
    line = f"guard: general lost {change['delta']:.3f} +/- {change['delta_error']:.3f} nats, more than 0.05: "
    assert line + "learning rate 0.004 -> 0.002" in capsys.readouterr().out.splitlines()
    assert first["learning_rate"] == [RATE, RATE / 2]
    taken = rates(whole)
    assert taken[at] == RATE and taken[at + 1] == RATE / 2
    assert taken[STEPS] == RATE / 2 ** (1 + len(others)), "the factor stays"
    assert all(taken[entry["step"] + 1] == taken[entry["step"]] / 2 for entry in others)
    assert [event["sample"] for event in events] == [4 * entry["step"] for entry in (first, *others)]
    words = f"step {at} reduce_lr (general {change['delta']:+.3f}): learning rate 0.004 -> 0.002"
    lines = "\n".join(block for block in describe(inspect_checkpoint(whole)) if isinstance(block, str))
    assert f"guard: {words}" in lines.splitlines()
    assert f"- step {at} reduce_lr (general" in model_card(whole, "name")
    assert events[0]["changes"] == {"learning_rate": [RATE, RATE / 2]} and events[0]["guard"]["sets"] == first["sets"]
    assert_resumes_exactly(content, whole, weights, rewind, tmp_path, at - EVERY, at)


def test_raise_replay_draws_more_of_the_forgotten_source(guarded, corpora, weights, rewind, tmp_path, capsys):
    content = guarded("raise_replay")
    whole = run_of(content)
    actions, events = recorded(whole)
    printed, at = capsys.readouterr().out, actions[0]["step"]
    assert "/general 0.0% -> 25.0% of the samples" in printed and len(events) == len(actions)
    shares = [entry["shares"][str(corpora / "general")] for entry in actions]
    assert shares[0] == [0.0, 0.25] and all(before < after for before, after in shares)
    ledger = read(whole, "coverage.json")
    drawn = {Path(seen["name"]).name: seen["samples"] for seen in ledger["seen"]}
    assert sum(drawn.values()) == 4 * STEPS
    by_share = sum(share * 4 * EVERY for share in _shares_by_interval(actions))
    assert drawn["general"] == pytest.approx(by_share, abs=len(actions) + 1) and drawn["general"] > 0
    stream = ShardStream({str(corpora / name): float(name == "domain") for name in drawn}, block_size=32, seed=42)
    assert stream.places(range(4 * at))[0].tolist() == [0] * (4 * at), "nothing is replayed before"
    assert_resumes_exactly(content, whole, weights, rewind, tmp_path, at - EVERY, at, at + 2 * EVERY)


def _shares_by_interval(actions: list[dict]) -> list[float]:
    """The share of prose between one evaluation and the next."""
    shares = []
    for step in range(0, STEPS, EVERY):
        (*_, last) = [0.0, *(list(entry["shares"].values())[1][1] for entry in actions if entry["step"] <= step)]
        shares.append(last)
    return shares


def test_rollback_goes_on_from_the_best_saved_weights_with_new_samples(guarded, weights, rewind, tmp_path, capsys):
    content, seen = guarded("rollback"), Weights()
    whole = run_of(content, seen)
    actions, events = recorded(whole)
    (first, *_) = [entry for entry in actions if entry["to"]]
    at, back = first["step"], int(first["to"].removeprefix("checkpoint-"))
    assert f"back to the weights of {whole / first['to']}; learning rate" in capsys.readouterr().out
    history = {entry["step"]: entry["constrained_loss"] for entry in read(whole, "forgetting.json")["history"]}
    assert history[back] == min(loss for step, loss in history.items() if 0 < step < at) < history[at]
    assert equal(seen.before[at + 1], seen.after[back]), "weights and moments"
    assert not equal(seen.after[at], seen.after[back])
    cuts = sum(entry["step"] <= at for entry in actions)
    assert seen.rates[at + 1] == RATE / 2**cuts and seen.rates[at] == RATE / 2 ** (cuts - 1)
    assert read(whole, "coverage.json")["next_sample"] == 4 * STEPS, "no sample is given again"
    assert len(actions) <= ACTIONS["rollback"] and len(events) == len(actions)
    assert_resumes_exactly(content, whole, weights, rewind, tmp_path, at - EVERY, at)


def test_a_rate_given_by_hand_ends_the_cuts(guarded, rewind, tmp_path):
    content = guarded("reduce_lr")
    whole = run_of(content)
    at = recorded(whole)[0][0]["step"]
    content["training"] |= {"output_dir": str(rewind(whole, tmp_path / "again", at)), "learning_rate": RATE / 4}
    trainer = build_trainer(parse_recipe(content), resume=True)
    trainer.args.max_steps = at + 1
    trainer.train(resume_from_checkpoint=trainer.checkpoint)
    assert rates(tmp_path / "again")[at + 1] == RATE / 4
    trainer.give_back()


def test_a_recipe_knows_every_action(guarded):
    for action in ACTIONS:
        assert parse_recipe(guarded(action)).forgetting.action == action


def test_what_cannot_work_is_refused_before_training(guarded, corpora, tmp_path):
    def refusal(content: dict, **training) -> str:
        content["training"] |= training
        with pytest.raises(RecipeError) as raised:
            train(parse_recipe(content))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "give --training.dataloader_num_workers=0" in refusal(guarded("raise_replay"), dataloader_num_workers=2)
    text = str(corpora / "general.txt")
    assert f"no text to replay for general: {text} is no directory" in refusal(
        guarded("raise_replay", {"general": text})
    )
    streamed = guarded("raise_replay", train=text)
    assert "is streamed, and other sources cannot be mixed in; prepare it first: mypt prepare" in refusal(streamed)
    plateau = guarded("reduce_lr")
    plateau["optimizer"] = {}
    message = refusal(plateau, lr_scheduler_type="reduce_lr_on_plateau")
    assert "which ReduceLROnPlateau sets by itself; use warn or stop" in message


@pytest.mark.slow
@pytest.mark.parametrize("action", ["reduce_lr", "raise_replay", "rollback"])
def test_three_kills(guarded, weights, tmp_path, action):
    content = guarded(action)
    content["training"] |= {"max_steps": 80}
    recipes = twins(content, tmp_path)
    whole = start(recipes["whole"])
    assert whole.wait() in (0, 1), whole.output()
    moments = kill_three_times(recipes["killed"], tmp_path / "killed", range(5, 75))
    final = start(recipes["killed"])
    assert final.wait() == whole.wait(), f"killed at {moments}: {final.output()}"
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(left[name], right[name]) for name in left), f"killed at {moments}"
    for name in ("coverage.json", "forgetting.json"):
        assert read(tmp_path / "whole", name) == read(tmp_path / "killed", name), f"killed at {moments}"
    assert len(recorded(tmp_path / "whole")[0]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("action", ["stop", "reduce_lr", "raise_replay", "rollback"])
def test_two_processes_decide_as_one(guarded, weights, tmp_path, action):
    content = guarded(action)
    for name, size in (("one", 4), ("two", 2)):
        content["training"] |= {"output_dir": str(tmp_path / name), "per_device_train_batch_size": size}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        if name == "two":
            launch("cpu_2.yaml", path)
        else:
            run_of(content)
    (one, one_events), (two, two_events) = recorded(tmp_path / "one"), recorded(tmp_path / "two")
    assert [(entry["step"], entry["action"], entry.get("shares"), entry.get("to")) for entry in one] == [
        (entry["step"], entry["action"], entry.get("shares"), entry.get("to")) for entry in two
    ]
    assert [event["sample"] for event in one_events] == [event["sample"] for event in two_events] and one
    ledgers = [read(tmp_path / name, "coverage.json") for name in ("one", "two")]
    assert ledgers[0]["seen"] == ledgers[1]["seen"]
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((left[name] - right[name]).abs().max().item() for name in left) < 1e-5
