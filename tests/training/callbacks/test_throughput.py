"""Where a step's time goes, in a real Trainer whose parts take a known time; and what it costs to know."""

import time

import pytest
import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from mypt.recipe import parse_recipe
from mypt.streams.eval_windows import EvalWindows
from mypt.training.build import build_trainer
from mypt.training.callbacks.forgetting import ForgettingCallback
from mypt.training.callbacks.progress import ProgressBarCallback
from mypt.training.callbacks.throughput import ThroughputCallback
from mypt.training.model.flops import flops_per_token

NAP = 0.08  # seconds
KEYS = {"throughput/tokens_per_second", "throughput/mfu", "throughput/data_ms", "throughput/compute_ms",
        "throughput/optimizer_ms", "throughput/rest_ms", "throughput/memory_gib",
        "throughput/eta_seconds"}  # fmt: skip


class Slow(TrainerCallback):
    """Sleeps in one event."""

    def __init__(self, event: str):
        setattr(self, event, lambda *args, **kwargs: time.sleep(NAP))


def slow_samples(stream):
    class SlowStream(torch.utils.data.IterableDataset):
        def __iter__(self):
            for sample in stream:
                time.sleep(NAP / 4)
                yield sample

    return SlowStream()


def logged(trainer) -> list[dict]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def milliseconds(entries: list[dict], kind: str) -> float:
    return sum(entry[f"throughput/{kind}_ms"] for entry in entries) / len(entries)


def test_every_number_is_logged_and_they_are_one_arithmetic(make_trainer, stream):
    trainer = make_trainer([ThroughputCallback(16)], max_steps=6, logging_steps=2, gradient_accumulation_steps=2)
    entries = logged(trainer)
    assert len(entries) == 3 and all(entry.keys() >= KEYS for entry in entries)
    peak = trainer.callback_handler.callbacks[-1].peak.flops
    for entry in entries:
        seconds = sum(entry[f"throughput/{kind}_ms"] for kind in ("data", "compute", "rest")) / 1e3
        assert 0 < entry["throughput/optimizer_ms"] < entry["throughput/compute_ms"]
        rate = 4 * 2 * 16 / seconds
        assert entry["throughput/tokens_per_second"] == pytest.approx(rate, rel=1e-3)
        flops = 6 * trainer.model.num_parameters(exclude_embeddings=True)  # as a stock Trainer counts
        assert entry["throughput/mfu"] == pytest.approx(rate * flops / peak, rel=1e-2)
    assert entries[-1]["throughput/eta_seconds"] == 0


@pytest.mark.parametrize("order", ["first", "last"])
def test_what_takes_long_is_found_where_it_is(make_trainer, stream, order):
    def run(*slow, **options):
        throughput = ThroughputCallback(16)
        callbacks = [throughput, *slow] if order == "first" else [*slow, throughput]
        trainer = make_trainer(callbacks, max_steps=4, logging_steps=4, save_strategy="no", **options)
        if not slow:
            trainer.train_dataset = slow_samples(stream)
        return logged(trainer)

    data = run()
    assert milliseconds(data, "data") > 1e3 * NAP and milliseconds(data, "rest") < 1e3 * NAP
    compute = run(Slow("on_pre_optimizer_step"))
    assert milliseconds(compute, "compute") > 1e3 * NAP and milliseconds(compute, "data") < 1e3 * NAP
    # the nap comes before the optimizer: after its first mark where the other callback is the later one
    assert (milliseconds(compute, "optimizer") > 1e3 * NAP) == (order == "first")
    if order == "last":
        rest = run(Slow("on_step_end"))
        assert milliseconds(rest, "rest") > 1e3 * NAP and milliseconds(rest, "data") < 1e3 * NAP


def test_evaluating_and_saving_are_no_training(make_trainer, domain):
    """Both take a nap, and so does what comes before the first step; only the time that is left knows of the two."""

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = state.global_step % 2 == 0

    slow = [Slow("on_evaluate"), Slow("on_save"), Slow("on_train_begin")]
    trainer = make_trainer([*slow, Evaluate(), ThroughputCallback(16)], max_steps=6, save_steps=2)
    trainer.eval_dataset = EvalWindows(domain, block_size=16)
    entries = logged(trainer)
    assert milliseconds(entries, "data") + milliseconds(entries, "rest") < 1e3 * NAP / 2
    # after step 3 one round of both lies behind, and as many steps are left
    trained = sum(entry[f"throughput/{kind}_ms"] for entry in entries[:3] for kind in ("data", "compute", "rest"))
    assert entries[2]["throughput/eta_seconds"] > trained / 1e3 + 2 * NAP - 0.05


def test_the_time_that_is_left_knows_nothing_of_the_first_step(make_trainer, monkeypatch):
    now = [0.0]  # seconds of a clock that only this callback moves
    monkeypatch.setattr("mypt.training.callbacks.throughput._CpuClock.mark", staticmethod(lambda: now[0]))

    class Compile(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            now[0] += 100 if state.global_step == 0 else 1

    entries = logged(make_trainer([Compile(), ThroughputCallback(16)], max_steps=10, save_strategy="no"))
    assert entries[0]["throughput/eta_seconds"] == 9 * 100, "nothing else is known"
    assert [entry["throughput/eta_seconds"] for entry in entries[1:]] == [*range(8, -1, -1)]


def test_a_callback_that_evaluates_by_itself_is_no_training_either(make_trainer, domain, monkeypatch):
    monkeypatch.setattr("mypt.training.callbacks.forgetting.human_line", lambda *_: time.sleep(NAP) or "")
    for at in (0, 1):
        callbacks = [ForgettingCallback({"domain": EvalWindows(domain, block_size=16)}, eval_steps=1)]
        callbacks.insert(at, ThroughputCallback(16))
        entries = logged(make_trainer(callbacks, max_steps=4, save_strategy="no"))
        assert milliseconds(entries, "data") + milliseconds(entries, "rest") < 1e3 * NAP / 2


def test_in_our_trainer_the_numbers_come_first_and_by_our_own_flops(recipe_for, capsys):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = build_trainer(parse_recipe(recipe_for(data={"curriculum": {"start_length": 16, "steps": 6}})))
    trainer.callback_handler.callbacks.insert(1, Reporter())  # where Trainer puts those of report_to
    entries = logged(trainer)
    assert all(entry.keys() >= KEYS for entry in seen if "loss" in entry)
    assert not any("throughput" in key for entry in seen if "loss" not in entry for key in entry)
    short, long = (flops_per_token(trainer.model, length) for length in (16, 32))
    assert trainer.state.total_flos == 4 * 32 * (6 * short + 6 * long)
    for entry, per_token in ((entries[1], short), (entries[-1], long)):
        rate = entry["throughput/tokens_per_second"]
        expected = rate * per_token / trainer.throughput.peak.flops
        assert entry["throughput/mfu"] == pytest.approx(expected, rel=0.01)
    out = capsys.readouterr().out
    assert out.count("throughput: MFU is of a measured peak of") == 1
    last = entries[-2]
    assert f"{last['throughput/tokens_per_second']:,.0f} tokens/s, {last['throughput/mfu']:.1%} MFU" in out


def test_a_resume_counts_from_its_own_start(make_trainer, tmp_path):
    make_trainer([ThroughputCallback(16)], max_steps=3).train()
    trainer = make_trainer([ThroughputCallback(16), ProgressBarCallback()], max_steps=5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    first = next(entry for entry in trainer.state.log_history if entry["step"] == 4)
    seconds = sum(first[f"throughput/{kind}_ms"] for kind in ("data", "compute", "rest")) / 1e3
    assert first["throughput/tokens_per_second"] == pytest.approx(4 * 16 / seconds, rel=1e-2)
    assert first["throughput/mfu"] < 1


def test_it_keeps_little_however_seldom_the_run_logs(tmp_path, model):
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=10_000, use_cpu=True, report_to="none")
    state, callback = TrainerState(max_steps=10_000), ThroughputCallback(16)
    callback.on_train_begin(args, state, None, model=model)
    for _ in range(5_000):
        callback.on_step_begin(args, state, None)
        callback.on_optimizer_step(args, state, None)
        state.global_step += 1
        callback.on_step_end(args, state, None)
    assert len(callback._marks) < 4_100 and callback._seconds["data"] > 0
