"""The stream and the callbacks in anybody's transformers.Trainer, with anybody's causal LM."""

import itertools
import json
import re

import numpy as np
import pytest
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from mypt.streams.eval_windows import EvalWindows
from mypt.streams.shard_stream import ShardStream
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
