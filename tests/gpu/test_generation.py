"""A text does not depend on the device that it was generated on: float32, greedy and drawn, all caches."""

import copy

import pytest
import torch

from mypt import MyPTForCausalLM, load_tokenizer, preset_config
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings

pytestmark = pytest.mark.gpu

PROMPTS = ["The import statement", "A class definition is", "def "]
NEW = 48


@pytest.fixture(scope="module")
def tokenizer(corpora):
    return load_tokenizer(corpora / "general")


@pytest.fixture(scope="module")
def on_cpu(tokenizer):
    """Weights from which logits come as far apart as a trained model's, so that no two are equal but for rounding."""
    torch.manual_seed(0)
    vocabulary = -(-len(tokenizer) // 64) * 64
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 32, "intermediate_size": 256, "max_position_embeddings": 256}  # fmt: skip
    config = preset_config("modern-nano", vocab_size=vocabulary, initializer_range=0.2, **sizes)
    return MyPTForCausalLM(config).eval()


@pytest.fixture(scope="module")
def on_device(on_cpu, device):
    return copy.deepcopy(on_cpu).to(device)


@pytest.mark.parametrize(
    "settings",
    [
        {"greedy": True},
        {"temperature": 0.9, "top_p": 0.9, "seed": 3},
        {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.2, "seed": 4},
        {"num_beams": 3},
    ],
    ids=["greedy", "nucleus", "top_k", "beams"],
)
def test_a_text_is_the_same_as_on_a_cpu(on_cpu, on_device, tokenizer, settings):
    settings = GenerationSettings(max_new_tokens=NEW, min_new_tokens=NEW, **settings)
    for prompt in PROMPTS:
        expected, found = (Engine(model, tokenizer).complete(prompt, settings) for model in (on_cpu, on_device))
        assert found.text == expected.text
    if settings.num_beams == 1:
        batch = Engine(on_device, tokenizer).complete_batch(PROMPTS, settings)
        alone = Engine(on_cpu, tokenizer)
        assert [found.text for found in batch] == [alone.complete(prompt, settings).text for prompt in PROMPTS]


def test_a_text_in_bfloat16_is_generated_and_finite(on_device, tokenizer):
    model = copy.deepcopy(on_device).to(torch.bfloat16)
    settings = GenerationSettings(max_new_tokens=NEW, min_new_tokens=NEW, greedy=True)
    assert len(Engine(model, tokenizer).complete(PROMPTS[0], settings).text) > 0


@pytest.mark.parametrize("compiled", ["never", "asked for", "as transformers does"])
def test_transformers_static_cache_gives_the_same_ids(on_cpu, on_device, tokenizer, device, compiled):
    ids = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
    # No length of its own for the default: both kinds of cache get the same options.
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    expected = on_cpu.generate(ids, **options)
    model = copy.deepcopy(on_device)
    options["cache_implementation"] = "static"
    if compiled == "asked for":  # on any device; `generate` compiles by itself on a GPU alone
        from transformers.generation import CompileConfig

        options["compile_config"] = CompileConfig(mode="default", fullgraph=False)
        options["compile_config"]._compile_all_devices = True
    elif compiled == "never":
        options["disable_compile"] = True
    found = model.generate(ids.to(device), **options)
    assert found.cpu().tolist() == expected.tolist()
