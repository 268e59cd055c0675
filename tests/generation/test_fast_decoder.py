"""The fast path gives what the model's own forward and transformers' generate give."""

import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import MyPTError
from mypt.generation.fast_decoder import FastDecoder, is_covered
from mypt.generation.layers import FusedLayers, Int8Product, PlainLayers, Product, prepare

VOCABULARY = 61
ROPE = {"rope_theta": 10000.0}
CLASSIC = {
    "position_embedding_type": "learned", "norm_type": "layernorm", "mlp_gated": False, "hidden_act": "gelu_new",
    "qk_norm": False, "attention_bias": True, "attention_output_bias": True, "mlp_bias": True,
}  # fmt: skip
VARIANTS = {
    "modern": {},
    "classic": CLASSIC,
    "llama": {"qk_norm": False},
    "grouped": {"num_key_value_heads": 2},
    "one_key_value_head": {"num_key_value_heads": 1, "head_dim": 12},
    "learned_qk_norm": {"position_embedding_type": "learned", "num_key_value_heads": 2},
    "rope_layernorm": {"norm_type": "layernorm", "hidden_act": "gelu"},
    "all_biases": {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "lm_head_bias": True},
    "relu2": {"mlp_gated": False, "hidden_act": "relu2", "tie_word_embeddings": False},
    "linear_rope": {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
    "yarn": {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
    "llama3": {
        "rope_parameters": ROPE
        | {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}  # fmt: skip


def make_model(dtype=torch.float32, **changes) -> MyPTForCausalLM:
    """Large random weights, norms and biases included, so that logits differ and no part is a no-op."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MyPTConfig(vocab_size=VOCABULARY, max_position_embeddings=64, initializer_range=0.25, **sizes | changes)
    torch.manual_seed(0)
    model = MyPTForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.7, std=0.3)
    return model.to(dtype).eval()


def decoder_with(model, kind) -> FastDecoder:
    decoder = FastDecoder(model)
    decoder.layers = kind(model.model)
    decoder.head = model.lm_head if kind is PlainLayers else Product(model.lm_head.weight.t(), model.lm_head.bias)
    return decoder


def greedy(decoder: FastDecoder, prompts, steps: int) -> list[list[int]]:
    columns = []

    def choose(logits):
        columns.append(logits.argmax(-1))
        return columns[-1]

    decoder.extend(prompts, steps, choose)
    return torch.stack(columns, 1).tolist()


def by_transformers(model, prompts, steps: int) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=0
    )
    return output[:, width:].tolist()


@pytest.mark.parametrize("kind", [FusedLayers, PlainLayers])
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_ids_are_those_of_transformers(variant, kind):
    model = make_model(**VARIANTS[variant])
    for prompts in ([[5, 9, 2]], [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8]]):
        assert greedy(decoder_with(model, kind), prompts, 40) == by_transformers(model, prompts, 40)


@pytest.mark.parametrize("kind", [FusedLayers, PlainLayers])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_forward(variant, kind):
    model = make_model(**VARIANTS[variant])
    prompts = [[5, 9, 2], [1, 2, 3, 4, 5, 6, 7, 8]]
    taken = torch.randint(VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(1))
    seen = []

    def choose(logits):
        seen.append(logits)
        return taken[:, len(seen) - 1]

    decoder_with(model, kind).extend(prompts, 30, choose)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = model(torch.tensor([prompt + taken[row].tolist()]), use_cache=False).logits[0]
        found = torch.stack([logits[row] for logits in seen])
        assert (found - expected[len(prompt) - 1 : len(prompt) + 29]).abs().max() < 1e-4
        assert expected.std() > 0.5  # the difference is small against what it is a difference of


@pytest.mark.parametrize("variant", ["modern", "classic", "grouped"])
def test_in_bfloat16_each_step_takes_one_of_the_likeliest_within_rounding(variant):
    """8 bits of mantissa: sums in another order may swap ids that are nearly equally likely, and no others."""
    model = make_model(torch.bfloat16, **VARIANTS[variant])
    assert isinstance(FastDecoder(model).layers, PlainLayers)
    prompt = [5, 9, 2]
    (ids,) = greedy(FastDecoder(model), [prompt], 40)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, 2:-1].float()
    best, taken = logits.max(-1).values, logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert (best - taken).max() <= 0.02 * logits.abs().max()
    assert (best == taken).float().mean() > 0.9


def test_a_decoder_is_used_again_and_the_model_stays_as_it_was():
    model = make_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    decoder = FastDecoder(model)
    first = greedy(decoder, [[3, 4]], 20)
    assert greedy(decoder, [[1], [2, 3]], 5) != first
    assert greedy(decoder, [[3, 4]], 20) == first
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_it_ends_when_nothing_is_chosen_and_computes_no_step_too_many():
    decoder = FastDecoder(make_model())
    layers, calls, steps = decoder.layers, [], []
    decoder.layers = lambda states, cache, index, *rest: steps.append(index) or layers(states, cache, index, *rest)

    def choose(logits):
        calls.append(len(steps))
        return None if len(calls) == 3 else logits.argmax(-1)

    decoder.extend([[1, 2]], 10, choose)
    assert calls == [0, 1, 2] and steps == [2, 3]
    calls.clear(), steps.clear()
    decoder.extend([[1, 2]], 2, choose)
    assert calls == [0, 1] and steps == [2]


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch has no oneDNN here")
@pytest.mark.parametrize("biased", [True, False])
def test_products_of_any_number_of_rows_are_the_same_by_either_library(monkeypatch, biased):
    draw = torch.Generator().manual_seed(0)
    weight, states, inputs = (torch.randn(*shape, generator=draw) for shape in ((40, 72), (8, 72), (8, 40)))
    bias = torch.randn(72, generator=draw) if biased else None
    expected = inputs.double() @ weight.double() + (0 if bias is None else bias)
    for onednn in (True, False):
        monkeypatch.setattr("mypt.generation.layers.ONEDNN", onednn)
        product, before = Product(weight, bias), states.clone()
        for rows in range(1, 9):
            found = product(inputs[:rows]), product.add(states[:rows], inputs[:rows])
            assert (found[0] - expected[:rows]).abs().max() < 1e-4
            assert (found[1] - states[:rows] - expected[:rows]).abs().max() < 1e-4
        assert torch.equal(states, before)


def test_only_float32_models_that_fit_are_copied(monkeypatch):
    model = make_model()
    assert isinstance(prepare(model)[0], FusedLayers)
    assert isinstance(prepare(make_model(torch.bfloat16))[0], PlainLayers)
    size = sum(weight.nbytes for weight in [*model.model.layers.parameters(), *model.lm_head.parameters()])
    assert isinstance(prepare(model, size)[0], FusedLayers)
    assert isinstance(prepare(model, size - 1)[0], PlainLayers) and prepare(model, size - 1)[1] is model.lm_head
    monkeypatch.setattr("mypt.generation.layers.main_memory", lambda: (None, 4 * size - 1))
    assert isinstance(prepare(model)[0], PlainLayers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_8_bits_logits_are_near_those_of_forward(variant):
    """Rounding weights and inputs to 8 bits moves a product by about 1 / 127 of its terms."""
    model = make_model(**VARIANTS[variant])
    decoder = FastDecoder(model, int8=True)
    assert isinstance(decoder.head, Int8Product) and decoder.path == "int8"
    prompt, seen = [5, 9, 2], []
    taken = torch.randint(VOCABULARY, (30,), generator=torch.Generator().manual_seed(1))

    def choose(logits):
        seen.append(logits[0])
        return taken[None, len(seen) - 1]

    decoder.extend([prompt], 30, choose)
    with torch.no_grad():
        expected = model(torch.tensor([prompt + taken.tolist()]), use_cache=False).logits[0, 2:-1]
    assert torch.equal(seen[0], expected[0]) or (seen[0] - expected[0]).abs().max() < 1e-4, "prompts are read in full"
    correlation = torch.corrcoef(torch.stack([torch.stack(seen).flatten(), expected.flatten()]))[0, 1]
    assert 0.97 < correlation < 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_speculation_gives_the_ids_of_transformers(variant):
    """Whether the guesses are mostly right, or a third of them wrong."""
    model = make_model(**VARIANTS[variant])
    decoder = FastDecoder(model, speculate=True)
    (layers, head), read, reads, columns = decoder.draft, decoder.layers.read, [], []
    decoder.layers.read = lambda states, *rest: reads.append(len(states)) or read(states, *rest)
    guesses = torch.Generator().manual_seed(0)

    def guess_badly(states):
        right = torch.rand(1, generator=guesses) < 0.67
        return head(states) if right else -head(states)

    def choose(logits):
        columns.append(logits.argmax(-1))
        return columns[-1]

    passes = {}
    for draft in (head, guess_badly):
        decoder.draft = layers, draft
        for steps in (1, 2, 60):
            columns.clear(), reads.clear()
            decoder.speculate([[5, 9, 2]], steps, choose)
            assert [torch.stack(columns, 1)[0].tolist()] == by_transformers(model, [[5, 9, 2]], steps)
        passes[draft] = len(reads)
    assert max(reads) <= 5 and 12 <= passes[head] < passes[guess_badly] < 59


def test_8_bits_of_other_dtypes_are_refused():
    with pytest.raises(MyPTError, match="float32 weights on a CPU; these are"):
        FastDecoder(make_model(torch.bfloat16), int8=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_for_8_bits(bad):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = bad
    with pytest.raises(MyPTError, match="weights are NaN or infinite"):
        FastDecoder(model, int8=True)


def test_what_is_not_covered():
    assert all(is_covered(make_model(**changes)) for changes in VARIANTS.values())
    assert not is_covered(make_model(rope_parameters=ROPE | {"rope_type": "dynamic", "factor": 2.0}))
    assert not is_covered(make_model().train())
    hooked = make_model()
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    assert not is_covered(hooked)
    mixed = make_model()
    mixed.lm_head = mixed.lm_head.to(torch.bfloat16)
    assert not is_covered(mixed)

    class Adapted(torch.nn.Linear):
        pass

    adapted = make_model()
    adapted.model.layers[0].self_attn.q_proj = Adapted(32, 32, bias=False)
    assert not is_covered(adapted)

    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert not is_covered(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval())
