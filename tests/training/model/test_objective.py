"""What is trained on is the cross-entropy, whatever a model computes itself; what it adds is weighed and told apart."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mypt.recipe import parse_recipe
from mypt.tokenization.load import largest_id, load_tokenizer
from mypt.training.build import build_trainer
from mypt.training.model.objective import TrainingLoss, cross_entropy, training_loss
from mypt.training.run import train

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "max_position_embeddings": 64}
COEFFICIENT = 0.5


def experts(vocab_size: int = 40, **fields) -> MixtralForCausalLM:
    torch.manual_seed(0)
    routers = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=vocab_size, router_aux_loss_coef=COEFFICIENT, **SIZES, **routers | fields)
    )


def llama(forward=None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES))
    if forward:
        own = model.forward
        model.forward = lambda *args, **kwargs: forward(own, *args, **kwargs)
    return model


def doubled(own, *args, **kwargs):
    outputs = own(*args, **kwargs)
    if outputs.loss is not None:
        outputs.loss = outputs.loss * 2
    return outputs


def of_labels(own, *args, shift_labels=None, **kwargs):
    return own(*args, **kwargs)


def per_batch(own, *args, num_items_in_batch=None, **kwargs):
    return own(*args, **kwargs)


def test_a_loss_that_is_the_cross_entropy_is_left_to_the_model():
    assert training_loss(llama(), accepts_items=True) is None
    assert training_loss(experts(output_router_logits=False), accepts_items=True) is None


@pytest.mark.parametrize("forward", [doubled, of_labels, per_batch])
def test_a_loss_that_is_not_is_replaced_and_told(forward):
    model, state = llama(forward), torch.get_rng_state()
    loss = training_loss(model, accepts_items=True)
    assert "the loss of LlamaForCausalLM is not the cross-entropy" in loss.note and not loss.coefficient
    assert torch.equal(torch.get_rng_state(), state)
    ids = torch.arange(12).view(2, 6)
    labels = ids + 1
    logits = model(ids).logits
    assert loss(_outputs(logits), labels, 24).item() == pytest.approx(
        -logits.log_softmax(-1).gather(-1, labels[..., None]).sum().item() / 24, rel=1e-6
    )


def test_in_16_bits_the_balance_is_found_whatever_the_weights_are():
    for seed in range(12):
        torch.manual_seed(seed)
        routers = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
        config = MixtralConfig(vocab_size=40, router_aux_loss_coef=0.001, initializer_range=0.1, **SIZES, **routers)
        loss = training_loss(MixtralForCausalLM(config).bfloat16(), accepts_items=True)
        assert (loss.coefficient, loss.top_k) == (0.001, 2), f"seed {seed}: {loss.note}"


def _outputs(logits):
    return type("Outputs", (), {"logits": logits})


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_row_s_balance_is_what_the_model_computes_for_that_row_alone(top_k):
    model = experts(num_experts_per_tok=top_k)
    loss = training_loss(model, accepts_items=True)
    assert loss.coefficient == COEFFICIENT and loss.top_k == top_k and not loss.note
    ids = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(0))
    together = loss.balance(model(ids).router_logits, rows=3)
    alone = [load_balancing_loss_func(model(row[None]).router_logits, 4, top_k) for row in ids]
    torch.testing.assert_close(together, torch.stack(alone))


def test_balance_by_hand():
    """Two tokens, two experts, one chosen: both choose the first, with the probabilities 0.75 and 0.6."""
    loss = TrainingLoss(coefficient=1.0, top_k=1)
    logits = torch.tensor([[0.75, 0.25], [0.6, 0.4]]).log()
    assert loss.balance((logits,), rows=1).item() == pytest.approx(2 * 1.0 * (0.75 + 0.6) / 2)
    even = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    assert loss.balance((even,), rows=1).item() == pytest.approx(1.0)  # the least
    assert loss.balance((torch.cat([logits, even]),), rows=2).tolist() == pytest.approx([1.35, 1.0])


@pytest.fixture
def saved(corpora, tmp_path):
    """The folder of a mixture of experts with the tokenizer of the corpora."""
    tokenizer = load_tokenizer(corpora / "general")
    model = experts(largest_id(tokenizer) + 1)
    model.save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    return tmp_path / "experts"


def test_layouts_agree_and_training_is_comparable_with_evaluation(saved, recipe_for, weights, tmp_path, without_plots):
    """The promise of `layouts agree`: 1e-5, also where an auxiliary loss is half of what is trained on."""
    content = recipe_for(optimizer={"name": "adamw", "schedule": "constant"})
    content["model"] = {"init_from": str(saved)}
    content["training"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "adam_epsilon": 1e-6}
    runs, logs = {}, {}
    for rows in (4, 1):
        content["training"] |= {
            "output_dir": str(tmp_path / f"rows{rows}"),
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 4 // rows,
        }
        runs[rows] = train(parse_recipe(content))
        logs[rows] = [json.loads(line) for line in (runs[rows] / "metrics.jsonl").read_text().splitlines()]
    one, two = weights(runs[4]), weights(runs[1])
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    for key in ("loss", "aux_loss"):
        steps = [[entry[key] for entry in logs[rows] if key in entry] for rows in (4, 1)]
        assert len(steps[0]) == 2 and steps[0] == pytest.approx(steps[1], abs=1e-5)
    aux = [entry["aux_loss"] for entry in logs[4] if "aux_loss" in entry]
    assert all(COEFFICIENT * 2 * 0.9 < value < COEFFICIENT * 4 for value in aux)  # top 2 of 4, balanced: 2

    # The logged loss is the cross-entropy of the step's own windows, which the evaluator would give.
    content["training"] |= {"output_dir": str(tmp_path / "again"), "per_device_train_batch_size": 4}
    trainer = build_trainer(parse_recipe(content))
    batch = next(iter(trainer.train_dataset))
    logits = trainer.model(batch["input_ids"].to(trainer.model.device)).logits.cpu()
    expected = cross_entropy(logits, batch["shift_labels"]).item() / batch["shift_labels"].numel()
    assert next(entry["loss"] for entry in logs[4] if "loss" in entry) == pytest.approx(expected, rel=1e-5)
