"""The callbacks in TRL's SFTTrainer: with any kind of dataset, LoRA, packing, dialogues, and after a resume."""

import json
import random
import string

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, processors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from mypt import CoverageCallback, EvalWindows, ForgettingCallback, ShardStream
from mypt.errors import MyPTError
from mypt.evaluation.loss import window_losses
from tests.packages import needs
from tests.processes import ROOT, launch

pytestmark = needs("trl", "TRL is not installed (the dev extra has it)")

LETTERS = string.ascii_lowercase
TEMPLATE = "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
BLOCK = 32


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A foreign one: of characters, with a BOS that it puts before each text, and a chat template."""
    names = ["<s>", "</s>", "<pad>", "<unk>", *LETTERS, *"[]. "]
    backend = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [], unk_token="<unk>"))
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **roles)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def domain_texts(count: int) -> list[str]:
    """The alphabet over and over, from any letter on: quickly learned."""
    return [(LETTERS * 3)[start % 26 :][:40] for start in range(count)]


def general_texts(count: int) -> list[str]:
    """Three letters at random, whose frequency a model can know, and forgets when it learns the alphabet."""
    draws = random.Random(0)
    return ["".join(draws.choices("abc", k=40)) for _ in range(count)]


def make_domain() -> Dataset:
    return Dataset.from_list([{"text": text} for text in domain_texts(38)])


@pytest.fixture(scope="module")
def domain() -> Dataset:
    return make_domain()


def make_eval_sets(tokenizer: PreTrainedTokenizerFast) -> dict[str, EvalWindows]:
    return {
        "domain": EvalWindows.from_texts(domain_texts(12), tokenizer, block_size=BLOCK),
        "general": EvalWindows.from_texts(general_texts(12), tokenizer, block_size=BLOCK),
    }


@pytest.fixture
def eval_sets(tokenizer):
    return make_eval_sets(tokenizer)


def llama() -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=64, **sizes))


@pytest.fixture
def make_trainer(tmp_path, tokenizer, domain):
    """make_trainer([callbacks], train_dataset=..., max_steps=...): SFTTrainer's own options and those of SFTConfig."""
    disable_progress_bars()

    def make(callbacks, *, train_dataset=domain, model=None, eval_dataset=None, peft_config=None, metrics=None, **args):
        import trl

        defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 2e-2, "save_steps": 2,
                    "lr_scheduler_type": "constant", "max_length": 48, "logging_steps": 1, "use_cpu": True,
                    "bf16": False, "report_to": "none", "disable_tqdm": True}  # fmt: skip
        return trl.SFTTrainer(
            model=model or llama(), args=trl.SFTConfig(str(tmp_path / "run"), **defaults | args),
            train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer, callbacks=callbacks,
            peft_config=peft_config, compute_metrics=metrics,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("kind", ["map", "streaming", "ours"])
def test_a_run_is_measured_accounted_for_and_stopped(
    kind, make_trainer, eval_sets, make_shards, domain, tokenizer, tmp_path
):
    train_dataset, coverage = domain, CoverageCallback(confirm=False)
    if kind == "streaming":
        train_dataset = domain.to_iterable_dataset()
    if kind == "ours":
        ids = np.concatenate([tokenizer(text)["input_ids"] + [1] for text in domain["text"]])
        stream = ShardStream(make_shards(train=ids, vocab_size=40, eos=1), block_size=BLOCK, micro_batch_size=None)
        train_dataset, coverage = stream.to_iterable_dataset(), CoverageCallback(stream, confirm=False)
    forgetting = ForgettingCallback(eval_sets, action="stop", eval_steps=4, tolerance=0.1)
    trainer = make_trainer([coverage, forgetting], train_dataset=train_dataset, max_steps=60, save_steps=100)
    trainer.train()
    last, stopped = forgetting.history[-1], trainer.state.global_step
    assert forgetting.stopped_at == stopped == last["step"] < 60
    assert last["sets"]["general"]["delta"] > 0.1 and last["sets"]["domain"]["delta"] < -0.5
    assert all(entry["sets"]["general"]["state"] in ("healthy", "watch") for entry in forgetting.history[:-1])
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / f"checkpoint-{stopped}")
    for name, windows in eval_sets.items():
        assert last["sets"][name]["loss"] == pytest.approx(window_losses(saved, windows).loss, abs=1e-5)
    [seen] = coverage.ledger()
    samples = stopped // 10 * 38 + stopped % 10 * 4  # of the map: 10 steps an epoch, the last of 2
    assert seen["samples"] == (samples if kind == "map" else 4 * stopped)
    assert seen["tokens"] == seen["samples"] * (BLOCK if kind == "ours" else 42), "40 letters, BOS and EOS"
    assert seen["estimated"] == (kind == "streaming")
    report = json.loads((tmp_path / "run" / "forgetting.json").read_text())
    assert report["verdict"].startswith("forgetting: ") and report["history"] == forgetting.history


@pytest.mark.slow
def test_adapters_are_measured_against_the_base_and_a_resume_goes_on(make_trainer, eval_sets, tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=4, target_modules="all-linear")

    def run(steps: int, resume: bool = False) -> tuple:
        callbacks = CoverageCallback(confirm=False), ForgettingCallback(eval_sets, eval_steps=2)
        make_trainer([*callbacks], peft_config=adapters, max_steps=steps).train(resume_from_checkpoint=resume)
        return callbacks

    _, whole = run(6)
    (tmp_path / "run").rename(tmp_path / "whole")
    run(4)
    coverage, resumed = run(6, resume=True)
    assert [entry["step"] for entry in resumed.history] == [0, 2, 4, 6]
    assert coverage.next_sample == 24
    base = window_losses(llama(), eval_sets["general"]).loss
    for mine, other in zip(resumed.history, whole.history, strict=True):
        assert mine["sets"]["general"]["loss"] == pytest.approx(other["sets"]["general"]["loss"], abs=1e-5)
        assert mine["sets"]["general"]["delta"] == pytest.approx(mine["sets"]["general"]["loss"] - base, abs=1e-6)


@pytest.mark.slow
def test_reduce_lr_halves_the_rest_of_the_schedule(make_trainer, eval_sets):
    forgetting = ForgettingCallback(eval_sets, action="reduce_lr", tolerance=0.01, eval_steps=4)
    trainer = make_trainer([forgetting], max_steps=40, lr_scheduler_type="linear", save_strategy="no")
    trainer.train()
    acted = [entry["step"] for entry in forgetting.guard.actions]
    assert acted and forgetting.guard.rate_factor == 0.5 ** len(acted)
    for entry in trainer.state.log_history:
        if "loss" in entry:
            left = (41 - entry["step"]) / 40 * 0.5 ** sum(at < entry["step"] for at in acted)
            assert entry["learning_rate"] == pytest.approx(2e-2 * left)


@pytest.mark.slow
def test_reduce_lr_is_refused_on_a_plateau_schedule(make_trainer, eval_sets, domain):
    trainer = make_trainer(
        [ForgettingCallback(eval_sets, action="reduce_lr", eval_steps=2)], eval_dataset=domain.select(range(8)),
        eval_strategy="steps", eval_steps=2, lr_scheduler_type="reduce_lr_on_plateau",
    )  # fmt: skip
    with pytest.raises(MyPTError, match="ReduceLROnPlateau sets by itself"):
        trainer.train()


DIALOGUES = [
    {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": text[:20]}]}
    for text in domain_texts(16)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "options", "samples", "tokens"),
    [
        (None, {"packing": True}, 16, None),
        (None, {"gradient_accumulation_steps": 3}, 4 * 12 - 10, 38 * 42),
        (None, {"dataloader_num_workers": 2}, 16, 16 * 42),
        (None, {"bf16": None}, 16, 16 * 42),
        (DIALOGUES, {}, 16, 16 * 31),
        (DIALOGUES, {"assistant_only_loss": False, "max_length": 20}, 16, 16 * 20),
    ],
    ids=["packing", "accumulation", "workers", "bf16", "dialogues", "truncated"],
)
def test_options_that_change_the_data_or_the_steps(make_trainer, eval_sets, rows, options, samples, tokens, tokenizer):
    data = {"train_dataset": Dataset.from_list(rows)} if rows else {}
    coverage = CoverageCallback(confirm=False)
    forgetting = ForgettingCallback(eval_sets, eval_steps=2)
    trainer = make_trainer([coverage, forgetting], **data, **options)
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    trainer.train()
    assert [entry["step"] for entry in forgetting.history] == [0, 2, 4]
    [seen] = coverage.ledger()
    samples = min(samples, len(lengths)) if "packing" in options else samples
    assert seen["samples"] == samples and seen["coverage"] == samples / len(lengths)
    assert seen["tokens"] == (tokens or pytest.approx(samples * np.mean(lengths), abs=1))


@pytest.mark.slow
def test_the_best_step_trackers_and_metrics(make_trainer, eval_sets, domain, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = make_trainer(
        [], eval_dataset=domain.select(range(8)), metrics=lambda _: {"answer": 42}, report_to="tensorboard",
        eval_strategy="steps", eval_steps=4, save_steps=4, max_steps=24, load_best_model_at_end=True,
        metric_for_best_model="eval_constrained_loss", greater_is_better=False,
    )  # fmt: skip
    forgetting = ForgettingCallback(eval_sets, tolerance=0.1, log=trainer.log)
    trainer.add_callback(forgetting)
    trainer.train()
    best = min(forgetting.history[1:], key=lambda entry: entry["constrained_loss"])
    assert trainer.state.best_global_step == best["step"] < 24
    metrics = trainer.evaluate()
    assert metrics["eval_answer"] == 42
    assert metrics["eval_constrained_loss"] == pytest.approx(best["constrained_loss"], abs=1e-5)
    [events] = (tmp_path / "run" / "runs").iterdir()
    events = accumulator.EventAccumulator(str(events)).Reload()
    logged = {event.step: event.value for event in events.Scalars("train/forgetting/general_delta")}
    assert logged == {
        entry["step"]: pytest.approx(entry["sets"]["general"]["delta"], abs=1e-6) for entry in forgetting.history
    }
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 25))
    assert len(events.Scalars("train/mean_token_accuracy")) == 24, "TRL's own metrics are in its own entries"


@pytest.mark.slow
def test_a_stream_of_ours_resumes_at_its_next_sample(make_trainer, eval_sets, make_shards, domain, tokenizer, tmp_path):
    ids = np.concatenate([tokenizer(text)["input_ids"] + [1] for text in domain["text"]])
    directory = make_shards(train=ids, vocab_size=40, eos=1)

    def run(steps: int, state=None, resume: bool = False) -> list:
        stream = ShardStream(directory, block_size=BLOCK, micro_batch_size=None, state=state)
        coverage, seen, model = CoverageCallback(stream, confirm=False), [], llama()
        model.register_forward_pre_hook(lambda module, _, kw: seen.extend(kw["input_ids"].tolist()), with_kwargs=True)
        options = {"train_dataset": stream.to_iterable_dataset(), "max_steps": steps, "ignore_data_skip": resume}
        make_trainer([coverage], model=model, **options).train(resume_from_checkpoint=resume)
        assert coverage.next_sample == 4 * steps
        return seen

    whole = run(4)
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    rest = run(6, state["stateful_callbacks"]["CoverageCallback"]["attributes"], resume=True)
    (tmp_path / "run").rename(tmp_path / "first")
    assert whole + rest == run(6)


LAUNCHED = """
import json, sys
from pathlib import Path
root, out, kind = sys.argv[1:]
sys.path.insert(0, root)
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer
from mypt import CoverageCallback, ForgettingCallback
from tests.training.test_trl import llama, make_domain, make_eval_sets, make_tokenizer

tokenizer, data = make_tokenizer(), make_domain()
config = SFTConfig if kind == "sft" else TrainingArguments
options = {"max_length": 48} if kind == "sft" else {"remove_unused_columns": True}
args = config(out, max_steps=60, per_device_train_batch_size=2, learning_rate=2e-2, lr_scheduler_type="constant",
              save_steps=100, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, **options)
callbacks = [CoverageCallback(confirm=False),
             ForgettingCallback(make_eval_sets(tokenizer), action="stop", eval_steps=4, tolerance=0.1)]
if kind == "sft":
    trainer = SFTTrainer(llama(), args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
else:
    rows = data.map(lambda row: tokenizer(row["text"]) | {"labels": tokenizer(row["text"])["input_ids"]})
    trainer = Trainer(llama(), args, train_dataset=rows.to_iterable_dataset(), callbacks=callbacks)
trainer.train()
result = {"history": callbacks[1].history, "ledger": callbacks[0].ledger(), "step": trainer.state.global_step}
Path(out, f"rank_{args.process_index}.json").write_text(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "streaming"])
def test_two_processes_stop_at_the_step_of_one(kind, tmp_path, make_trainer, eval_sets):
    (tmp_path / "train.py").write_text(LAUNCHED)
    printed = launch("cpu_2.yaml", ROOT, tmp_path / "two", kind, script=tmp_path / "train.py")
    first, second = (json.loads((tmp_path / "two" / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and printed.count("Dataset coverage") == printed.count("stopping") == 1
    assert first["step"] < 60 and first["history"][-1]["sets"]["general"]["delta"] > 0.1
    if kind == "sft":
        coverage = CoverageCallback(confirm=False)
        forgetting = ForgettingCallback(eval_sets, action="stop", eval_steps=4, tolerance=0.1)
        trainer = make_trainer([coverage, forgetting], max_steps=60, save_steps=100)
        trainer.train()
        assert (first["step"], first["ledger"]) == (trainer.state.global_step, coverage.ledger())
        for mine, other in zip(first["history"], forgetting.history, strict=True):
            assert mine["sets"]["general"]["loss"] == pytest.approx(other["sets"]["general"]["loss"], abs=1e-3)
    else:
        assert first["ledger"][0]["samples"] == 4 * first["step"] and first["ledger"][0]["estimated"]
