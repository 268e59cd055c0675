"""Muon orthogonalises as its paper says, the AdamW part is torch's to the last bit, every parameter is treated once."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.training.optim import optimizers
from mypt.training.optim.optimizers import MuonAdamW, build_muon_adamw, muon_factory, parameter_groups
from tests.training.optim.test_newton_schulz import SHAPES, by_svd


def mypt_model(preset: str = "modern-nano", **changes) -> MyPTForCausalLM:
    sizes = {"vocab_size": 32, "max_position_embeddings": 16, "num_hidden_layers": 2, "intermediate_size": 40}
    sizes |= {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12}
    torch.manual_seed(0)
    return MyPTForCausalLM(preset_config(preset, **sizes | changes))


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=24, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0,
                                      embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))  # fmt: skip


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=40,
            tie_word_embeddings=False,
            attention_bias=True,
        )
    )


MODELS = {
    "mypt tied": mypt_model,
    "mypt untied": lambda: mypt_model(tie_word_embeddings=False),
    "mypt classic": lambda: mypt_model("tiny"),
    "gpt2": gpt2,
    "llama": llama,
}


def backward(model: torch.nn.Module, seed: int) -> None:
    model.zero_grad()
    tokens = torch.randint(0, 32, (2, 16), generator=torch.Generator().manual_seed(seed))
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_adamw_part_is_torchs_to_the_last_bit(decay):
    ours, theirs = mypt_model(), mypt_model()
    optimizer = build_muon_adamw(ours, decay, muon=False, lr=1e-2)
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"]} for g in parameter_groups(theirs, decay, False)
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(6):
        for model, one in ((ours, optimizer), (theirs, reference)):
            backward(model, step)
            one.step()
            for group in one.param_groups:
                group["lr"] = 1e-2 / (step + 2)
    assert all(map(torch.equal, weights(ours), weights(theirs)))
    assert not torch.equal(weights(ours)[0], weights(mypt_model())[0])


def test_the_muon_part_is_the_formula():
    """Momentum as a running mean, Nesterov, polar factor, evened, scaled, decoupled decay: written down once more."""
    lr, decay, momentum = 0.02, 0.1, 0.9
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [*SHAPES, SHAPES[1]]]
    expected = [parameter.detach().double() for parameter in parameters]
    means = [torch.zeros_like(value) for value in expected]
    squares = [0.0 for _ in expected]
    groups = [{"params": parameters, "muon": True, "weight_decay": decay}]
    optimizer = MuonAdamW(groups, lr=lr, momentum=momentum)
    for _ in range(4):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            means[index] = momentum * means[index] + (1 - momentum) * gradient
            nesterov = momentum * means[index] + (1 - momentum) * gradient
            update = by_svd(nesterov, 3)
            rows, columns = update.shape
            of_long_side = (update**2).mean(dim=1 if rows >= columns else 0, keepdim=True)
            squares[index] = 0.95 * squares[index] + 0.05 * of_long_side
            evened = update / squares[index].sqrt()
            length = 0.2 * max(rows, columns) ** 0.5 * update.norm()
            expected[index] = expected[index] * (1 - lr * decay) - lr * length * evened / evened.norm()
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter.detach().double(), value, atol=1e-5)


@pytest.mark.parametrize("together", [1, 24 * 24, 3 * 24 * 24])
def test_the_size_of_a_batch_of_matrices_does_not_matter(together, monkeypatch):
    models = [mypt_model(), mypt_model()]
    for model, size in zip(models, (optimizers.MUON_TOGETHER, together), strict=True):
        monkeypatch.setattr(optimizers, "MUON_TOGETHER", size)
        backward(model, 0)
        build_muon_adamw(model, 0.1, lr=1e-2).step()
    for left, right in zip(*map(weights, models), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_muons_update_has_the_size_of_adamws(shape, bfloat16):
    """Root mean square about 0.2 x lr, so that one learning rate serves both."""
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 1e-4
    MuonAdamW([{"params": [parameter], "muon": True}], lr=0.5, bfloat16=bfloat16).step()
    assert 0.15 < parameter.detach().square().mean().sqrt() / 0.5 < 0.24


def test_a_neuron_with_small_gradients_moves_as_far_as_the_others():
    """Of 64 rows 8 hear a tenth of what the others hear; a zero matrix stays where it is."""
    parameters = [torch.nn.Parameter(torch.zeros(64, 16)) for _ in range(2)]
    optimizer = MuonAdamW([{"params": parameters, "muon": True}], lr=1.0)
    gradient = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
    gradient[:8] /= 10
    parameters[0].grad, parameters[1].grad = gradient, torch.zeros(64, 16)
    optimizer.step()
    sizes = parameters[0].detach().square().mean(dim=1).sqrt()
    assert 0.15 < sizes[0] < 0.24
    assert torch.allclose(sizes, sizes[:1].expand(64), rtol=1e-3)
    assert torch.equal(parameters[1], torch.zeros(64, 16))


@pytest.mark.parametrize("name", MODELS)
def test_each_trainable_parameter_is_in_one_group_and_only_matrices_decay(name):
    model = MODELS[name]()
    frozen = next(p for n, p in model.named_parameters() if n.endswith((".q_proj.weight", ".c_attn.weight")))
    frozen.requires_grad = False
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1, muon=True)
    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert names[id(frozen)] not in grouped
    matrices, rest = groups
    assert (matrices["muon"], matrices["weight_decay"]) == (True, 0.1)
    assert (rest["muon"], rest["weight_decay"]) == (False, 0.0)
    hidden = ("_proj.weight", "c_attn.weight", "c_proj.weight", "c_fc.weight")
    assert all(names[id(parameter)].endswith(hidden) for parameter in matrices["params"])
    assert not any(names[id(parameter)].endswith(hidden) for parameter in rest["params"])


def test_a_model_without_matrices_to_train_has_no_empty_group():
    model = mypt_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "norm" in name
    assert [group["muon"] for group in parameter_groups(model, 0.1, muon=True)] == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mypt tied", "gpt2", "llama"])
def test_saved_state_continues_to_the_last_bit(name, dtype, tmp_path):
    model = MODELS[name]().to(dtype)
    optimizer = muon_factory()(model, 0.1, lr=1e-2)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    copied = copy.deepcopy(model)
    resumed = muon_factory()(copied, 0.1, lr=1e-2)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for step in range(3, 6):
        for one, its in ((model, optimizer), (copied, resumed)):
            backward(one, step)
            its.step()
    assert all(map(torch.equal, weights(model), weights(copied)))


def test_a_state_of_before_updates_were_evened_goes_on():
    model = mypt_model()
    optimizer = build_muon_adamw(model, 0.1, lr=1e-2)
    for step in range(2):
        for state in optimizer.state.values():
            state.pop("mean_squares", None)
        backward(model, step)
        optimizer.step()
    assert all(torch.isfinite(weight).all() for weight in weights(model))


def test_loaded_state_lies_where_the_parameters_are():
    """A checkpoint is read to the CPU; fused AdamW needs its step count beside the parameter, on a GPU too."""
    model = mypt_model(tie_word_embeddings=False)
    optimizer = build_muon_adamw(model, 0.1, lr=1e-2)
    backward(model, 0)
    optimizer.step()
    elsewhere = build_muon_adamw(copy.deepcopy(model).to("meta"), 0.1, lr=1e-2)
    elsewhere.load_state_dict(optimizer.state_dict())
    devices = {value.device.type for state in elsewhere.state.values() for value in state.values()}
    assert devices == {"meta"}


def test_a_parameter_without_gradient_stays_and_a_closure_is_called():
    used, unused = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = MuonAdamW([{"params": [used, unused], "muon": True, "weight_decay": 0.5}], lr=0.1)

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 16
    assert torch.equal(unused, torch.ones(4, 4)) and not torch.equal(used, torch.ones(4, 4))
