"""A small model and two datasets: one that is quickly learned, and noise that is forgotten while that happens."""

import numpy as np
import pytest
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.shard_stream import ShardStream

BLOCK = 16
VOCABULARY = 32


@pytest.fixture
def domain(make_shards):
    """Counting: 3,000 tokens, 186 windows an epoch."""
    return make_shards("domain", train=np.arange(3_000) % VOCABULARY, val=np.arange(330) % VOCABULARY)


@pytest.fixture
def general(make_shards):
    """The first three ids at random, whose frequency a model can know and forget."""
    draws = np.random.default_rng(0).integers(0, 3, 3_333)
    return make_shards("general", train=draws[:3_000], val=draws[3_000:], vocab_size=VOCABULARY)


@pytest.fixture
def eval_sets(domain, general):
    return {"domain": EvalWindows(domain, block_size=BLOCK), "general": EvalWindows(general, block_size=BLOCK)}


@pytest.fixture
def model():
    from transformers import set_seed

    set_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 40}  # fmt: skip
    return MyPTForCausalLM(preset_config("modern-nano", **sizes, max_position_embeddings=BLOCK))


@pytest.fixture
def stream(domain):
    return ShardStream(domain, block_size=BLOCK, micro_batch_size=None)


@pytest.fixture
def make_trainer(tmp_path, model, stream):
    """A stock Trainer without its own output: make_trainer([callbacks], max_steps=3, ...)."""

    def make(callbacks, *, trained=model, **arguments) -> Trainer:
        defaults = {"per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 3, "learning_rate": 1e-3,
                    "lr_scheduler_type": "constant", "use_cpu": True, "report_to": "none"}  # fmt: skip
        args = TrainingArguments(output_dir=str(tmp_path / "run"), remove_unused_columns=False, **defaults | arguments)
        trainer = Trainer(model=trained, args=args, train_dataset=stream, callbacks=callbacks)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        return trainer

    return make
