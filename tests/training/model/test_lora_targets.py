"""What LoRA adapts in models with experts, state spaces and transposed layers; what it leaves out is said."""

import re

import pytest
import torch
import transformers
from peft import PeftModel

from mypt.checkpoints.load import load_model
from mypt.conversion.merge import merge_adapter
from mypt.errors import RecipeError
from mypt.recipe import LoraSection
from mypt.training.model.lora import attach_adapters
from mypt.training.model.lora_targets import choose_targets, describe

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
DEEPSEEK |= {"moe_intermediate_size": 24, "first_k_dense_replace": 1}
JAMBA = {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
JAMBA |= {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}
MODELS = {
    "Mixtral": EXPERTS | {"sliding_window": None},
    "GptOss": EXPERTS | {"head_dim": 8, "sliding_window": 32},
    "DeepseekV3": DEEPSEEK | LATENT | {"num_key_value_heads": 4},
    "Jamba": JAMBA,
    "Mamba": {"state_size": 8},
}
ATTENTION, DENSE = (
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    ["gate", "up", "down"],
)
LATENT_ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
MIXTURE = ["experts.gate_up_proj", "experts.down_proj"]
ADAPTED = {
    "Mixtral": {*ATTENTION, *(f"mlp.{name}" for name in MIXTURE)},
    "GptOss": {*ATTENTION, *(f"mlp.{name}" for name in MIXTURE)},
    "DeepseekV3": {
        *(f"self_attn.{name}" for name in LATENT_ATTENTION),
        *(f"mlp.{name}" for name in MIXTURE),
        *(f"mlp.{name}_proj" for name in DENSE),
        *(f"mlp.shared_experts.{name}_proj" for name in DENSE),
    },
    "Jamba": {
        *ATTENTION,
        *("mamba.in_proj", "mamba.x_proj", "mamba.out_proj"),
        *(f"feed_forward.{name}" for name in MIXTURE),
        *(f"feed_forward.{name}_proj" for name in DENSE),
    },
    "Mamba": {"mixer.in_proj", "mixer.x_proj"},
}
IDS = torch.arange(32).view(2, 16)


def tiny(name: str):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | MODELS[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_experts_are_adapted_and_the_adapter_merges(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path / "base")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    adapted = attach_adapters(model, LoraSection(r=2), str(tmp_path / "base"), seed=0)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=3.0)
    for _ in range(2):
        adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        expected = adapted.eval()(input_ids=IDS, use_cache=False).logits
        adapted.save_pretrained(tmp_path / "adapter")
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")  # which compares the logits
        merged = load_model(tmp_path / "merged", device="cpu")
        assert (merged(IDS, use_cache=False).logits - expected).abs().max() < 1e-5 * expected.abs().max()
        stock = PeftModel.from_pretrained(load_model(tmp_path / "base", device="cpu"), tmp_path / "adapter").eval()
        assert (stock(input_ids=IDS, use_cache=False).logits - expected).abs().max() < 1e-5 * expected.abs().max()
    changed = {key for key, tensor in merged.state_dict().items() if not torch.equal(tensor, before[key])}
    inside = {re.sub(r"^.*?\.\d+\.", "", key).removesuffix(".weight") for key in changed & {*names.values()}}
    assert inside == ADAPTED[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_accounted_for(name):
    model = tiny(name)
    lines = describe(model, choose_targets(model, "all-linear", {"r": 2}))
    counts = [int(re.search(r"([\d,]+) parameters", line)[1].replace(",", "")) for line in lines]
    assert sum(counts) == model.num_parameters()
    if name == "Mamba":
        assert any(re.search(r"leaves out mixer: out_proj: .*\(peft: .*incompatible", line) for line in lines)
        assert any(
            re.search(r"leaves out mixer: dt_proj: .*\(the model uses this weight outside", line) for line in lines
        )


def test_trying_leaves_the_model_as_it_was():
    model = tiny("Jamba").train()
    model.model.final_layernorm.weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert choose_targets(model, "all-linear", {"r": 2}).left_out.keys() == {"model.layers.0.mamba.dt_proj.weight"}
    assert model.training and [parameter.requires_grad for parameter in model.parameters()] == required
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and type(module).__module__[:5] != "peft."


def test_what_dropout_rules_out_is_left_out_or_refused_by_name():
    targets = choose_targets(tiny("Mixtral"), "all-linear", {"r": 2, "lora_dropout": 0.1})
    assert len(targets.modules) == 8 and not targets.parameters
    assert all("lora_dropout" in reason for reason in targets.left_out.values()) and len(targets.left_out) == 4
    with pytest.raises(RecipeError, match=r"experts\.down_proj.* cannot be adapted \(peft: .*lora_dropout"):
        choose_targets(tiny("Mixtral"), ["q_proj", "down_proj"], {"r": 2, "lora_dropout": 0.1})


def test_experts_can_be_named_and_what_cannot_be_adapted_is_refused():
    targets = choose_targets(tiny("Mixtral"), ["q_proj", "experts.down_proj"], {"r": 2})
    assert targets.modules == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    assert targets.parameters == [f"model.layers.{n}.mlp.experts.down_proj" for n in (0, 1)]
    for name, words in (("out_proj", "incompatible with Mamba"), ("dt_proj", "uses this weight outside its layer")):
        with pytest.raises(RecipeError, match=rf"{name}.* cannot be adapted \(.*{words}"):
            choose_targets(tiny("Mamba"), [name], {"r": 2})
