"""What an engine promises: exact continuation, reproducible drawing, honest ends, any number of callers."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import MyPTError, TokenizerError
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.train import build_char_tokenizer

LETTERS = "abcdefgh"
CONTEXT = 48


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer(LETTERS)


def make_model(tokenizer, **changes):
    """A model whose random weights are large, so that its distributions are far from uniform."""
    torch.manual_seed(0)
    config = MyPTConfig(
        vocab_size=320,  # the tokenizer has 265
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        **changes,
    )
    return MyPTForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


def letters_only(model, tokenizer, **biases):
    """The same model with a head that can only give the eight letters, and those of `biases` as asked."""
    head = torch.nn.Linear(16, 320)
    torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    torch.nn.init.constant_(head.bias, -1e4)
    for letter in LETTERS:
        head.bias.data[tokenizer.convert_tokens_to_ids(letter)] = biases.get(letter, 0.0)
    model.lm_head = head
    return model


@pytest.fixture(scope="module")
def speller(tokenizer):
    return letters_only(make_model(tokenizer, tie_word_embeddings=False), tokenizer)


def run(model, tokenizer, prompt="abc", on_text=None, **settings):
    return Engine(model, tokenizer).complete(prompt, settings_of(**settings), on_text)


def settings_of(**settings) -> GenerationSettings:
    return GenerationSettings(**{"max_new_tokens": 20, "seed": 3} | settings)


def prompt_ids(tokenizer, prompt):
    return Engine(make_model(tokenizer), tokenizer).encode([prompt])[0]


@torch.no_grad()
def greedy_by_hand(model, ids: list[int], steps: int) -> list[int]:
    """The likeliest id each time, from the whole text anew: no cache, no transformers' generate."""
    for _ in range(steps):
        ids = [*ids, int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids


def test_greedy_is_the_likeliest_token_each_time(speller, tokenizer):
    expected = tokenizer.decode(greedy_by_hand(speller, tokenizer("abc").input_ids, 20))
    completion = run(speller, tokenizer, greedy=True)
    assert completion.prompt + completion.text == expected
    assert (completion.prompt_tokens, completion.tokens, completion.finish) == (3, 20, "length")


def test_top_k_1_and_a_tiny_top_p_are_greedy(speller, tokenizer):
    greedy = run(speller, tokenizer, greedy=True).text
    assert run(speller, tokenizer, top_k=1, temperature=5.0).text == greedy
    assert run(speller, tokenizer, top_p=1e-6, temperature=1.0).text == greedy


def test_a_seed_decides_the_text_and_leaves_the_global_state_alone(speller, tokenizer):
    state = torch.get_rng_state()
    first = run(speller, tokenizer, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert run(speller, tokenizer, seed=5) == first
    assert len({run(speller, tokenizer, seed=seed).text for seed in range(5)}) == 5


def test_drawing_follows_the_tempered_distribution(tokenizer):
    # The last bias wins by log 3 against one other letter: 3 to 1, at temperature 1/2 it is 9 to 1.
    model = letters_only(make_model(tokenizer, tie_word_embeddings=False), tokenizer, a=math.log(3))
    for letter in LETTERS[2:]:
        model.lm_head.bias.data[tokenizer.convert_tokens_to_ids(letter)] = -1e4
    torch.nn.init.zeros_(model.lm_head.weight)
    for temperature, share in ((1.0, 0.75), (0.5, 0.9)):
        text = "".join(
            run(model, tokenizer, temperature=temperature, max_new_tokens=45, seed=seed).text for seed in range(12)
        )
        assert set(text) == {"a", "b"}
        error = math.sqrt(share * (1 - share) / len(text))
        assert abs(text.count("a") / len(text) - share) < 4 * error


def test_model_defaults_do_not_come_through(speller, tokenizer):
    before = run(speller, tokenizer, temperature=3.0)
    saved = speller.generation_config
    try:
        speller.generation_config = type(saved)(
            top_k=1, top_p=0.01, temperature=0.1, do_sample=False, use_cache=False, max_length=5
        )
        assert run(speller, tokenizer, temperature=3.0) == before
    finally:
        speller.generation_config = saved


def test_each_step_computes_one_token_whatever_the_model_was_saved_with(tokenizer):
    model = letters_only(make_model(tokenizer, tie_word_embeddings=False, use_cache=False), tokenizer)
    model.generation_config.use_cache = False
    lengths = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    run(model, tokenizer, "abc", max_new_tokens=5)  # the first text of all tries the model
    lengths.clear()
    run(model, tokenizer, "abc", max_new_tokens=5)
    assert lengths == [3, 1, 1, 1, 1]


def test_the_pieces_are_the_text(model, tokenizer):
    pieces = []
    completion = run(model, tokenizer, on_text=pieces.append, temperature=2.0, max_new_tokens=40)
    assert "".join(pieces) == completion.text and len(pieces) > 1 and all(pieces)


@pytest.mark.parametrize("greedy", [True, False])
def test_padded_ids_are_never_chosen(tokenizer, greedy):
    """Their logits are the highest by far; of the real ones `a` is."""
    model = make_model(tokenizer, tie_word_embeddings=False, lm_head_bias=True)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data[tokenizer.convert_tokens_to_ids("a")] = 50.0
    model.lm_head.bias.data[len(tokenizer) :] = 100.0
    assert run(model, tokenizer, greedy=greedy).text == "a" * 20


def test_generation_ends_with_the_text(tokenizer):
    model = letters_only(make_model(tokenizer, tie_word_embeddings=False), tokenizer)
    model.lm_head.bias.data[tokenizer.eos_token_id] = 1e4
    completion = run(model, tokenizer)
    assert (completion.text, completion.tokens, completion.finish) == ("", 1, "eos")
    # An end that the model was saved with counts, too.
    model.lm_head.bias.data[tokenizer.eos_token_id] = -1e4
    model.lm_head.bias.data[tokenizer.convert_tokens_to_ids("h")] = 1e4
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("h")]
    assert run(model, tokenizer).finish == "eos"


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_the_context_is_used_to_its_end_and_not_beyond(tokenizer, positions):
    changes = {"position_embedding_type": positions, "tie_word_embeddings": False}
    model = letters_only(make_model(tokenizer, **changes), tokenizer)
    completion = run(model, tokenizer, "a" * 40, max_new_tokens=100)
    assert (completion.tokens, completion.finish) == (CONTEXT - 40, "context")
    assert run(model, tokenizer, "a" * (CONTEXT - 1)).tokens == 1
    with pytest.raises(MyPTError, match=f"prompt has {CONTEXT} tokens and the model's context ends at {CONTEXT}"):
        run(model, tokenizer, "a" * CONTEXT)


def test_exactly_as_many_as_the_context_holds_is_no_early_end(speller, tokenizer):
    assert run(speller, tokenizer, "a" * 40, max_new_tokens=CONTEXT - 40).finish == "length"


def test_an_empty_prompt_starts_a_document(speller, tokenizer):
    assert prompt_ids(tokenizer, "") == [tokenizer.eos_token_id]
    expected = greedy_by_hand(speller, [tokenizer.eos_token_id], 20)
    assert run(speller, tokenizer, "", greedy=True).text == tokenizer.decode(expected[1:])


def test_special_tokens_in_a_prompt_are_plain_text(tokenizer):
    ids = prompt_ids(tokenizer, "a<|endoftext|>")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>"


def test_what_a_tokenizer_begins_with_comes_first(tokenizer):
    from tokenizers import processors

    beginning = build_char_tokenizer(LETTERS)
    bos = beginning.convert_tokens_to_ids("<0x01>")
    beginning.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<0x01> $A", special_tokens=[("<0x01>", bos)]
    )
    assert prompt_ids(beginning, "ab") == [bos, *tokenizer("ab").input_ids]
    assert prompt_ids(beginning, "") == [bos]


def letters_alone(letters, folder):
    """What `load_tokenizer` makes of the tokenizer of a converted model of characters."""
    from mypt.legacy.tokenizer import TokenizerState
    from mypt.tokenization.load import load_tokenizer, save_tokenizer, state_tokenizer

    save_tokenizer(state_tokenizer(TokenizerState(tuple(letters)), exact=True), folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def without_eos(tmp_path_factory):
    """Eight letters, as converted from the original: the tokenizer's EOS is no id of the model, others are dropped."""

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MyPTConfig(vocab_size=9, max_position_embeddings=CONTEXT, initializer_range=0.5, **sizes)
    return MyPTForCausalLM(config).eval(), letters_alone("\n" + LETTERS, tmp_path_factory.mktemp("letters"))


@pytest.mark.parametrize("choice", [{"greedy": True}, {}, {"num_beams": 2}])
def test_a_model_without_an_end_of_text_generates(without_eos, choice):
    model, tokenizer = without_eos
    assert tokenizer.eos_token_id == model.config.vocab_size
    found = run(model, tokenizer, min_new_tokens=3, **choice)
    assert (found.tokens, found.finish) == (20, "length") and set(found.text) <= set(LETTERS + "\n")
    # A document begins behind a line end then.
    begun = replace(run(model, tokenizer, "", **choice), prompt="\n")
    assert begun == run(model, tokenizer, "\n", **choice)


def test_ends_and_padding_beyond_the_vocabulary_do_no_harm_in_stock_models(without_eos):
    tokenizer = without_eos[1]
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT)).eval()
    assert gpt2.generation_config.eos_token_id == 50256
    settings = GenerationSettings(max_new_tokens=9, min_new_tokens=3, seed=1)
    prompts = ["abc", "", "abcdefgh"]
    engine = Engine(gpt2, tokenizer)
    alone = [engine.complete(prompt, settings) for prompt in prompts]
    assert list(engine.complete_batch(prompts, settings)) == alone


def test_a_prompt_of_which_nothing_is_known_is_refused(without_eos):
    model, tokenizer = without_eos
    with pytest.raises(TokenizerError, match="no character of the prompt 'xyz'"):
        run(model, tokenizer, "xyz")


def test_an_empty_prompt_needs_something_to_begin_behind(without_eos, tmp_path):
    with pytest.raises(MyPTError, match="the prompt is empty"):
        run(without_eos[0], letters_alone(LETTERS + "i", tmp_path), "")


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    small = MyPTForCausalLM(
        MyPTConfig(vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(TokenizerError, match="the model knows 100 ids"):
        run(small, tokenizer)


def test_other_causal_lms_generate_too(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT, initializer_range=0.5)
    gpt2 = GPT2LMHeadModel(config).eval()
    completion = run(gpt2, tokenizer, max_new_tokens=100, seed=1)
    assert completion.finish in ("eos", "context")
    assert completion == run(gpt2, tokenizer, max_new_tokens=100, seed=1)


def test_a_stop_string_ends_the_text_also_across_tokens(speller, tokenizer):
    """Every letter is a token of its own, so a stop of three letters always crosses tokens."""
    free = run(speller, tokenizer, greedy=True)
    stop = free.text[5:8]
    pieces: list[str] = []
    stopped = run(speller, tokenizer, greedy=True, stop=(stop,), on_text=pieces.append)
    assert stopped.text == free.text[: free.text.index(stop)] == "".join(pieces)
    assert (stopped.finish, stopped.tokens) == ("stop", free.text.index(stop) + 3)
    # What only begins like a stop string at the end of a text is text.
    assert run(speller, tokenizer, greedy=True, stop=(free.text[-2:] + "~",)).text == free.text


def test_no_end_of_text_before_min_new_tokens(tokenizer):
    model = letters_only(make_model(tokenizer, tie_word_embeddings=False), tokenizer)
    model.lm_head.bias.data[tokenizer.eos_token_id] = 1e4
    for greedy in (True, False):
        completion = run(model, tokenizer, min_new_tokens=7, greedy=greedy)
        assert (len(completion.text), completion.tokens, completion.finish) == (7, 8, "eos")


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_sliding_goes_on_with_the_last_half_of_the_context(tokenizer, positions):
    """By hand: whenever the window is full, only its last half is left, read anew."""
    changes = {"position_embedding_type": positions, "tie_word_embeddings": False}
    model = letters_only(make_model(tokenizer, **changes), tokenizer)
    prompt = "abcdefgh" * 5
    ids, window = [], tokenizer(prompt).input_ids
    while len(ids) < 70:
        if len(window) >= CONTEXT:
            window = window[-CONTEXT // 2 :]
        window = greedy_by_hand(model, window, 1)
        ids.append(window[-1])
    completion = run(model, tokenizer, prompt, greedy=True, overflow="slide", max_new_tokens=70)
    assert completion.text == tokenizer.decode(ids)
    assert (completion.tokens, completion.finish) == (70, "length")
    assert completion.dropped_tokens == len(prompt) + 70 - len(window)


def test_a_prompt_beyond_the_context_is_cut_on_the_left_only_to_slide(speller, tokenizer):
    long = "abcdefgh" * 10
    kept = run(speller, tokenizer, long[-CONTEXT // 2 :], greedy=True)
    completion = run(speller, tokenizer, long, greedy=True, overflow="slide")
    assert completion.text == kept.text
    assert (completion.prompt_tokens, completion.dropped_tokens) == (80, 80 - CONTEXT // 2)


PROMPTS = ["abc", "h", "", "gfedcba" * 6, "a" * 30]


@pytest.mark.parametrize("settings", [{"greedy": True}, {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("overflow", ["stop", "slide"])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_batches_give_what_each_prompt_gives_alone(tokenizer, settings, overflow, positions):
    """Prompts of very different lengths; in each batch some end, or fill the context, before the others."""
    changes = {"position_embedding_type": positions, "tie_word_embeddings": False}
    model = letters_only(make_model(tokenizer, **changes), tokenizer)
    model.lm_head.bias.data[tokenizer.eos_token_id] = -1.0
    seeds = [5, 6, 5, 8, 9]
    common = GenerationSettings(seed=0, max_new_tokens=40, overflow=overflow, **settings)
    engine = Engine(model, tokenizer)
    alone = [engine.complete(prompt, replace(common, seed=seed)) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    for batch_size in (2, 5):
        found = engine.complete_batch(PROMPTS, common, seeds=seeds, batch_size=batch_size)
        assert list(found) == alone
    assert len({completion.finish for completion in alone}) > 1 or overflow == "slide"


def test_batches_are_checked_before_the_first_is_computed(speller, tokenizer):
    with pytest.raises(MyPTError, match="prompt has 60 tokens"):
        Engine(speller, tokenizer).complete_batch(["a", "a" * 60], GenerationSettings(), batch_size=1)
    with pytest.raises(MyPTError, match="batch_size is 0"):
        Engine(speller, tokenizer).complete_batch(["a"], GenerationSettings(), batch_size=0)


def test_batches_come_one_by_one(speller, tokenizer):
    from itertools import islice

    settings = GenerationSettings(max_new_tokens=1)
    completions = Engine(speller, tokenizer).complete_batch(["a"] * 10**4, settings, batch_size=2)
    assert [completion.tokens for completion in islice(completions, 2)] == [1, 1]


def test_a_prompt_may_be_ids(speller, tokenizer):
    by_ids = run(speller, tokenizer, tokenizer("abc").input_ids, greedy=True)
    assert by_ids == run(speller, tokenizer, "abc", greedy=True)


def test_white_space_around_the_text_is_left_out_on_demand(tokenizer):
    spaced = build_char_tokenizer("ab ")
    model = make_model(spaced, tie_word_embeddings=False, lm_head_bias=True)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data[spaced.convert_tokens_to_ids(" ")] = 50.0
    engine = Engine(model, spaced)
    assert engine.complete("a", GenerationSettings(max_new_tokens=5), strip=True).text == ""
    assert engine.complete("a", GenerationSettings(max_new_tokens=5)).text == " " * 5


def test_8_bits_are_for_models_of_ours_without_beams(speller, tokenizer):
    engine = Engine(speller, tokenizer, int8=True)
    assert engine.complete("abc", settings_of()).path == "int8"
    for model, choice in ((speller, {"num_beams": 2}), (GPT2LMHeadModel(GPT2Config(vocab_size=320)).eval(), {})):
        for ways in ({"int8": True}, {"speculate": True}):
            with pytest.raises(MyPTError, match="leave out --int8 and --speculate"):
                Engine(model, tokenizer, **ways).complete("abc", settings_of(**choice))
    with pytest.raises(MyPTError, match="leave out one of them"):
        Engine(speller, tokenizer, int8=True, speculate=True)


@pytest.mark.parametrize("choice", [{"greedy": True}, {}, {"greedy": True, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("overflow", ["stop", "slide"])
def test_speculation_changes_no_text(speller, tokenizer, choice, overflow):
    engines = Engine(speller, tokenizer), Engine(speller, tokenizer, speculate=True)
    for stop in ((), ("hh", "ab")):
        settings = settings_of(max_new_tokens=70, overflow=overflow, stop=stop, **choice)
        for prompt in ("abc", "", "gfedcba" * 6):
            found = [engine.complete(prompt, settings) for engine in engines]
            assert found[0] == found[1]
        batches = [list(engine.complete_batch(["a", "bcd"], settings)) for engine in engines]
        assert batches[0] == batches[1]


def test_more_beams_than_tokens_are_refused(tokenizer):
    model = letters_only(make_model(tokenizer), tokenizer)
    with pytest.raises(MyPTError, match=f"it must be at most {model.config.vocab_size}, the texts that a first token"):
        run(model, tokenizer, num_beams=2**62)
