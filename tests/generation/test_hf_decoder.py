"""The general path: any model, any saved defaults, beams; and the same text as the fast path."""

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from mypt.generation import engine as module
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.train import build_char_tokenizer

CONTEXT = 48
PROMPTS = ["abc", "h", "gfedcbaabc"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer("abcdefgh")


@pytest.fixture(scope="module")
def gpt2(tokenizer):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "initializer_range": 0.4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=320, **sizes)).eval()


@pytest.fixture(scope="module")
def mypt():
    from mypt import MyPTConfig, MyPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MyPTForCausalLM(
        MyPTConfig(vocab_size=320, max_position_embeddings=CONTEXT, initializer_range=0.4, **sizes)
    ).eval()


def settings_of(**settings) -> GenerationSettings:
    return GenerationSettings(**{"max_new_tokens": 20, "seed": 3, "temperature": 1.0} | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"greedy": True},
        {"top_p": 0.9, "repetition_penalty": 1.3, "min_new_tokens": 10},
        {"overflow": "slide", "max_new_tokens": 90, "min_new_tokens": 90},
        {"stop": ("a", "b")},
    ],
)
def test_both_paths_give_the_same_texts(mypt, tokenizer, settings, monkeypatch):
    fast = list(Engine(mypt, tokenizer).complete_batch(PROMPTS, settings_of(**settings)))
    monkeypatch.setattr(module, "is_covered", lambda model: False)
    general = list(Engine(mypt, tokenizer).complete_batch(PROMPTS, settings_of(**settings)))
    assert {completion.path for completion in fast} == {"fast"}
    assert {completion.path for completion in general} == {"transformers"}
    told = [[(c.text, c.tokens, c.finish, c.dropped_tokens) for c in completions] for completions in (fast, general)]
    assert told[0] == told[1]


def test_what_a_model_was_saved_with_does_not_count(gpt2, tokenizer):
    expected = Engine(gpt2, tokenizer).complete("abc", settings_of())
    saved = gpt2.generation_config
    odd = GenerationConfig(
        top_k=1, temperature=0.1, no_repeat_ngram_size=1, repetition_penalty=9.0, max_length=5, use_cache=False
    )
    try:
        gpt2.generation_config = odd
        assert Engine(gpt2, tokenizer).complete("abc", settings_of()) == expected
        assert gpt2.generation_config is odd
    finally:
        gpt2.generation_config = saved


def test_a_row_of_a_batch_is_what_it_is_alone(gpt2, tokenizer):
    engine, settings = Engine(gpt2, tokenizer), settings_of(repetition_penalty=1.2)
    alone = [engine.complete(prompt, settings) for prompt in PROMPTS]
    assert list(engine.complete_batch(PROMPTS, settings)) == alone
    assert alone[0].path == "transformers"


@pytest.mark.parametrize("options", [{}, {"length_penalty": -2.0}, {"early_stopping": True, "repetition_penalty": 1.4}])
def test_beams_are_those_of_transformers(mypt, tokenizer, options):
    ids = tokenizer("abc").input_ids
    with torch.no_grad():
        output = mypt.generate(
            torch.tensor([ids]), do_sample=False, num_beams=4, max_new_tokens=20, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, suppress_tokens=list(range(len(tokenizer), 320)), **options,
        )  # fmt: skip
    completion = Engine(mypt, tokenizer).complete("abc", settings_of(num_beams=4, **options))
    assert "abc" + completion.text == tokenizer.decode(output[0], skip_special_tokens=True)
    assert completion.path == "transformers"


def test_the_best_beam_is_likelier_than_the_greedy_text(mypt, tokenizer):
    def log_probability(text: str) -> float:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            logits = mypt(ids).logits[0, 2:-1]
        logits[:, len(tokenizer) :] = -torch.inf
        return float(logits.log_softmax(-1).gather(1, ids[0, 3:, None]).sum())

    common = {"max_new_tokens": 6, "min_new_tokens": 6}
    texts = [
        Engine(mypt, tokenizer).complete("abc", settings_of(**common, **how)).text
        for how in ({"greedy": True}, {"num_beams": 8})
    ]
    greedy, beam = (log_probability("abc" + text) for text in texts)
    assert beam > greedy


def test_beams_end_at_a_stop_string_and_at_the_context(mypt, tokenizer):
    engine = Engine(mypt, tokenizer)
    free = engine.complete("abc", settings_of(num_beams=3, min_new_tokens=20))
    stop = free.text[4:6]
    stopped = engine.complete("abc", settings_of(num_beams=3, min_new_tokens=20, stop=(stop,)))
    assert stop not in stopped.text
    full = engine.complete("a" * 40, settings_of(num_beams=3, max_new_tokens=30, min_new_tokens=30))
    assert (full.finish, full.tokens) == ("context", CONTEXT - 40)
