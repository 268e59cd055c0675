"""A batch is the same as its rows, for models of which transformers' `generate` does not keep that, too."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MiniMaxConfig,
    MixtralConfig,
    Phi3Config,
    RobertaConfig,
    RwkvConfig,
)

from mypt.errors import MyPTError
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.train import build_char_tokenizer

CONTEXT, VOCABULARY = 64, 320
PROMPTS = ["abc", "h", "gfedcbaabcgfedcbaabcgfedcbaabc"]
LETTERS = range(257, 265)  # the ids of the eight letters, after EOS and the bytes
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "pad_token_id": 0}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}

CONFIGS = {
    "transformer": lambda: LlamaConfig(**COMMON, **SIZES),
    "router logits": lambda: MixtralConfig(**COMMON, **SIZES, **MOE, output_router_logits=True),
    "recurrent, takes padding in": lambda: RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2),
    "positions depend on the longest row": lambda: Phi3Config(
        **COMMON, **SIZES, original_max_position_embeddings=16,
        rope_parameters=LONGROPE | {"original_max_position_embeddings": 16},
    ),
    "linear attention": lambda: MiniMaxConfig(
        **COMMON, **SIZES, **MOE, head_dim=8, block_size=16, layer_types=["linear_attention", "full_attention"]
    ),
    "positions counted from the padding id": lambda: RobertaConfig(**COMMON, **SIZES, is_decoder=True),
}  # fmt: skip
LINES = {  # what a batch is said to need; nothing for the others
    "recurrent, takes padding in": "one at a time",
    "positions depend on the longest row": "one at a time",
    "linear attention": "one at a time",
    "positions counted from the padding id": "from the whole text",
}


def make_model(kind: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 8  # far from uniform distributions
    model.generation_config.suppress_tokens = [id for id in range(VOCABULARY) if id not in LETTERS]
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer("abcdefgh")


def settings_of(**settings) -> GenerationSettings:
    return GenerationSettings(**{"max_new_tokens": 10, "seed": 3, "temperature": 1.0} | settings)


@torch.no_grad()
def greedy_by_hand(model, tokenizer, prompt: str) -> str:
    """From the whole text anew each time: no cache, no mask, no `generate`."""
    ids = tokenizer(prompt).input_ids
    for _ in range(10):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids = [*ids, LETTERS[int(logits[list(LETTERS)].argmax())]]
    return tokenizer.decode(ids)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_batch_is_the_same_as_its_rows(kind, tokenizer):
    model, lines = make_model(kind), []
    for options in ({"greedy": True}, {"top_p": 0.9}):
        engine = Engine(model, tokenizer, say=lines.append)
        batch = list(engine.complete_batch(PROMPTS, settings_of(**options)))
        assert batch == [engine.complete(prompt, settings_of(**options)) for prompt in PROMPTS]
        if "greedy" in options:
            for completion in batch:
                assert completion.prompt + completion.text == greedy_by_hand(model, tokenizer, completion.prompt)
    expected = LINES.get(kind)
    assert len(lines) == bool(expected) and all(expected in line for line in lines)


@pytest.mark.parametrize("kind", ["recurrent, takes padding in", "linear attention"])
def test_beams_of_caches_that_cannot_be_reordered_are_those_without_a_cache(kind, tokenizer):
    model, lines = make_model(kind), []
    ids = tokenizer("abc").input_ids
    expected = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, 3, dtype=torch.long), num_beams=4, do_sample=False,
        max_new_tokens=10, use_cache=False,
    )  # fmt: skip
    completion = Engine(model, tokenizer, say=lines.append).complete("abc", settings_of(num_beams=4))
    assert "abc" + completion.text == tokenizer.decode(expected[0])
    assert any("beams" in line for line in lines)


def test_beams_are_refused_where_generate_is_not_the_model(tokenizer):
    with pytest.raises(MyPTError, match="RobertaForCausalLM; leave out num_beams"):
        engine = Engine(make_model("positions counted from the padding id"), tokenizer, say=str)
        engine.complete("abc", settings_of(num_beams=2))


@pytest.mark.parametrize("options", [{"greedy": True}, {}, {"num_beams": 2}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_one_error(options, value, tokenizer):
    model = make_model("transformer")
    model.lm_head.weight.data[5] = value
    with pytest.raises(MyPTError, match="logits are NaN or infinite"):
        list(Engine(model, tokenizer).complete_batch(PROMPTS, settings_of(**options)))


def test_router_logits_stay_as_they_were(tokenizer):
    model = make_model("router logits")
    Engine(model, tokenizer).complete("abc", settings_of())
    assert model.config.output_router_logits is True
