"""Document 1 of a packed window never changes what a model says about document 2; a model that cannot is refused."""

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.probes import leaks_between_documents, require_document_mask
from mypt.errors import MyPTError
from mypt.evaluation.loss import window_losses
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.shard_stream import ShardStream
from mypt.training.trainer.trainer import MyPTTrainer

BLOCK, VOCABULARY, EOS = 24, 50, 0
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": BLOCK}  # fmt: skip
MODELS = {
    "mypt rope": lambda: MyPTForCausalLM(MyPTConfig(**SIZES, head_dim=8)),
    "mypt learned": lambda: MyPTForCausalLM(MyPTConfig(**SIZES, head_dim=8, position_embedding_type="learned")),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=BLOCK, attn_pdrop=0.0,
                   embd_pdrop=0.0, resid_pdrop=0.0)
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def model(name, request):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.set_attn_implementation(request.param)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # attention that matters
    return model


@pytest.fixture
def packed(make_shards):
    """Two directories of one window of three documents; they differ in the first document alone."""
    rng = np.random.default_rng(0)
    window = rng.integers(1, VOCABULARY, BLOCK + 1)
    window[[9, 15]] = EOS  # documents: 0-9, 10-15, 16-24
    other = window.copy()
    other[:9] = rng.permutation(np.arange(1, VOCABULARY))[:9]
    assert (window[:9] != other[:9]).all()
    return [make_shards(str(i), train=ids, val=ids, vocab_size=VOCABULARY) for i, ids in enumerate((window, other))]


def batches(packed) -> list[dict]:
    options = {"block_size": BLOCK, "micro_batch_size": 1, "document_mask": True}
    first, second = (next(iter(ShardStream(directory, **options))) for directory in packed)
    assert first["position_ids"].tolist() == [[*range(10), *range(6), *range(8)]]
    assert torch.equal(first["input_ids"][:, 9:], second["input_ids"][:, 9:])
    return [first, second]


def differ(first: torch.Tensor, second: torch.Tensor) -> tuple[bool, bool]:
    """Whether two logits (1, BLOCK, V) differ in document 1, and in the documents after it."""
    return not torch.equal(first[:, :10], second[:, :10]), not torch.equal(first[:, 10:], second[:, 10:])


@pytest.mark.parametrize("trainer_class", [MyPTTrainer, Trainer])
def test_in_a_trainer(model, packed, tmp_path, trainer_class):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = trainer_class(model=model.eval(), args=args)
    losses, logits = zip(
        *((loss, outputs.logits) for loss, outputs in
          (trainer.compute_loss(model, batch, return_outputs=True) for batch in batches(packed))),
        strict=True,
    )  # fmt: skip
    assert differ(*logits) == (True, False)
    assert losses[0] != losses[1]


def test_the_gradient_of_a_later_document_does_not_reach_back(model, packed):
    """The loss of documents 2 and 3 alone gives the same gradients whatever document 1 was."""
    gradients = []
    for batch in batches(packed):
        model.zero_grad()
        targets = batch["shift_labels"].clone()
        targets[:, :10] = -100
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(left, right, atol=1e-7) for left, right in zip(*gradients, strict=True))


def test_in_the_evaluator(model, packed):
    """Over windows of document masks the loss is the sum over documents, each by itself."""
    first, second = (
        window_losses(model, EvalWindows(directory, block_size=BLOCK, document_mask=True)) for directory in packed
    )
    unmasked = window_losses(model, EvalWindows(packed[0], block_size=BLOCK))
    ids = torch.from_numpy(
        EvalWindows(packed[0], block_size=BLOCK).reader.gather(np.array([0]), BLOCK + 1)[0].astype(int)
    )
    alone = []
    for start, end in ((0, 10), (10, 16), (16, BLOCK)):
        with torch.no_grad():
            logits = model.eval()(input_ids=ids[None, start:end], use_cache=False).logits[0]
        alone.append(torch.nn.functional.cross_entropy(logits, ids[start + 1 : end + 1], reduction="sum").item())
    assert first.sums[0] == pytest.approx(sum(alone), rel=1e-5)
    assert abs(unmasked.sums[0] - first.sums[0]) > 1e-2
    assert first.sums[0] != second.sums[0]


@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_in_a_bare_call_of_mypt(packed, positions, use_cache):
    torch.manual_seed(0)
    model = MODELS[f"mypt {positions}"]().eval()
    first, second = (
        model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=use_cache).logits
        for batch in batches(packed)
    )
    assert differ(first, second) == (True, False)


def test_what_keeps_documents_apart_is_found_out(model):
    training, weights = model.training, {name: value.clone() for name, value in model.state_dict().items()}
    assert not leaks_between_documents(model)
    require_document_mask(model, "it")
    assert model.training is training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


class WithoutPositions(torch.nn.Module):
    """A model that takes no positions at all."""

    def __init__(self):
        super().__init__()
        self.config = LlamaConfig(**SIZES)
        self.inner = LlamaForCausalLM(self.config)

    def forward(self, input_ids, use_cache):
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_a_model_that_leaks_is_refused_in_one_line():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    config = OPTConfig(vocab_size=VOCABULARY, num_attention_heads=2, max_position_embeddings=BLOCK, **sizes)
    opt = OPTForCausalLM(config)
    for leaking in (opt, WithoutPositions()):
        with pytest.raises(MyPTError, match="does not keep packed documents apart") as caught:
            require_document_mask(leaking, "models/it")
        assert "\n" not in str(caught.value) and "models/it" in str(caught.value)
