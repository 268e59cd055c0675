"""Every attention computes what plain products compute on a CPU, with and without documents packed into a window."""

from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mypt import MyPTForCausalLM, preset_config
from tests.gpu.conftest import losses

pytestmark = pytest.mark.gpu

SIZES = {"vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
         "intermediate_size": 256, "max_position_embeddings": 256}  # fmt: skip
LENGTH = 256
# The largest difference of a logit, as a share of the largest logit; bfloat16 keeps 8 bits.
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.04}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip


def model_on(device, attention: str, dtype=torch.float32, key_value_heads: int = 2) -> MyPTForCausalLM:
    """The same weights each time, with logits as far apart as a trained model's."""
    torch.manual_seed(0)
    config = preset_config(
        "modern-nano", **SIZES, num_key_value_heads=key_value_heads, initializer_range=0.1, attn_implementation="eager"
    )
    model = MyPTForCausalLM(config).to(device, dtype).eval()
    model.set_attn_implementation(attention)
    return model


def inputs_on(device, documents: bool) -> dict[str, torch.Tensor]:
    """Two windows; with documents, two of other lengths in each."""
    ids = torch.randint(0, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "labels": ids}
    if documents:
        inputs["position_ids"] = torch.stack(
            [torch.cat([torch.arange(n), torch.arange(LENGTH - n)]) for n in (100, 31)]
        )
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def logits_and_gradient(model: MyPTForCausalLM, inputs: dict, backward: bool = True) -> tuple[torch.Tensor, ...]:
    """Both in float32 on the CPU; the gradient as one vector, empty without `backward`."""
    with nullcontext() if backward else torch.no_grad():
        output = model(**inputs, use_cache=False)
    if not backward:
        return output.logits.float().cpu(), torch.empty(0)
    output.loss.backward()
    gradient = torch.cat([p.grad.float().flatten() for p in model.parameters()])
    return output.logits.detach().float().cpu(), gradient.cpu()


def require_close(model: MyPTForCausalLM, documents: bool, backward: bool = True) -> None:
    """The model's logits, and gradients, are those of plain float32 products on a CPU with the same weights."""
    heads = model.config.num_key_value_heads
    reference = model_on("cpu", "eager", key_value_heads=heads)
    reference.load_state_dict({name: tensor.float().cpu() for name, tensor in model.state_dict().items()})
    expected, slope = logits_and_gradient(reference, inputs_on("cpu", documents), backward)
    found, steep = logits_and_gradient(model, inputs_on(model.device, documents), backward)
    limit = CLOSE[model.dtype]
    assert (found - expected).abs().max() <= limit * expected.abs().max()
    assert not backward or (steep - slope).norm() <= 2 * limit * slope.norm()


@pytest.mark.parametrize("documents", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("dtype", CLOSE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_logits_and_gradients_are_those_of_plain_products(device, attention, dtype, documents):
    on_cpu = device.type == "cpu" and attention == "flex_attention"  # where it has no backward pass
    require_close(model_on(device, attention, dtype), documents, backward=not on_cpu)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_kernel_of_sdpa(device, backend):
    if backend in ("efficient", "cudnn") and device.type == "cpu":
        pytest.skip(f"a CPU has no {backend} kernel")
    model = model_on(device, "sdpa", torch.bfloat16, key_value_heads=4)
    with sdpa_kernel(BACKENDS[backend]):
        try:
            model(**inputs_on(device, documents=False), use_cache=False)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            pytest.skip(f"torch {torch.__version__} has no {backend} kernel for this GPU, dtype and width")
        require_close(model, documents=False)


def test_flash_attention(device):
    if find_spec("flash_attn") is None:
        pytest.skip("the package flash_attn is not installed")
    require_close(model_on(device, "flash_attention_2", torch.bfloat16), documents=False)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_with_document_masks_learns_what_it_learns_on_a_cpu(gpu_recipe, trained, device, capsys, precision):
    """With the attention that training chooses: FlexAttention where it works, else SDPA, and it says why."""
    content = gpu_recipe(data=gpu_recipe()["data"] | {"document_mask": True})
    content["training"] |= {"max_steps": 10}
    exact = content | {"hardware": {"attention": "eager"}, "training": content["training"] | {"use_cpu": True}}
    expected = losses(trained(exact, "cpu"))
    capsys.readouterr()
    content["training"] |= {"bf16": precision == "bf16"}
    trainer = trained(content, "masked")
    printed = capsys.readouterr().out
    chosen = trainer.model.config._attn_implementation
    assert f"attention: {chosen} (" in printed
    if device.type == "cuda":
        assert chosen == "flex_attention" or "flex_attention does not work here" in printed
    assert losses(trainer) == pytest.approx(expected, abs=0.005 if precision == "float32" else 0.05)
