"""Memory estimates against the tensors that autograd and the optimizers really keep."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config, preset_dimensions
from mypt.planning.activations import stream_activations
from mypt.planning.memory import HOLES, PHASES, training_memory
from mypt.planning.parameters import dimensions_of
from mypt.planning.step import Step
from mypt.recipe import ModelSection
from mypt.training.model.freeze import freeze
from mypt.training.optim.optimizers import build_muon_adamw

BATCH, BLOCK = 2, 128
PLAIN = Step(micro_batch_size=BATCH, block_size=BLOCK)
BF16 = {"compute_dtype": "bfloat16"}
ALL_BF16 = {"compute_dtype": "bfloat16", "weight_dtype": "bfloat16"}


def tiny(name, **overrides):
    return preset_config(name, **{"vocab_size": 512, "num_hidden_layers": 2} | overrides)


def frozen(step: Step) -> ModelSection:
    return ModelSection(freeze_layers=step.freeze_layers, freeze_embeddings=step.freeze_embeddings)


def kept_bytes(config, step: Step, model_class=MyPTForCausalLM) -> int:
    """Bytes that autograd keeps of one forward pass: no weights, no cast copies of them, nothing of the loss."""
    model = model_class(config).to(getattr(torch, step.weight_dtype)).train()
    model.set_attn_implementation(step.attention)
    freeze(model, frozen(step), {})
    if step.lora:
        from peft import LoraConfig, get_peft_model

        targets = step.lora_targets
        options = {"r": step.lora_r, "lora_dropout": step.lora_dropout, "target_modules": targets}
        model = get_peft_model(model, LoraConfig(**options, task_type="CAUSAL_LM"))
    if step.checkpointing:
        model.activation_checkpointing_enable()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    shapes = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.ndim == 2}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    autocast = step.compute_dtype != step.weight_dtype
    ids = torch.randint(config.vocab_size, (BATCH, BLOCK))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, labels=ids, shift_labels=ids, use_cache=False)
    log_softmax = BATCH * BLOCK * config.vocab_size * 4  # counted among the logits
    return sum(size for size, _ in kept.values()) - log_softmax


@pytest.mark.parametrize(
    ("name", "overrides", "settings"),
    [
        ("modern-nano", {}, {}),
        ("modern-tiny", {}, {}),  # fewer key-value heads than query heads
        ("modern-tiny", {}, BF16),
        ("modern-tiny", {}, ALL_BF16),
        ("modern-tiny", {}, {"attention": "eager"}),
        ("modern-tiny", {}, {"attention": "eager"} | BF16),
        ("modern-tiny", {}, {"attention": "eager"} | ALL_BF16),
        ("modern-tiny", {}, {"checkpointing": True}),
        ("modern-tiny", {}, {"checkpointing": True} | BF16),
        ("modern-tiny", {"qk_norm": False, "hidden_act": "relu", "tie_word_embeddings": False}, {}),
        ("modern-tiny", {"norm_type": "layernorm", "hidden_act": "gelu_new"}, BF16),
        ("modern-tiny", {"mlp_gated": False, "hidden_act": "relu2", "position_embedding_type": "learned"}, {}),
        ("tiny", {}, {}),
        ("tiny", {}, BF16),
        ("tiny", {}, {"attention": "eager"}),
        ("tiny", {"hidden_act": "gelu", "num_hidden_layers": 3}, {"checkpointing": True}),
        ("tiny", {"hidden_act": "relu", "hidden_dropout": 0.1}, {}),
        ("tiny", {"hidden_dropout": 0.1, "attention_dropout": 0.1}, {}),
        ("tiny", {"hidden_dropout": 0.1, "attention_dropout": 0.1}, BF16),
        ("tiny", {"attention_dropout": 0.1}, {"attention": "eager"}),
        ("tiny", {"attention_dropout": 0.1}, {"attention": "eager"} | BF16),
        ("modern-tiny", {}, {"lora_r": 4}),
        ("modern-tiny", {}, {"lora_r": 4} | BF16),
        ("modern-tiny", {}, {"lora_r": 4} | ALL_BF16),
        ("modern-tiny", {}, {"lora_r": 4, "lora_targets": ["q_proj", "v_proj"]}),
        ("modern-tiny", {}, {"lora_r": 4, "lora_dropout": 0.1}),
        ("modern-tiny", {}, {"lora_r": 4, "lora_dropout": 0.1} | BF16),
        ("modern-tiny", {}, {"lora_r": 4, "lora_dropout": 0.1} | ALL_BF16),
        ("tiny", {}, {"lora_r": 4}),
        ("modern-tiny", {}, {"freeze_layers": 1}),
        ("modern-tiny", {}, {"freeze_layers": 1} | BF16),
        ("modern-tiny", {"hidden_dropout": 0.1}, {"freeze_layers": 1, "freeze_embeddings": True}),
        ("modern-tiny", {"tie_word_embeddings": False}, {"freeze_embeddings": True} | BF16),
        ("modern-tiny", {"hidden_dropout": 0.1}, {"freeze_embeddings": True, "checkpointing": True}),
        ("modern-tiny", {}, {"freeze_layers": 1, "freeze_embeddings": True} | ALL_BF16),
        ("tiny", {}, {"freeze_layers": 1, "freeze_embeddings": True}),
    ],
)  # fmt: skip
def test_activations_are_what_autograd_keeps(name, overrides, settings):
    config, step = tiny(name, **overrides), replace(PLAIN, **settings)
    estimate = training_memory(config.to_dict(), step)["phases"]["loss"]["activations"]
    assert kept_bytes(config, step) == pytest.approx(estimate, rel=0.02)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
def test_a_stock_gpt2_keeps_what_its_written_out_gelu_keeps(activation):
    sizes = {"vocab_size": 512, "n_embd": 192, "n_layer": 2, "n_head": 4, "n_positions": 128}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **dropouts, activation_function=activation)
    estimate = training_memory(dimensions_of(config.to_dict()), PLAIN)["phases"]["loss"]["activations"]
    assert kept_bytes(config, PLAIN, GPT2LMHeadModel) == pytest.approx(estimate, rel=0.02)


STOCK = {"llama": (LlamaConfig, LlamaForCausalLM, {}), "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 48})}


@pytest.mark.parametrize("settings", [{}, BF16, ALL_BF16, {"lora_r": 4}, {"lora_r": 4} | ALL_BF16], ids=str)
@pytest.mark.parametrize("kind", STOCK)
def test_stock_models_keep_what_their_written_out_norms_keep(kind, settings):
    config_class, model_class, more = STOCK[kind]
    sizes = {"vocab_size": 512, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2}
    config = config_class(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **more)
    step = replace(PLAIN, **settings)
    estimate = training_memory(dimensions_of(config.to_dict()), step)["phases"]["loss"]["activations"]
    assert kept_bytes(config, step, model_class) == pytest.approx(estimate, rel=0.02)


FREEZES = [{}, {"freeze_layers": 1}, {"freeze_embeddings": True}, {"freeze_layers": 2, "freeze_embeddings": True}]


@pytest.mark.parametrize("freezes", FREEZES, ids=lambda freezes: "-".join(freezes) or "all")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("name", "tied"), [("modern-tiny", True), ("modern-tiny", False), ("tiny", True)])
def test_weights_gradients_and_optimizer_states_are_exact(name, tied, optimizer, freezes):
    config, step = tiny(name, tie_word_embeddings=tied), replace(PLAIN, optimizer=optimizer, **freezes)
    model = MyPTForCausalLM(config)
    freeze(model, frozen(step), {})
    ids = torch.randint(config.vocab_size, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    steps = build_muon_adamw(model, 0.1, muon=optimizer == "muon", lr=1e-3)
    steps.step()
    states = [tensor for state in steps.state.values() for tensor in state.values() if tensor.numel() > 1]
    update = training_memory(config.to_dict(), step)["phases"]["update"]
    assert update["weights"] == sum(p.nbytes for p in model.parameters())
    assert update["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.requires_grad)
    assert update["optimizer"] == sum(state.nbytes for state in states)


def test_adapters_alone_have_gradients_and_states():
    from peft import LoraConfig, get_peft_model

    config = tiny("modern-tiny")
    base = MyPTForCausalLM(config)
    frozen = sum(p.nbytes for p in base.parameters())
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    update = training_memory(config.to_dict(), replace(PLAIN, lora_r=4))["phases"]["update"]
    assert (update["weights"], update["gradients"], update["optimizer"]) == (frozen + trained, trained, 2 * trained)


def test_autocast_copies_every_matrix_that_multiplies():
    config = tiny("modern-tiny", tie_word_embeddings=False)
    model = MyPTForCausalLM(config)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    loss = training_memory(config.to_dict(), replace(PLAIN, **BF16))["phases"]["loss"]
    assert loss["temporary"] == sum(module.weight.numel() for module in linear) * 2


def test_the_phases_of_a_step():
    dimensions = preset_dimensions("modern-small")
    phases = training_memory(dimensions, PLAIN)["phases"]
    assert tuple(phases) == PHASES
    for phase in phases.values():
        assert phase["total"] == sum(phase[name] for name in phase if name != "total")
    # Gradients come with the backward pass and go with the update, unless they are accumulated.
    assert phases["loss"]["gradients"] == 0 < phases["update"]["gradients"]
    accumulated = training_memory(dimensions, replace(PLAIN, accumulation=2))["phases"]
    assert accumulated["loss"]["gradients"] == phases["update"]["gradients"]
    assert phases["loss"]["logits"] == 3 * BATCH * BLOCK * 16_000 * 4


@pytest.mark.parametrize("name", ["modern-tiny", "tiny"])
def test_muons_workspace_bounds_what_its_update_allocates(name):
    config = tiny(name, num_hidden_layers=4)
    model = MyPTForCausalLM(config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    steps = build_muon_adamw(model, 0.1, muon=True, lr=1e-3)
    steps.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        steps.step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    estimate = training_memory(config.to_dict(), replace(PLAIN, optimizer="muon"))["phases"]["update"]["temporary"]
    assert peak == pytest.approx(estimate, rel=0.1)


def test_full_sharding_divides_what_is_kept_and_gathers_a_layer():
    dimensions = preset_dimensions("modern-small")
    one, four = (training_memory(dimensions, replace(PLAIN, fsdp=n))["phases"]["update"] for n in (1, 4))
    for name in ("weights", "gradients", "optimizer"):
        assert four[name] == -(-one[name] // 4)
    muon = replace(PLAIN, optimizer="muon")
    one, four = (training_memory(dimensions, replace(muon, fsdp=n))["phases"]["update"] for n in (1, 4))
    whole = 4 * 14 * (4 * 512 + 3 * 1344)  # of q, k, v and o, and of the three of the MLP, the longer sides
    assert four["optimizer"] - whole == -(-(one["optimizer"] - whole) // 4)
    loss = training_memory(dimensions, replace(PLAIN, fsdp=4))["phases"]["loss"]
    layer = 512 * (512 + 2 * 256) + 512 * 512 + 3 * 512 * 1344
    table = 16_000 * 512
    assert loss["temporary"] == 4 * (table + 2 * layer + table)


def test_checkpointing_saves_activations_only():
    dimensions = preset_dimensions("150M_1024")
    plain, saving = (
        training_memory(dimensions, replace(PLAIN, block_size=1024, checkpointing=on))["phases"]["loss"]
        for on in (False, True)
    )
    assert saving["activations"] < plain["activations"] / 5
    left_out = {"activations": 0, "allocator": 0, "total": 0}
    assert saving | left_out == plain | left_out


def test_a_gpu_has_no_heap_of_glibc():
    dimensions = preset_dimensions("modern-small")
    assert training_memory(dimensions, replace(PLAIN, device="gpu"))["allocator"] == 0
    assert training_memory(dimensions, PLAIN)["allocator"] > 0


def test_small_freed_blocks_do_not_serve_the_gradients():
    """128 tokens x 1344 in float32 are a quarter of a matrix of 512 x 1344: a quarter of the places serves."""
    dimensions = preset_dimensions("modern-small")
    phases = training_memory(dimensions, replace(PLAIN, micro_batch_size=1))["phases"]
    kept = phases["loss"]["activations"]
    holes = HOLES * (kept - BLOCK * stream_activations(dimensions, 4, 4, False))
    assert phases["backward"]["allocator"] == pytest.approx(0.75 * (kept + holes))


def test_scratch_of_muons_smaller_stacks_stays():
    """The stack of gate_proj and up_proj is given back (77 MB), that of q_proj and o_proj (29 MB) is not."""
    stack = 4 * 14 * 2 * 512 * 512
    phases = training_memory(preset_dimensions("modern-small"), replace(PLAIN, optimizer="muon"))["phases"]
    assert phases["update"]["allocator"] > 6 * stack
