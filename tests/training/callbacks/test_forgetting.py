"""The change of every guarded set since step 0, exact and paired, kept through resumes, and acted on."""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from mypt.errors import CheckpointError, MyPTError
from mypt.evaluation.baseline import BASELINE_NAME, load_baseline
from mypt.evaluation.loss import window_losses
from mypt.streams.eval_windows import EvalWindows
from mypt.training.callbacks.forgetting import ForgettingCallback, human_line


def refuse_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def strict_json(path) -> dict:
    return json.loads(path.read_text(), parse_constant=refuse_constant)


def by_hand(model: torch.nn.Module, windows: EvalWindows) -> tuple[np.ndarray, np.ndarray]:
    """Summed nats and number of targets of each window, one window at a time."""
    model.eval()
    sums, tokens = [], []
    with torch.no_grad():
        for item in windows:
            log_p = model(input_ids=item["input_ids"][None], use_cache=False).logits[0].double().log_softmax(-1)
            real = torch.nonzero(item["shift_labels"] != -100)[:, 0]
            sums.append(-log_p[real, item["shift_labels"][real]].sum().item())
            tokens.append(len(real))
    return np.array(sums), np.array(tokens)


@pytest.mark.plots
def test_readings_are_those_of_the_saved_models_by_hand(model, eval_sets, make_trainer, tmp_path):
    before = copy.deepcopy(model)
    callback = ForgettingCallback(eval_sets, eval_steps=2)
    make_trainer([callback], max_steps=6, learning_rate=1e-2).train()
    run = tmp_path / "run"
    report = strict_json(run / "forgetting.json")
    assert [entry["step"] for entry in report["history"]] == [0, 2, 4, 6]
    after = AutoModelForCausalLM.from_pretrained(run / "checkpoint-6")
    for name in eval_sets:
        (old, tokens), (new, _) = (by_hand(one, eval_sets[name]) for one in (before, after))
        reading = report["history"][-1]["sets"][name]
        delta = (new - old).sum() / tokens.sum()
        assert reading["loss"] == pytest.approx(new.sum() / tokens.sum(), abs=1e-6)
        assert reading["delta"] == pytest.approx(delta, abs=1e-6)
        residual = new - old - delta * tokens
        n = len(tokens)
        assert reading["delta_error"] == pytest.approx(
            math.sqrt(n / (n - 1) * (residual**2).sum()) / tokens.sum(), abs=1e-6
        )
        assert reading["bits_per_byte"] == pytest.approx(reading["loss"] / math.log(2) / 3, rel=1e-9)
        assert (tokens[-1] < 16) and tokens.sum() == len(eval_sets[name].reader) - 1
    assert (run / "forgetting.png").read_bytes().startswith(b"\x89PNG")


def test_the_baseline_is_the_untouched_model(model, eval_sets, make_trainer, capsys):
    untouched = {name: window_losses(copy.deepcopy(model), windows).loss for name, windows in eval_sets.items()}
    callback = ForgettingCallback(eval_sets, eval_steps=1)
    make_trainer([callback], max_steps=1, learning_rate=0.5).train()
    first, second = callback.history
    for name, loss in untouched.items():
        assert first["sets"][name]["loss"] == loss and first["sets"][name]["delta"] == 0
        assert second["sets"][name]["delta"] == pytest.approx(second["sets"][name]["loss"] - loss)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 2
    number, states = r"\d+\.\d\d", "healthy|watch|warning|critical"
    assert re.fullmatch(
        rf"step 1: domain {number} \| general {number} \([+-]{number} \+/- {number}, ({states})\)", lines[1]
    )


def test_the_human_line_by_hand():
    def reading(loss, delta, delta_error, state):
        return {"loss": loss, "delta": delta, "delta_error": delta_error, "state": state}

    sets = {
        "domain": reading(2.154, -1.2, 0.02, "target"),
        "general": reading(2.886, 0.0421, 0.0098, "healthy"),
        "code": reading(1.5, -0.25, 0.1, "other"),
    }
    line = human_line({"step": 100, "sets": sets})
    assert line == "step 100: domain 2.15 | general 2.89 (+0.04 +/- 0.01, healthy) | code 1.50"


def test_training_is_the_same_with_and_without_measuring(model, eval_sets, make_trainer):
    alone = copy.deepcopy(model)
    make_trainer([ForgettingCallback(eval_sets, eval_steps=1)], max_steps=3, save_strategy="no").train()
    make_trainer([], trained=alone, max_steps=3, save_strategy="no").train()
    assert all(map(torch.equal, model.state_dict().values(), alone.state_dict().values()))


def test_a_resume_keeps_the_baseline_and_the_history(model, eval_sets, make_trainer, tmp_path):
    fresh = copy.deepcopy(model)
    make_trainer([ForgettingCallback(eval_sets, eval_steps=3)], max_steps=3).train()
    path = tmp_path / "run" / BASELINE_NAME
    written, stamp = path.read_bytes(), path.stat().st_mtime_ns
    saved = tmp_path / "run" / "checkpoint-3" / "trainer_state.json"
    content = json.loads(saved.read_text())
    older = content["stateful_callbacks"]["ForgettingCallback"]["attributes"]["history"][0]
    del older["constrained_loss"], older["sets"]["domain"]["bits_per_byte"]  # what a state may lack, and one more
    older["sets"]["domain"]["perplexity"] = 1.0
    saved.write_text(json.dumps(content))
    resumed = ForgettingCallback(eval_sets, eval_steps=3)
    make_trainer([resumed], trained=fresh, max_steps=6).train(resume_from_checkpoint=True)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (written, stamp)
    assert [entry["step"] for entry in resumed.history] == [0, 3, 6]
    first, _, last = resumed.history
    assert {"perplexity", "bits_per_byte"}.isdisjoint(first["sets"]["domain"]) and "bits_per_byte" in last["sets"][
        "domain"
    ]
    for name in eval_sets:
        assert last["sets"][name]["delta"] == pytest.approx(last["sets"][name]["loss"] - first["sets"][name]["loss"])
    assert strict_json(tmp_path / "run" / "forgetting.json")["history"] == resumed.history
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["ForgettingCallback"]["attributes"]["history"] == resumed.history


def test_stop_fires_at_warning_and_saves(eval_sets, make_trainer, tmp_path, capsys):
    callback = ForgettingCallback(eval_sets, action="stop", eval_steps=2, tolerance=0.05)
    trainer = make_trainer([callback], max_steps=40, learning_rate=2e-2, save_steps=1_000)
    trainer.train()
    stopped = trainer.state.global_step
    assert 0 < stopped < 40 and stopped == callback.stopped_at
    *earlier, last = callback.history
    assert last["sets"]["general"]["state"] in ("warning", "critical")
    assert all(entry["sets"]["general"]["state"] in ("healthy", "watch") for entry in earlier)
    assert last["sets"]["general"]["delta"] > 0.1 and last["sets"]["domain"]["delta"] < 0
    assert (tmp_path / "run" / f"checkpoint-{stopped}" / "model.safetensors").exists()
    report = strict_json(tmp_path / "run" / "forgetting.json")
    assert report["stopped_at"] == stopped and report["verdict"].startswith("forgetting: ")
    change = last["sets"]["general"]
    line = f"guard: general lost {change['delta']:.3f} +/- {change['delta_error']:.3f} nats, more than 0.05: stopping"
    assert line in capsys.readouterr().out.splitlines()


def test_warn_goes_on_and_the_constrained_loss_says_how_bad_it_is(eval_sets, make_trainer):
    callback = ForgettingCallback(eval_sets, eval_steps=10)
    trainer = make_trainer([callback], max_steps=20, learning_rate=2e-2, save_strategy="no")
    trainer.train()
    first, *_, last = callback.history
    assert trainer.state.global_step == 20 and last["sets"]["general"]["state"] in ("warning", "critical")
    assert first["constrained_loss"] == first["sets"]["domain"]["loss"]
    assert last["constrained_loss"] == pytest.approx(1000 + last["sets"]["general"]["delta"] - 0.05)


def test_an_unguarded_set_stops_nothing(eval_sets, make_trainer):
    callback = ForgettingCallback(eval_sets, guard=[], action="stop", eval_steps=20, tolerance=1e-9)
    trainer = make_trainer([callback], max_steps=20, learning_rate=2e-2, save_strategy="no")
    trainer.train()
    last = callback.history[-1]
    assert trainer.state.global_step == 20 and last["sets"]["general"]["state"] == "other"
    assert last["sets"]["general"]["delta"] > 0.1 and last["constrained_loss"] == last["sets"]["domain"]["loss"]


@pytest.mark.parametrize("fault", ["missing", "damaged", "other windows", "other sets"])
def test_a_resume_without_its_baseline_is_refused(eval_sets, make_trainer, tmp_path, fault):
    make_trainer([ForgettingCallback(eval_sets, eval_steps=3)], max_steps=3).train()
    path = tmp_path / "run" / BASELINE_NAME
    if fault == "missing":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    elif fault == "other windows":
        eval_sets["general"] = EvalWindows(eval_sets["general"].reader.directory, block_size=16, max_windows=5)
    else:
        eval_sets["more"] = eval_sets["general"]
    trainer = make_trainer([ForgettingCallback(eval_sets, eval_steps=3)], max_steps=6)
    with pytest.raises(
        CheckpointError, match={"missing": "is missing", "damaged": "is damaged"}.get(fault, "other eval")
    ):
        trainer.train(resume_from_checkpoint=True)


def of_sums(change):
    return lambda tensors: {k: change(v) if k == "general.sums" else v for k, v in tensors.items()}


BASELINES = {
    "NaN": of_sums(lambda sums: sums * math.nan),
    "one NaN": of_sums(lambda sums: np.append(sums[:-1], math.nan)),
    "infinite": of_sums(lambda sums: np.append(sums[:-1], math.inf)),
    "negative": of_sums(np.negative),
    "x 1e6": of_sums(lambda sums: sums * 1e6),
    "off by 1e-4": of_sums(lambda sums: sums * 1.0001),
    "windows in another order": of_sums(lambda sums: sums[::-1].copy()),
    "short": of_sums(lambda sums: sums[:-1].copy()),
    "one window": of_sums(lambda sums: sums[:1].copy()),
    "two dimensions": of_sums(lambda sums: sums[None]),
    "float32": of_sums(lambda sums: sums.astype(np.float32)),
    "int64": of_sums(lambda sums: sums.astype(np.int64)),
    "no tokens": lambda tensors: {k: v * 0 if k == "general.tokens" else v for k, v in tensors.items()},
    "a set too few": lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("general")},
}


def test_a_damaged_baseline_is_never_healthy(eval_sets, make_trainer, tmp_path):
    make_trainer([ForgettingCallback(eval_sets, eval_steps=3)], max_steps=3).train()
    run, history = tmp_path / "run", strict_json(tmp_path / "run" / "forgetting.json")["history"]
    losses = {name: reading["loss"] for name, reading in history[0]["sets"].items()}
    with safe_open(run / BASELINE_NAME, "np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    baseline = load_baseline(run, eval_sets, losses)
    assert {name: measured.loss for name, measured in baseline.items()} == losses
    for fault, change in BASELINES.items():
        for checksums in (True, False):  # files of before checksums
            if fault == "windows in another order" and not checksums:
                continue  # the same loss: only the checksum tells
            kept = metadata if checksums else {k: text.split(" xxh3")[0] for k, text in metadata.items()}
            save_file(change(dict(tensors)), run / BASELINE_NAME, metadata=kept)
            with pytest.raises(CheckpointError, match=r"forgetting_baseline\.safetensors is damaged"):
                load_baseline(run, eval_sets, losses)
    # The baseline of another run on the same windows is whole, and not this run's.
    save_file(tensors, run / BASELINE_NAME, metadata=metadata)
    for other in (losses | {"domain": losses["domain"] + 1e-6}, losses | {"domain": math.nan}, {}):
        with pytest.raises(CheckpointError, match="is damaged: a loss of"):
            load_baseline(run, eval_sets, other)


def test_what_was_measured_before_training_is_not_the_baseline(eval_sets, make_trainer):
    callback = ForgettingCallback(eval_sets)
    trainer = make_trainer([callback], max_steps=1)
    trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, {})
    assert len(callback.history) == 1
    torch.nn.init.normal_(trainer.model.model.embed_tokens.weight)
    trainer.train()
    assert [entry["step"] for entry in callback.history] == [0]
    assert callback.history[0]["sets"]["domain"]["delta"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "domian"}, "names the set 'domian'; the evaluation sets are: domain, general"),
        ({"guard": ["general", "law"]}, "names the set 'law'"),
        ({"action": "halt"}, "action is 'halt', expected one of: warn, stop"),
    ],
)
def test_names_that_do_not_exist_are_refused(eval_sets, options, message):
    with pytest.raises(MyPTError, match=re.escape(message)):
        ForgettingCallback(eval_sets, **options)


def test_no_evaluation_set_is_refused():
    with pytest.raises(MyPTError, match="no evaluation set"):
        ForgettingCallback({})


def test_a_broken_model_is_named_not_written_as_nan(model, eval_sets, make_trainer, tmp_path):
    trainer = make_trainer([ForgettingCallback(eval_sets, eval_steps=1)], max_steps=2, learning_rate=float("inf"))
    with pytest.raises(MyPTError, match=r"the loss on domain is nan at step 1: the model is broken"):
        trainer.train()
    assert len(strict_json(tmp_path / "run" / "forgetting.json")["history"]) == 1


def test_the_time_budget_suggests_an_interval(eval_sets, make_trainer, capsys):
    make_trainer(
        [ForgettingCallback(eval_sets, eval_steps=1, time_budget=1e-4)], max_steps=4, save_strategy="no"
    ).train()
    share, steps = re.search(r"evaluation took (\d+)% of the time; eval_steps: (\d+)", capsys.readouterr().out).groups()
    expected = int(share) / (100 - int(share)) * (1 - 1e-4) / 1e-4
    assert int(steps) == pytest.approx(expected, rel=0.2)
    make_trainer([ForgettingCallback(eval_sets, eval_steps=1, time_budget=0)], max_steps=4, save_strategy="no").train()
    assert "evaluation took" not in capsys.readouterr().out
