"""A run in which no saved step kept its guards: what is published keeps them, is exact, and survives kills."""

import gc
import json
import shutil
import time
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from mypt.checkpoints.load import load_model
from mypt.cli.main import main
from mypt.conversion.export import export_model
from mypt.errors import CheckFailed
from mypt.evaluation.compare import compare
from mypt.evaluation.interpolate import interpolate
from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.recipe import load_recipe, parse_recipe
from mypt.storage.card import model_card
from mypt.storage.upload_files import content_to_send, model_files
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from mypt.training.build import build_trainer
from mypt.training.interpolation import InterpolatedBest
from mypt.training.run import train
from tests.processes import Command, launch

GENERAL = ["general"]


@pytest.fixture(scope="module")
def forgetful(tiny_recipe, corpora, adapted_models):
    """forgetful(run, section={key: value}): a recipe by which the model `base` forgets prose while it learns code."""

    def build(run: Path, **sections) -> dict:
        content = tiny_recipe(run, data={"train": str(corpora / "domain")}, **sections)
        content["model"] = {"init_from": str(adapted_models / "base")} | sections.get("model", {})
        content["forgetting"] = {"eval_windows": 40} | sections.get("forgetting", {})
        steps = {"max_steps": 8, "learning_rate": 2e-2, "save_steps": 8, "per_device_eval_batch_size": 64}
        content["training"] |= steps | sections.get("training", {})
        return content

    return build


TWO_STEPS = {"forgetting": {"eval_windows": "all"}, "training": {"save_steps": 4}}  # the last one is not the best


@pytest.fixture(scope="module")
def rescued(forgetful, tmp_path_factory) -> Path:
    """The folder of such a run that saved two steps and evaluates whole splits, only to read."""
    return train(parse_recipe(forgetful(tmp_path_factory.mktemp("rescued") / "run", **TWO_STEPS)))


@pytest.fixture
def rescued_copy(rescued, tmp_path) -> Path:
    return shutil.copytree(rescued, tmp_path / "run")


def report_of(run: Path) -> dict:
    return json.loads((run / "best" / "interpolation.json").read_text())


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def states(models: list, corpora: Path, data: str = "general") -> list[str]:
    """The verdict of `mypt evaluate` on each model after the first."""
    models = [str(model) for model in models]
    scores = compare(models, {data: str(corpora / data)}, guard=[data], block_size=32, batch_size=64)
    return [score.state for score in scores[1:]]


def test_the_best_model_is_the_largest_step_that_keeps_the_guard(rescued, adapted_models, corpora, tmp_path):
    report, base = report_of(rescued), adapted_models / "base"
    alpha, step = report["alpha"], rescued / f"checkpoint-{report['step']}"
    for name, share in (("same", alpha), ("above", alpha + 0.01)):
        interpolate(base, step, tmp_path / name, alpha=round(share, 2))
    assert weights_of(tmp_path / "same") == weights_of(rescued / "best")
    assert states([base, rescued / "best", tmp_path / "above"], corpora) == ["healthy", "watch"]
    measured = {point["alpha"]: point["sets"] for point in report["curve"]}
    loss = measured[alpha]["domain"]["loss"]
    other = interpolate(base, rescued / "checkpoint-4", tmp_path / "other", guard={"general": str(corpora / "general")},
                        target={"domain": str(corpora / "domain")}, block_size=32, batch_size=64)  # fmt: skip
    found = next(point for point in other["curve"] if point["alpha"] == other["alpha"])
    assert step.name == "checkpoint-8" and loss < found["sets"]["domain"]["loss"], "of the two, the better one"
    assert 0 < alpha < 1
    result = result_of(rescued)
    assert [result[key] for key in ("state", "reason", "exit_code")] == ["completed", "interpolated", 0]
    assert (result["alpha"], result["best_step"], result["objective"]) == (alpha, report["step"], loss)


def test_alpha_is_named_wherever_the_model_is_described(rescued, corpora, capsys):
    report = report_of(rescued)
    alpha = report["alpha"]
    forgetting = json.loads((rescued / "forgetting.json").read_text())
    assert forgetting["interpolation"]["alpha"] == alpha
    assert forgetting["interpolation"]["sets"]["general"]["state"] == "healthy"
    assert f"best is interpolated: alpha {alpha:.2f} of the way" in forgetting["verdict"]
    best = rescued / "best"
    for folder in (rescued, best):
        assert inspect_checkpoint(folder)["interpolation"]["alpha"] == alpha
        assert main(["inspect", str(folder)]) == 0
        assert f"alpha {alpha:g} between " in capsys.readouterr().out
    assert main(["evaluate", str(best), "--data", f"general={corpora / 'general'}", "--batch-size", "64"]) == 0
    assert f"best (alpha {alpha:g})" in capsys.readouterr().out
    card = model_card(best, "me/kept")
    assert f"at alpha {alpha:g}" in card and f"| loss at alpha 0 | loss at alpha {alpha:g} |" in card
    measured = next(point for point in report["curve"] if point["alpha"] == alpha)["sets"]
    assert all(f"| {reading['loss']:.4f} |" in card for reading in measured.values())
    assert f"alpha {alpha:.2f}" in model_card(rescued, "me/run").replace("\\", "")
    sent = {path.name: content_to_send(path) for path in model_files(best)}
    assert {"interpolation.json", "recipe.yaml"} <= sent.keys()
    assert b"/tmp" not in sent["interpolation.json"] and json.loads(sent["interpolation.json"])["alpha"] == alpha


def test_a_resume_leaves_it_alone_and_off_brings_back_the_saved_step(rescued_copy, forgetful, capsys):
    run, weights = rescued_copy, weights_of(rescued_copy / "best")
    before = {name: (run / name).read_bytes() for name in ("result.json", "forgetting.json")}
    published = (run / "best").stat().st_ino
    train(parse_recipe(forgetful(run, **TWO_STEPS)), resume=True)
    assert (run / "best").stat().st_ino == published and weights_of(run / "best") == weights
    assert before == {name: (run / name).read_bytes() for name in before}
    assert capsys.readouterr().out.count("interpolated, so that every guard is kept") == 1

    off = TWO_STEPS | {"forgetting": TWO_STEPS["forgetting"] | {"interpolate": "off"}}
    with pytest.raises(CheckFailed, match="no saved step kept every guarded set"):
        train(parse_recipe(forgetful(run, **off)), resume=True)
    assert [result_of(run)[key] for key in ("reason", "exit_code", "alpha")] == ["infeasible", 1, None]
    assert not [*(run / "best").glob("interpolation*")]
    assert weights_of(run / "best") == weights_of(run / "checkpoint-4")
    assert "interpolat" not in (run / "forgetting.json").read_text()


def test_a_run_that_goes_on_and_keeps_its_guards_has_no_trace_of_it(rescued_copy, forgetful):
    content = forgetful(
        rescued_copy,
        forgetting=TWO_STEPS["forgetting"] | {"tolerance": 9.0},
        training={"max_steps": 12, "save_steps": 4},
    )
    train(parse_recipe(content), resume=True)
    assert not [*(rescued_copy / "best").glob("interpolation*")]
    assert weights_of(rescued_copy / "best") == weights_of(rescued_copy / "checkpoint-12")
    assert "interpolat" not in (rescued_copy / "forgetting.json").read_text()
    assert result_of(rescued_copy)["reason"] == "max_steps"


def test_killed_at_any_moment_the_best_model_is_the_old_or_the_new_one(rescued, rescued_copy, forgetful, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", rescued_copy
    recipe.write_text(yaml.safe_dump(forgetful(run, **TWO_STEPS)))
    (run / "best" / "interpolation.json").unlink()  # what a killed process leaves: nothing was published
    shutil.copyfile(run / "checkpoint-4" / "model.safetensors", run / "best" / "model.safetensors")
    possible = {weights_of(run / "checkpoint-4"), weights_of(rescued / "best")}
    for moment in ("start/model.safetensors", "checkpoint-8/model.safetensors"):
        process = Command(["train", recipe, "--resume"])
        while process.poll() is None and not (run / ".interpolation" / moment).is_file():
            time.sleep(0.001)
        assert process.poll() is None, process.output()
        process.kill()
        assert weights_of(run / "best") in possible
    process = Command(["train", recipe, "--resume"])
    assert process.wait() == 0, process.output()
    assert weights_of(run / "best") == weights_of(rescued / "best") and not (run / ".interpolation").exists()
    assert result_of(run)["alpha"] == result_of(rescued)["alpha"]
    assert (run / "forgetting.json").read_bytes() == (rescued / "forgetting.json").read_bytes()


def test_without_the_base_the_run_ends_as_it_would_without_interpolation(
    rescued_copy, adapted_models, tmp_path, capsys
):
    base, recipe = tmp_path / "base", load_recipe(rescued_copy)
    shutil.copytree(adapted_models / "base", base)
    recipe.model.init_from = str(base)
    train(recipe, resume=True)  # a copy is the same start
    (rescued_copy / "best" / "interpolation.json").unlink()
    shutil.rmtree(base)
    with pytest.raises(CheckFailed, match="no saved step kept every guarded set"):
        train(recipe, resume=True)
    assert f"not interpolated: model.init_from {base} is not there any more" in capsys.readouterr().out
    assert weights_of(rescued_copy / "best") == weights_of(rescued_copy / "checkpoint-4")


def test_no_step_and_no_memory_end_as_before(forgetful, tmp_path, monkeypatch, capsys):
    content = forgetful(tmp_path / "run", forgetting={"tolerance": 1e-3}, training={"learning_rate": 0.3})
    for message in ("no step of a hundredth from ", "out of memory"):
        with pytest.raises(CheckFailed, match="no saved step kept every guarded set"):
            train(parse_recipe(content), resume=True)
        assert f"not interpolated: {message}" in capsys.readouterr().out
        assert result_of(tmp_path / "run")["reason"] == "infeasible" and not (tmp_path / "run/.interpolation").exists()
        assert weights_of(tmp_path / "run/best") == weights_of(tmp_path / "run/checkpoint-8")
        too_large = lambda *_: torch.empty(1 << 60, dtype=torch.uint8)  # noqa: E731 - the real error
        monkeypatch.setattr("mypt.training.interpolation.Interpolation", too_large)


def test_of_adapters_alpha_scales_the_change(forgetful, corpora, adapted_models, tmp_path):
    content = forgetful(tmp_path / "run", lora={"r": 4}, **{**TWO_STEPS, "training": {"learning_rate": 3e-2}})
    content["optimizer"] = {"name": "adamw", "schedule": "constant"}
    run = train(parse_recipe(content))
    alpha = report_of(run)["alpha"]
    first, second = (load_file(run / name / "adapter_model.safetensors") for name in ("checkpoint-8", "best"))
    for name, value in first.items():
        expected = value * alpha if ".lora_B." in name else value
        torch.testing.assert_close(second[name], expected, rtol=0, atol=1e-6)
    assert states([adapted_models / "base", run / "best"], corpora) == ["healthy"] and 0 < alpha < 1


def test_from_a_model_that_was_converted(forgetful, adapted_models, corpora, tmp_path):
    export_model(adapted_models / "base", tmp_path / "stock")
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] != "mypt"
    content = forgetful(
        tmp_path / "run", model={"init_from": str(tmp_path / "stock")}, forgetting={"eval_windows": "all"}
    )
    run = train(parse_recipe(content))
    first, second, best = (load_file(folder / "model.safetensors") for folder in
                           (adapted_models / "base", run / "checkpoint-8", run / "best"))  # fmt: skip
    for name, value in best.items():
        torch.testing.assert_close(value, torch.lerp(first[name], second[name], report_of(run)["alpha"]))
    assert states([tmp_path / "stock", run / "best"], corpora) == ["healthy"]


@pytest.mark.slow
def test_what_is_frozen_stays_in_gpt2(forgetful, corpora, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from mypt import ShardStream

    tokenizer, sizes = load_tokenizer(corpora / "general"), {"n_embd": 32, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = iter(ShardStream(corpora / "general", block_size=32, micro_batch_size=16))
    for _ in range(100):
        model(input_ids=(batch := next(batches))["input_ids"], labels=batch["labels"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tokenizer, tmp_path / "gpt2")
    section = {"init_from": str(tmp_path / "gpt2"), "freeze_layers": 1, "freeze_embeddings": True}
    content = forgetful(
        tmp_path / "run", model=section, training={"learning_rate": 0.1}, forgetting={"eval_windows": "all"}
    )
    run = train(parse_recipe(content))
    assert 0 < report_of(run)["alpha"] < 1
    assert states([tmp_path / "gpt2", run / "best"], corpora) == ["healthy"]
    step = load_file(run / f"checkpoint-{report_of(run)['step']}" / "model.safetensors")
    best = load_file(run / "best" / "model.safetensors")
    frozen = [name for name in step if "layers.0." in name or "embed" in name]
    assert frozen and all(torch.equal(best[name], step[name]) for name in frozen)


def test_model_and_optimizer_are_freed_first(forgetful, tmp_path):
    trainer = build_trainer(parse_recipe(forgetful(tmp_path / "run", training={"max_steps": 1})))
    trainer.train()
    parameter = next(trainer.model.parameters())
    state = next(iter(trainer.optimizer.state.values()))
    moment = next(value for value in state.values() if value.shape == parameter.shape or value.ndim > 0)
    held = [weakref.ref(trainer.model), weakref.ref(parameter), weakref.ref(moment)]
    del parameter, state, moment
    trainer.free()
    gc.collect()
    assert [reference() for reference in held] == [None, None, None]


@pytest.mark.slow
def test_two_processes(forgetful, corpora, adapted_models, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(forgetful(run)))
    printed = launch("cpu_2.yaml", recipe)
    assert printed.count("interpolated, so that every guard is kept") == 1
    assert states([adapted_models / "base", run / "best"], corpora) == ["healthy"]
    launch("cpu_2.yaml", recipe, "--resume")
    assert load_model(run / "best", device="cpu") is not None


@pytest.mark.parametrize("target", ["domain", pytest.param("general", marks=pytest.mark.slow)])
def test_an_early_step_that_kept_the_guards_is_best_only_if_the_last_one_gives_no_better(
    forgetful, adapted_models, corpora, tmp_path, monkeypatch, target
):
    steps = {"max_steps": 16, "learning_rate": 4e-3, "save_steps": 4}
    forgetting = {"eval_windows": "all", "target": target, "guard": GENERAL}
    content = forgetful(tmp_path / "run", training=steps, forgetting=forgetting)
    run = train(parse_recipe(content))
    history = json.loads((run / "forgetting.json").read_text())["history"]
    kept = {entry["constrained_loss"]: entry["step"] for entry in history[1:] if entry["constrained_loss"] < 1_000}
    assert kept and history[-1]["constrained_loss"] > 1_000, "kept at first, and lost at the end"
    result, best = result_of(run), weights_of(run / "best")
    assert states([adapted_models / "base", run / "best"], corpora) == ["healthy"]
    if target == "domain":  # of which the last step knows more
        assert result["reason"] == "interpolated" and 0 < result["alpha"] < 1 and result["objective"] < min(kept)
    else:
        assert (result["reason"], result["alpha"], result["objective"]) == ("max_steps", None, min(kept))
        assert best == weights_of(run / f"checkpoint-{kept[min(kept)]}")
    monkeypatch.delattr(InterpolatedBest, "make")  # asked again, it is known already
    train(parse_recipe(content), resume=True)
    assert weights_of(run / "best") == best and result_of(run) == result


class Outage(TrainerCallback):
    """A store that is lost when the run is to be sent: a file takes its place."""

    def __init__(self, store: Path):
        self.store = store

    def before_upload(self, run: Path) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        self.store.write_text("in the way")


def test_a_failed_upload_takes_the_interpolated_best_from_nobody(forgetful, tmp_path):
    steps = {"max_steps": 16, "learning_rate": 4e-3, "save_steps": 4}  # the first saved step keeps its guard
    content = forgetful(
        tmp_path / "run",
        training=steps,
        forgetting={"eval_windows": "all", "target": "domain", "guard": GENERAL},
        upload={"uri": f"file://{tmp_path / 'store' / 'run'}", "every_save": False},
    )
    run, store = tmp_path / "run", tmp_path / "store"
    with pytest.raises(CheckFailed, match="not whole in the store"):
        train(parse_recipe(content), [Outage(store)])
    failed, best = result_of(run), weights_of(run / "best")
    assert failed["reason"] == "upload" and failed["alpha"] and (run / "best" / "interpolation.json").exists()
    store.unlink()
    train(parse_recipe(content), resume=True)
    sent = result_of(run)
    assert sent["reason"] == "interpolated" and sent["alpha"] == failed["alpha"]
    assert weights_of(run / "best") == best
    assert (store / "run" / "best" / "interpolation.json").is_file()
