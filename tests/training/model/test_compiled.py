"""Compiled layers compute the same under the same names, are compiled once for all, and are plain again afterwards."""

import sysconfig

import pytest
import torch
import torch._inductor.config
from torch._inductor.cpu_vec_isa import valid_vec_isa_list
from torch._inductor.utils import fresh_cache

from mypt.errors import RecipeError
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.training.model.compiled import compiled_layers, eager, obstacle


def model() -> MyPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = preset_config("modern-nano", num_hidden_layers=3, max_position_embeddings=16, **sizes)
    return MyPTForCausalLM(config)


@pytest.fixture
def inductor():
    """Inductor as in a new process; without vectors, whose headers take the compiler half of its time."""
    torch._dynamo.reset()
    # no pool, whose processes would import torch
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.vec_isa_ok": False}):
        valid_vec_isa_list.cache_clear()
        yield
    valid_vec_isa_list.cache_clear()  # FlexAttention needs vectors


@pytest.mark.skipif(obstacle(model(), "cpu") is not None, reason="nothing can be compiled here")
def test_loss_and_gradients_are_the_same_and_one_compilation_serves_all_layers(inductor):
    plain, fast = model(), model()
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    names = [*fast.state_dict()]
    torch._dynamo.utils.counters.clear()
    with compiled_layers(fast):
        losses = []
        for one in (plain, fast):
            loss = one(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert [*fast.state_dict()] == names
        with eager(fast), torch.no_grad():
            fast(input_ids=tokens[:, :5])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "an evaluation is not compiled"
        assert all(layer._compiled_call_impl for layer in fast.model.layers)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for left, right in zip(plain.parameters(), fast.parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, atol=1e-6)
    assert not any(layer._compiled_call_impl for layer in fast.model.layers)


def test_what_compiling_lacks_is_named(monkeypatch, tmp_path):
    compiler = tmp_path / "my-cc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    for name in ("CXX", "CC"):
        monkeypatch.setenv(name, str(compiler))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert f"{tmp_path} has none" in obstacle(model(), "cpu"), "Python without its headers"
    (tmp_path / "Python.h").touch()
    assert obstacle(model(), "cpu") is obstacle(model(), "gpu") is None, "what CXX and CC name"
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "compiler gcc or clang" in obstacle(model(), "gpu")
    assert "it needs the compiler" in obstacle(model(), "cpu")
    unclear = torch.nn.Module()
    unclear.config = model().config
    assert "not clear which are the decoder layers of Module" in obstacle(unclear, "cpu")


def test_a_compiler_that_does_not_work_is_one_clear_error_and_others_stay_themselves(inductor, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    broken, tokens = model(), torch.zeros(1, 8, dtype=torch.long)
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}), fresh_cache(dir=str(tmp_path)):
        with pytest.raises(RecipeError, match=r"layer failed \(.*torch_compile: false"), compiled_layers(broken):
            broken(input_ids=tokens, use_cache=False)
        with pytest.raises(RuntimeError) as caught, compiled_layers(broken):
            torch.ones(2) @ torch.ones(3)
    assert "compiling" not in str(caught.value)
