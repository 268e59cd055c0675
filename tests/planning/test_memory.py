"""Memory estimates against the tensors that autograd and the optimizers really keep."""

import pytest
import torch

from mypt.errors import MyPTError
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config, preset_dimensions
from mypt.planning.memory import generation_memory, largest_micro_batch, plan_memory, training_memory
from mypt.training.optimizers import build_muon_adamw

BATCH, BLOCK = 2, 128
MODELS = [
    ("modern-nano", {}),
    ("modern-tiny", {}),  # fewer key-value heads than query heads
    ("tiny", {}),
    ("tiny", {"hidden_act": "gelu", "num_hidden_layers": 3}),
]


def tiny(name, overrides):
    return preset_config(name, **{"vocab_size": 512, "num_hidden_layers": 2} | overrides)


def step(config):
    """One forward and backward pass; returns the model and the bytes that autograd kept for the backward pass."""
    model = MyPTForCausalLM(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(config.vocab_size, (BATCH, BLOCK))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, shift_labels=ids).loss
    loss.backward()
    return model, sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("name", "overrides"), MODELS)
def test_activations_are_what_autograd_keeps(name, overrides):
    config = tiny(name, overrides)
    _, kept = step(config)
    estimate = training_memory(config.to_dict(), micro_batch_size=BATCH, block_size=BLOCK)
    log_softmax = BATCH * BLOCK * config.vocab_size * 4  # kept too, but counted among the logits
    assert kept == pytest.approx(estimate["activations"] + log_softmax, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("name", "overrides"), MODELS[1:3])
def test_weights_gradients_and_optimizer_states_are_exact(name, overrides, optimizer):
    config = tiny(name, overrides)
    model, _ = step(config)
    steps = build_muon_adamw(model, 0.1, muon=optimizer == "muon", lr=1e-3)
    steps.step()
    states = [tensor for state in steps.state.values() for tensor in state.values() if tensor.numel() > 1]
    estimate = training_memory(config.to_dict(), micro_batch_size=1, block_size=8, optimizer=optimizer)
    assert estimate["weights"] == sum(p.nbytes for p in model.parameters())
    assert estimate["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert estimate["optimizer"] == sum(state.nbytes for state in states)


def test_autocast_halves_activations_and_adds_a_copy_of_the_weights():
    dimensions = preset_dimensions("modern-tiny")
    plain, mixed = (
        training_memory(dimensions, micro_batch_size=4, block_size=1024, compute_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert (2 * mixed["activations"], 2 * mixed["weights"]) == (plain["activations"], 3 * plain["weights"])
    assert (mixed["gradients"], mixed["optimizer"]) == (plain["gradients"], plain["optimizer"])


def test_the_cache_of_keys_and_values_is_exact():
    config = tiny("modern-tiny", {})
    model = MyPTForCausalLM(config).eval()
    with torch.no_grad():
        cache = model(torch.randint(512, (3, 40)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert generation_memory(config.to_dict(), context=40, batch_size=3)["kv_cache"] == held


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_micro_batch_fits_and_one_more_does_not(checkpointing):
    dimensions = preset_dimensions("modern-small")
    settings = {"block_size": 1024, "optimizer": "muon", "checkpointing": checkpointing, "compute_dtype": "bfloat16"}
    for available in (2**31, 2**33, 2**35 + 1):
        largest = largest_micro_batch(dimensions, available, **settings)
        assert largest >= 1
        assert training_memory(dimensions, micro_batch_size=largest, **settings)["total"] <= available
        assert training_memory(dimensions, micro_batch_size=largest + 1, **settings)["total"] > available
    assert largest_micro_batch(dimensions, 10**6, **settings) == 0


def test_checkpointing_saves_activations_only():
    dimensions = preset_dimensions("150M_1024")
    plain, saving = (
        training_memory(dimensions, micro_batch_size=4, block_size=1024, checkpointing=on) for on in (False, True)
    )
    assert saving["activations"] < plain["activations"] / 5
    assert {**saving, "activations": 0, "total": 0} == {**plain, "activations": 0, "total": 0}


def test_advice_names_the_knob_that_helps():
    dimensions = preset_dimensions("750M_1024")
    settings = {"block_size": 1024, "optimizer": "adamw", "weight_dtype": "float32", "compute_dtype": "float32",
                "checkpointing": False}  # fmt: skip

    def advice(gibibytes):
        return plan_memory(dimensions, 8, gibibytes * 2**30, **settings)["advice"]

    assert advice(400).startswith("fits")
    assert "batch size to 1" in advice(17)
    assert "checkpointing" in advice(13)
    assert "FSDP" in advice(8)


@pytest.mark.parametrize("wrong", [{"optimizer": "sgd"}, {"weight_dtype": "int8"}, {"micro_batch_size": 0}])
def test_bad_settings_are_named(wrong):
    with pytest.raises(MyPTError, match=next(iter(wrong))):
        training_memory(preset_dimensions("tiny"), **{"micro_batch_size": 1, "block_size": 8} | wrong)
