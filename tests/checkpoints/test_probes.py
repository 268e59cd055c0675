"""A model is causal if it is so when tried: no name, class or dtype decides."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.load import load_model
from mypt.checkpoints.probes import require_causal
from mypt.errors import CheckpointError

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def mypt_model(**fields) -> MyPTForCausalLM:
    torch.manual_seed(0)
    return MyPTForCausalLM(MyPTConfig(**SIZES, **fields))


def causal_models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    return {
        "mypt": mypt_model(hidden_dropout=0.5),
        "bert": BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)),
        "window": MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)),
        "experts": MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, **experts)),
        "short context": mypt_model(max_position_embeddings=4, position_embedding_type="learned"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_causal_models_pass_and_stay_as_they_were(dtype):
    for name, model in causal_models().items():
        model = model.to(dtype).train()
        weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        state = torch.get_rng_state()
        require_causal(model, name)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training and model.dtype == dtype
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_refused_however_little_it_looks_ahead(dtype, tmp_path):
    torch.manual_seed(0)
    encoder = BertForMaskedLM(BertConfig(**SIZES)).to(dtype)
    encoder.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"BertLMHeadModel\) is not a decoder-only language model: a later token"):
        require_causal(load_model(tmp_path), str(tmp_path))
    permuting = XLNetLMHeadModel(XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=64)).to(dtype)
    with pytest.raises(CheckpointError, match="not a decoder-only language model"):
        require_causal(permuting, "xlnet")


@pytest.mark.parametrize("reach", [1, 100])
def test_a_single_layer_that_looks_ahead_is_enough(reach):
    """Ahead by one token, or by all from the first token on (a prefix)."""
    model = mypt_model()
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def ahead(hidden_states, *args, **kwargs):
        output, *rest = forward(hidden_states, *args, **kwargs)
        shifted = hidden_states.roll(-1, dims=1) if reach == 1 else hidden_states.mean(1, keepdim=True)
        return output + 0.01 * shifted, *rest

    attention.forward = ahead
    with pytest.raises(CheckpointError, match="a later token changes the logits of earlier ones"):
        require_causal(model, "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_have_their_own_message(value):
    model = copy.deepcopy(mypt_model())
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(CheckpointError, match="gives logits that are NaN or infinite"):
        require_causal(model, "model")


def test_ids_that_cannot_come_may_have_no_finite_logit():
    model = mypt_model()
    head = model.lm_head.forward
    model.lm_head.forward = lambda states: head(states).index_fill(-1, torch.tensor([60, 61]), -torch.inf)
    require_causal(model, "model")
