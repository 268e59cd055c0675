"""The stream and the callbacks in anybody's transformers.Trainer, with anybody's causal LM."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from mypt.checkpoints.state import read_ledger
from mypt.errors import DataError, MyPTError
from mypt.evaluation.baseline import BASELINE_NAME
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.jit_stream import JitStream
from mypt.streams.shard_stream import ShardStream
from mypt.tokenization.train import build_char_tokenizer
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.forgetting import ForgettingCallback
from tests.processes import launch

BLOCK, VOCABULARY = 16, 32


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=24, n_layer=1, n_head=2, n_positions=BLOCK, bos_token_id=0, eos_token_id=0
        )
    )


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=BLOCK,
        )
    )


@pytest.fixture
def domain(make_shards):
    return make_shards("domain", train=np.arange(3_000) % VOCABULARY, val=np.arange(320) % VOCABULARY)


@pytest.fixture
def general(make_shards):
    draws = np.random.default_rng(0).integers(0, VOCABULARY, 3_320)
    return make_shards("general", train=draws[:3_000], val=draws[3_000:], vocab_size=VOCABULARY)


def arguments(tmp_path, **changes) -> TrainingArguments:
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
                "lr_scheduler_type": "constant", "save_steps": 2, "use_cpu": True, "report_to": "none",
                "disable_tqdm": True}  # fmt: skip
    return TrainingArguments(output_dir=str(tmp_path / "out"), remove_unused_columns=False, **defaults | changes)


def train(model, dataset, args, callbacks=(), resume=False, **options) -> tuple[Trainer, list[int]]:
    """Train and return the windows by their first ids, in order."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, _, kwargs: seen.extend(kwargs["input_ids"][:, :2].tolist()) if module.training else None,
        with_kwargs=True,
    )
    trainer = Trainer(model=model, args=args, train_dataset=dataset, callbacks=list(callbacks), **options)
    trainer.train(resume_from_checkpoint=resume or None)
    handle.remove()
    return trainer, seen


@pytest.fixture
def numbered(make_shards):
    """Windows that tell who they are: the first two ids of each block of 16 are its number in base 32."""
    ids = np.full((300, BLOCK), 1)
    ids[:, 0], ids[:, 1] = np.divmod(np.arange(300), VOCABULARY)
    return make_shards("numbered", train=ids.reshape(-1), vocab_size=VOCABULARY)


def expected_order(directory, first: int, count: int) -> list[list[int]]:
    stream = ShardStream(directory, block_size=BLOCK, seed=3, micro_batch_size=None, start_sample=first)
    return [sample["input_ids"][:2].tolist() for sample in itertools.islice(stream, count)]


@pytest.mark.parametrize("make_model", [gpt2, llama])
def test_a_stock_model_learns_from_the_stream(domain, tmp_path, make_model):
    set_seed(0)
    stream = ShardStream(domain, block_size=BLOCK, micro_batch_size=None)
    args = arguments(tmp_path, max_steps=25, save_strategy="no")
    trainer, _ = train(make_model(), stream, args, [CoverageCallback(stream, confirm=False)])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] > 3 and losses[-1] < 1.5


def test_the_order_is_the_streams_and_a_resume_goes_on_in_it(numbered, tmp_path):
    stream = ShardStream(numbered, block_size=BLOCK, seed=3, micro_batch_size=None)
    coverage = CoverageCallback(stream, confirm=False)
    _, seen = train(gpt2(), stream, arguments(tmp_path, gradient_accumulation_steps=2), [coverage])
    assert seen == expected_order(numbered, 0, 32) and coverage.next_sample == 32

    # as docs/stream.md says: the next sample from the checkpoint, and Trainer is told to skip nothing
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    start = state["stateful_callbacks"]["CoverageCallback"]["attributes"]["next_sample"]
    rest = ShardStream(numbered, block_size=BLOCK, seed=3, micro_batch_size=None, start_sample=start)
    args = arguments(tmp_path, gradient_accumulation_steps=2, ignore_data_skip=True)
    _, resumed = train(gpt2(), rest, args, [coverage], resume=str(tmp_path / "out" / "checkpoint-2"))
    assert start == 16 and resumed == seen[16:] and coverage.next_sample == 32

    # without both, Trainer reads and drops what was seen: the same order, only slower
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    _, skipped = train(gpt2(), stream, args, [coverage], resume=str(tmp_path / "out" / "checkpoint-2"))
    assert skipped == seen[16:]


def test_two_workers_give_no_sample_twice(numbered, tmp_path):
    stream = ShardStream(numbered, block_size=BLOCK, seed=3, micro_batch_size=None)
    args = arguments(tmp_path, dataloader_num_workers=2, max_steps=10, save_strategy="no")
    _, seen = train(gpt2(), stream, args)
    assert sorted(seen) == sorted(expected_order(numbered, 0, 40)) and len(set(map(tuple, seen))) == 40


@pytest.mark.parametrize("make_model", [gpt2, llama])
def test_forgetting_is_measured_once_per_evaluation_of_several_sets(domain, general, tmp_path, make_model, capsys):
    sets = {"domain": EvalWindows(domain, block_size=BLOCK), "general": EvalWindows(general, block_size=BLOCK)}
    stream = ShardStream(domain, block_size=BLOCK, micro_batch_size=None)
    forgetting = ForgettingCallback(sets)
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
                     metric_for_best_model="eval_constrained_loss", greater_is_better=False)  # fmt: skip
    trainer, _ = train(make_model(), stream, args, [forgetting], eval_dataset=sets)
    assert [entry["step"] for entry in forgetting.history] == [0, 2, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 3 and re.match(r"step 4: domain \d\.\d\d \| general \d\.\d\d \([+-]", lines[2])
    logged = [entry for entry in trainer.state.log_history if "forgetting/general_delta" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4]
    best = min(forgetting.history[1:], key=lambda entry: entry["constrained_loss"])
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best['step']}")
    assert json.loads((tmp_path / "out" / "forgetting.json").read_text())["guard"] == ["general"]


LAUNCHED = """
import json, os, sys
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from mypt import CoverageCallback, ShardStream

directory, out = sys.argv[1:]
stream = ShardStream(directory, block_size=16, seed=3, micro_batch_size=None)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=24, n_layer=1, n_head=2, n_positions=16, bos_token_id=0,
                                   eos_token_id=0))
seen = []
model.register_forward_pre_hook(lambda m, _, kw: seen.extend(kw["input_ids"][:, :2].tolist()), with_kwargs=True)
args = TrainingArguments(output_dir=out, max_steps=5, per_device_train_batch_size=4, dataloader_num_workers=2,
                         remove_unused_columns=False, use_cpu=True, save_strategy="no", report_to="none",
                         disable_tqdm=True)
coverage = CoverageCallback(stream)
Trainer(model=model, args=args, train_dataset=stream, callbacks=[coverage]).train()
with open(f"{out}/seen_{args.process_index}.json", "w") as file:
    json.dump({"seen": seen, "next_sample": coverage.next_sample}, file)
"""


def test_two_processes_of_two_workers_give_no_sample_twice(numbered, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(LAUNCHED)
    printed = launch("cpu_2.yaml", numbered, tmp_path, script=script)
    results = [json.loads((tmp_path / f"seen_{rank}.json").read_text()) for rank in (0, 1)]
    both = results[0]["seen"] + results[1]["seen"]
    assert len(results[0]["seen"]) == len(results[1]["seen"]) == 20
    assert sorted(both) == sorted(expected_order(numbered, 0, 40)) and len(set(map(tuple, both))) == 40
    assert [result["next_sample"] for result in results] == [40, 40]
    assert printed.count("Dataset coverage") == 1


# ---- datasets that are none of ours ----


def rows(count: int = 37) -> Dataset:
    """Samples of 1 to BLOCK tokens of the domain."""
    return Dataset.from_list([{"input_ids": [index % VOCABULARY] * (1 + index % BLOCK)} for index in range(count)])


def collate(samples: list[dict]) -> dict:
    ids = pad_sequence([torch.as_tensor(sample["input_ids"]) for sample in samples], batch_first=True)
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize(
    ("changes", "samples"),
    [
        ({}, [4, 8, 12, 16, 20, 24, 28, 32, 36, 37]),
        ({"gradient_accumulation_steps": 3}, [12, 24, 36, 37, 49]),
        ({"gradient_accumulation_steps": 3, "dataloader_drop_last": True}, [12, 24, 36, 48]),
        ({"dataloader_num_workers": 2}, [4, 8]),
    ],
    ids=["short-last-batch", "accumulation", "drop-last", "workers"],
)
def test_any_map_style_dataset_is_accounted_for_to_the_sample(tmp_path, changes, samples):
    """`samples` are those that the model was given by each step, which the ledger must equal."""
    coverage, given = CoverageCallback(confirm=False), []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            given.append((len(seen), coverage.next_sample))

    model, seen = gpt2(), []
    model.register_forward_pre_hook(lambda module, _, kwargs: seen.extend(kwargs["input_ids"]), with_kwargs=True)
    args = arguments(tmp_path, max_steps=len(samples), save_strategy="no", **changes)
    callbacks = [coverage, Count()]
    Trainer(model=model, args=args, train_dataset=rows(), data_collator=collate, callbacks=callbacks).train()
    assert given == [(count, count) for count in samples]
    [source] = coverage.ledger()
    assert source["coverage"] == samples[-1] / 37
    assert source["tokens"] == round(samples[-1] * sum(map(len, rows()["input_ids"])) / 37)


def test_a_resume_with_a_map_style_dataset_keeps_ledger_history_and_baseline(domain, general, tmp_path, capsys):
    def run(steps: int, data: Dataset, resume: bool = False):
        set_seed(0)
        callbacks = [CoverageCallback(confirm=False), ForgettingCallback(sets, eval_steps=2)]
        trainer, _ = train(gpt2(), data, arguments(tmp_path, max_steps=steps), callbacks, resume, data_collator=collate)
        return trainer, *callbacks

    sets = {"domain": EvalWindows(domain, block_size=BLOCK), "general": EvalWindows(general, block_size=BLOCK)}
    _, _, whole = run(12, rows())
    (tmp_path / "out").rename(tmp_path / "whole")
    run(10, rows())
    baseline = (tmp_path / "out" / BASELINE_NAME).read_bytes()
    trainer, coverage, forgetting = run(12, rows(), resume=True)
    assert (tmp_path / "out" / BASELINE_NAME).read_bytes() == baseline
    assert forgetting.history == whole.history and coverage.next_sample == 37 + 8
    assert [event["changes"] for event in coverage.events] == [{"max_steps": [10, 12]}]
    assert trainer.state.epoch == 1.2
    capsys.readouterr()
    run(14, rows(41), resume=True)
    assert f"dataset_tokens {sum(map(len, rows()['input_ids']))} -> " in capsys.readouterr().out, "other data is named"


def test_a_streaming_dataset_is_counted_and_its_size_asked_for(tmp_path, capsys):
    data = rows().to_iterable_dataset()
    for tokens, line in (
        (None, "not known: the data streams; give CoverageCallback(tokens=N)"),
        (640, "about 640 tok"),
    ):
        coverage = CoverageCallback(tokens=tokens, confirm=False)
        train(gpt2(), data, arguments(tmp_path, max_steps=3), [coverage], data_collator=collate)
        assert line in capsys.readouterr().out
        [seen] = coverage.ledger()
        assert seen["samples"] == 12 and seen["estimated"]
        assert seen["coverage"] == (None if tokens is None else pytest.approx(12 * coverage.stream.block_size / 640))
        saved = json.loads((tmp_path / "out" / "coverage.json").read_text())
        assert saved["seen"] == [seen] and read_ledger(tmp_path / "out")["next_sample"] == 12


def test_the_stream_is_found_in_the_trainer_and_is_a_hf_dataset_too(numbered, tmp_path):
    stream = ShardStream(numbered, block_size=BLOCK, seed=3, micro_batch_size=None)
    coverage = CoverageCallback(confirm=False)
    _, seen = train(gpt2(), stream, arguments(tmp_path), [coverage])
    assert coverage.stream is stream and coverage.next_sample == 16
    coverage = CoverageCallback(stream, confirm=False)
    _, same = train(gpt2(), stream.to_iterable_dataset(), arguments(tmp_path), [coverage], data_collator=collate)
    assert same == seen == expected_order(numbered, 0, 16) and coverage.ledger()[0]["coverage"] == 16 * BLOCK / 4_800
    with pytest.raises(DataError, match="micro_batch_size=None"):
        ShardStream(numbered, block_size=BLOCK).to_iterable_dataset()
    with pytest.raises(MyPTError, match="leave tokens out"):
        CoverageCallback(stream, tokens=5)


def test_the_best_step_can_be_chosen_whoever_measures_and_is_measured_at_the_end(domain, general, tmp_path):
    """`eval_steps` measures before the Trainer evaluates; the Trainer's own sets are any others."""
    sets = {"domain": EvalWindows(domain, block_size=BLOCK), "general": EvalWindows(general, block_size=BLOCK)}
    forgetting = ForgettingCallback(sets, eval_steps=2, tolerance=1e-4)
    set_seed(0)
    args = arguments(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
                     metric_for_best_model="eval_constrained_loss", greater_is_better=False)  # fmt: skip
    data = [sets["domain"][index] for index in range(8)]
    trainer, _ = train(
        gpt2(), data, args, [forgetting], eval_dataset=data, compute_metrics=lambda _: {"answer": 42},
    )  # fmt: skip
    best = min(forgetting.history[1:], key=lambda entry: entry["constrained_loss"])
    assert trainer.state.best_global_step == best["step"] < 8
    history = list(forgetting.history)
    metrics = trainer.evaluate()
    assert metrics["eval_answer"] == 42 and metrics["eval_constrained_loss"] == best["constrained_loss"]
    assert metrics["eval_general_loss"] == best["sets"]["general"]["loss"] and forgetting.history == history


def test_trackers_get_each_measurement_at_its_step_and_nothing_of_the_trainer_is_lost(domain, general, tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, set(logs)))

    sets = {"domain": EvalWindows(domain, block_size=BLOCK), "general": EvalWindows(general, block_size=BLOCK)}
    stream = ShardStream(domain, block_size=BLOCK, micro_batch_size=None)
    trainer = Trainer(model=gpt2(), args=arguments(tmp_path), train_dataset=stream, callbacks=[Tracker()])
    trainer.add_callback(ForgettingCallback(sets, eval_steps=2, log=trainer.log))
    trainer.train()
    assert [step for step, names in seen if "forgetting/general_delta" in names] == [0, 2, 4]
    assert [step for step, names in seen if "loss" in names] == [1, 2, 3, 4]
    logged = [entry["step"] for entry in trainer.state.log_history if "eval_constrained_loss" in entry]
    assert logged == [0, 2, 4]


@pytest.mark.parametrize("size", ["vocabulary", "context"])
def test_evaluation_sets_that_do_not_fit_the_model_are_named(make_shards, domain, tmp_path, size):
    large = make_shards("large", train=np.arange(100), val=np.arange(100))
    windows = (
        EvalWindows(large, block_size=BLOCK) if size == "vocabulary" else EvalWindows(domain, block_size=2 * BLOCK)
    )
    words = "set large has the token id 99.*vocabulary 32" if size == "vocabulary" else "windows of 32.*context is 16"
    stream = ShardStream(domain, block_size=BLOCK, micro_batch_size=None)
    with pytest.raises(DataError, match=words):
        train(gpt2(), stream, arguments(tmp_path), [ForgettingCallback({"large": windows})])


def test_reduce_lr_halves_the_rest_of_any_schedule_and_a_resume_keeps_it(domain, general, tmp_path, capsys):
    sets = {"domain": EvalWindows(domain, block_size=BLOCK), "general": EvalWindows(general, block_size=BLOCK)}

    def run(steps: int, resume: bool = False) -> tuple[dict, ForgettingCallback]:
        set_seed(0)
        stream = ShardStream(domain, block_size=BLOCK, micro_batch_size=None)
        coverage = CoverageCallback(stream, confirm=False)
        forgetting = ForgettingCallback(sets, action="reduce_lr", tolerance=0.01, eval_steps=4, coverage=coverage)
        args = arguments(tmp_path, max_steps=steps, lr_scheduler_type="constant_with_warmup", warmup_steps=2,
                         save_steps=4, learning_rate=2e-2)  # fmt: skip
        trainer, _ = train(gpt2(), stream, args, [coverage, forgetting], resume)
        history = trainer.state.log_history
        return {entry["step"]: entry["learning_rate"] for entry in history if "loss" in entry}, forgetting

    rates, forgetting = run(16)
    (tmp_path / "out").rename(tmp_path / "whole")
    run(12)
    resumed, continued = run(16, resume=True)
    acted = [entry["step"] for entry in forgetting.guard.actions]
    assert acted and acted[0] < 12
    for step, rate in rates.items():
        cuts = sum(at < step for at in acted)
        assert rate == pytest.approx(2e-2 * min(1, (step - 1) / 2) * 0.5**cuts), f"step {step} after cuts at {acted}"
    assert resumed == rates and continued.guard.actions == forgetting.guard.actions
    assert continued.history == forgetting.history
    report = json.loads((tmp_path / "out" / "forgetting.json").read_text())
    ledger = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert report["actions"] == forgetting.guard.actions
    assert [event["step"] for event in ledger["events"] if "guard" in event] == acted
    assert "learning rate 0.02 -> 0.01" in capsys.readouterr().out


def test_actions_that_cannot_work_in_a_stock_trainer_are_refused(domain, tmp_path):
    sets = {"domain": EvalWindows(domain, block_size=BLOCK)}
    for action in ("raise_replay", "rollback"):
        with pytest.raises(MyPTError, match=f"{action} needs MyPT's own trainer.*one of: warn, stop, reduce_lr"):
            ForgettingCallback(sets, guard=["domain"], action=action)
    forgetting = ForgettingCallback(sets, guard=["domain"], action="reduce_lr", eval_steps=1)
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, lr_scheduler_type="reduce_lr_on_plateau")
    data = [sets["domain"][index] for index in range(8)]
    with pytest.raises(MyPTError, match="ReduceLROnPlateau sets by itself; use warn or stop, or another schedule"):
        train(gpt2(), data, args, [forgetting], eval_dataset=data)


def test_a_stream_of_text_is_refused_before_the_training_rather_than_at_the_first_save(tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "some text"}) + "\n")
    stream = JitStream(tmp_path / "text.jsonl", build_char_tokenizer("some text"), block_size=4, micro_batch_size=None)
    with pytest.raises(MyPTError, match="would lose its place at the first save; use `mypt train`, or prepare"):
        train(gpt2(), stream, arguments(tmp_path), [CoverageCallback(confirm=False)])
