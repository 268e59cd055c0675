"""The model computes what GPT-2, Llama and Qwen3 compute, and behaves as transformers expects of a model."""

import math

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mypt import MyPTConfig, MyPTForCausalLM, MyPTForSequenceClassification, preset_config
from mypt.models.modeling_mypt import MyPTRMSNorm, read

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 640,
}


def build(seed: int = 0, **overrides) -> MyPTForCausalLM:
    """A small modern model whose weights are large enough for mistakes to show."""
    torch.manual_seed(seed)
    return enlarge(MyPTForCausalLM(MyPTConfig(**SMALL | overrides))).eval()


def classic(**overrides) -> MyPTForCausalLM:
    shape = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "vocab_size": 128}
    torch.manual_seed(0)
    return enlarge(MyPTForCausalLM(preset_config("tiny", **shape | overrides))).eval()


def enlarge(model):
    """Draw every parameter from N(0, 0.3): at the usual 0.02 a wrong angle, scale or mask changes nothing visible."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(1 + noise if "norm" in name or ".ln_" in name else noise)
    return model


def ids(rows: int, length: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: int, length: int, padding: int) -> dict[str, torch.Tensor]:
    """A batch whose first row starts with `padding` masked tokens, with the positions that `generate` derives."""
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, :padding] = 0
    return {
        "input_ids": ids(rows, length),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


@torch.no_grad()
def assert_same_logits(model, stock) -> None:
    """Equal logits on a long batch, on a left-padded one, and on one with default positions."""
    for inputs in ({"input_ids": ids(2, 600)}, left_padded(2, 520, padding=37)):
        ours, theirs = model(**inputs).logits, stock(**inputs).logits
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        difference = (ours - theirs)[real].abs().max().item()
        print(f"logits spread {theirs.std():.2f}, largest difference {difference:.1e}")
        assert theirs[real].std() > 1  # otherwise equality would mean little
        assert difference <= 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_llama_weights_load_as_they_are(attention, tied):
    rope = {"rope_type": "default", "rope_theta": 500.0}
    stock = LlamaForCausalLM(
        LlamaConfig(
            **SMALL, rope_parameters=rope, tie_word_embeddings=tied, rms_norm_eps=1e-5, attn_implementation=attention
        )
    )
    enlarge(stock).eval()
    model = build(
        qk_norm=False, rope_parameters=rope, tie_word_embeddings=tied, norm_eps=1e-5, attn_implementation=attention
    )
    model.load_state_dict(stock.state_dict(), strict=True)
    assert_same_logits(model, stock)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama_with_biases_and_scaled_rope_loads_as_it_is(attention):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 160,
    }
    shared = {**SMALL, "rope_parameters": rope, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    stock = enlarge(LlamaForCausalLM(LlamaConfig(**shared, attn_implementation=attention))).eval()
    model = build(**shared, attention_output_bias=True, qk_norm=False, attn_implementation=attention)
    model.load_state_dict(stock.state_dict(), strict=True)
    assert_same_logits(model, stock)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_weights_load_as_they_are(attention, tied):
    rope = {"rope_type": "default", "rope_theta": 2500.0}
    shared = {**SMALL, "rope_parameters": rope, "tie_word_embeddings": tied, "attn_implementation": attention}
    stock = enlarge(Qwen3ForCausalLM(Qwen3Config(**shared))).eval()
    model = build(**shared)
    model.load_state_dict(stock.state_dict(), strict=True)
    assert_same_logits(model, stock)


def from_gpt2(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's parameters under our names: Conv1D stores (in, out), and c_attn holds q, k and v side by side."""
    ours = {
        "model.embed_tokens.weight": weights["transformer.wte.weight"],
        "model.embed_positions.weight": weights["transformer.wpe.weight"],
        "lm_head.weight": weights["lm_head.weight"],
    }
    for kind in ("weight", "bias"):
        ours[f"model.norm.{kind}"] = weights[f"transformer.ln_f.{kind}"]
        layers = [name for name in weights if name.endswith(f".ln_1.{kind}")]
        for index in range(len(layers)):
            old, new = f"transformer.h.{index}", f"model.layers.{index}"
            ours[f"{new}.input_layernorm.{kind}"] = weights[f"{old}.ln_1.{kind}"]
            ours[f"{new}.post_attention_layernorm.{kind}"] = weights[f"{old}.ln_2.{kind}"]
            qkv = weights[f"{old}.attn.c_attn.{kind}"].T.chunk(3)
            for name, part in zip("qkv", qkv, strict=True):
                ours[f"{new}.self_attn.{name}_proj.{kind}"] = part
            ours[f"{new}.self_attn.o_proj.{kind}"] = weights[f"{old}.attn.c_proj.{kind}"].T
            ours[f"{new}.mlp.up_proj.{kind}"] = weights[f"{old}.mlp.c_fc.{kind}"].T
            ours[f"{new}.mlp.down_proj.{kind}"] = weights[f"{old}.mlp.c_proj.{kind}"].T
    return ours


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_weights_load_under_other_names(attention, tied):
    stock = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=128,
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_positions=640,
            tie_word_embeddings=tied,
            attn_implementation=attention,
        )
    )
    enlarge(stock).eval()
    model = classic(max_position_embeddings=640, tie_word_embeddings=tied, attn_implementation=attention)
    model.load_state_dict(from_gpt2(stock.state_dict()), strict=True)
    assert_same_logits(model, stock)


def test_parameter_names_are_the_documented_ones():
    modern = set(build(num_hidden_layers=1).state_dict())
    layer = "model.layers.0"
    projections = [f"{layer}.self_attn.{name}_proj.weight" for name in "qkvo"]
    projections += [f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    norms = [f"{layer}.self_attn.{name}_norm.weight" for name in "qk"]
    norms += [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight", "model.norm.weight"]
    ends = ["model.embed_tokens.weight", "lm_head.weight"]
    assert modern == {*projections, *norms, *ends}

    plain = set(classic(num_hidden_layers=1).state_dict())
    assert "model.embed_positions.weight" in plain
    assert f"{layer}.mlp.gate_proj.weight" not in plain
    assert {f"{layer}.self_attn.{name}_proj.bias" for name in "qkvo"} <= plain
    assert "lm_head.bias" not in plain
    assert "lm_head.bias" in build(lm_head_bias=True).state_dict()


@pytest.mark.parametrize("make", [build, classic])
def test_cached_generation_equals_uncached(make):
    model = make()
    prompt = ids(2, 20)
    cached = model.generate(prompt, max_new_tokens=30, do_sample=False, use_cache=True)
    uncached = model.generate(prompt, max_new_tokens=30, do_sample=False, use_cache=False)
    static = model.generate(
        prompt, max_new_tokens=30, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(cached, uncached)
    assert torch.equal(cached, static)
    assert len(cached[:, 20:].unique()) > 3  # a model that repeats one token would prove nothing


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@pytest.mark.parametrize("make", [build, classic])
@torch.no_grad()
def test_a_cache_is_used_by_either_name(make, name):
    # transformers 5.24 renamed it in `generate`; an argument that is passed over gives other text without a word.
    model, tokens = make(), ids(2, 9)
    cache = DynamicCache(config=model.config)
    model(tokens[:, :6], use_cache=True, **{name: cache})
    assert cache.get_seq_length() == 6
    rest = model(tokens[:, 6:], use_cache=True, **{name: cache}).logits
    torch.testing.assert_close(rest, model(tokens).logits[:, 6:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [build, classic])
@torch.no_grad()
def test_chunks_through_a_cache_give_the_logits_of_the_whole(make):
    model, tokens = make(), ids(2, 90)
    whole = model(tokens).logits
    cache, parts = None, []
    for chunk in tokens.split([40, 1, 30, 19], dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [build, classic])
def test_a_left_padded_batch_generates_what_each_prompt_generates_alone(make):
    model = make()
    long, short = ids(1, 24), ids(1, 9, seed=5)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 15, dtype=torch.long), short], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :15] = 0
    options = {"max_new_tokens": 25, "do_sample": False}
    together = model.generate(batch, attention_mask=mask, pad_token_id=0, **options)
    assert torch.equal(together[0], model.generate(long, **options)[0])
    assert torch.equal(together[1, 15:], model.generate(short, **options)[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [build, classic])
@pytest.mark.parametrize("arguments", [{}, {"labels": True}, {"use_cache": True}])
@torch.no_grad()
def test_a_packed_document_does_not_see_the_one_before(make, attention, arguments):
    model = make(attn_implementation=attention)
    first, other, second = ids(1, 30), ids(1, 30, seed=7), ids(1, 50, seed=8)
    positions = torch.cat([torch.arange(30), torch.arange(50)])[None]

    def logits(start):
        tokens = torch.cat([start, second], dim=1)
        labels = {"labels": tokens} if arguments.get("labels") else arguments
        return model(tokens, position_ids=positions, **labels).logits[:, 30:]

    assert torch.equal(logits(first), logits(other))
    torch.testing.assert_close(logits(first), model(second).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(torch.cat([first, second], dim=1)).logits[:, 30:], logits(first), atol=0.1)


def test_no_cache_is_made_when_labels_are_given():
    model, tokens = build(), ids(1, 8)
    assert model(tokens).past_key_values is not None
    assert model(tokens, labels=tokens).past_key_values is None


def test_shift_labels_train_the_last_position_too():
    model, window = build(), ids(2, 41)
    inputs, targets = window[:, :-1], window[:, 1:].contiguous()
    output = model(inputs, labels=inputs, shift_labels=targets)
    losses = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(output.loss, losses.mean())
    shorter = model(inputs, labels=inputs).loss
    torch.testing.assert_close(shorter, losses.view(2, 40)[:, :-1].mean())
    halved = model(inputs, labels=inputs, shift_labels=targets, num_items_in_batch=160).loss
    torch.testing.assert_close(halved, losses.sum() / 160)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_the_norm_in_training_has_the_gradients_of_torchs(dtype, close, autocast):
    x, gradient = (torch.randn(3, 5, 4, 32, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(2))
    norm, results = MyPTRMSNorm(32, eps=1e-3), []
    norm.weight.data.uniform_(0.5, 2.0)
    for training in (True, False):
        inputs = (x / 30).requires_grad_()  # small enough for eps to count
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = norm.train(training)(inputs)
        results.append((output, *torch.autograd.grad(output, (inputs, norm.weight), gradient)))
    for ours, torchs in zip(*results, strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, rtol=close, atol=close * torchs.abs().max().item())


def test_what_trained_projections_read_is_cast_once():
    norm, stream = MyPTRMSNorm(8, eps=1e-6), torch.ones(1, 2, 8)
    assert read(stream, norm).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert read(stream, norm).dtype == torch.bfloat16
        assert read(stream.double(), norm).dtype == torch.float64  # autocast leaves it alone
        assert read(stream, norm.requires_grad_(False)).dtype == torch.float32
    assert read(stream.to("meta"), MyPTRMSNorm(8, eps=1e-6).to("meta")).dtype == torch.float32  # knows no autocast


def test_a_frozen_norm_passes_its_gradient_on():
    norm = MyPTRMSNorm(8, eps=1e-6).requires_grad_(False)
    inputs = torch.arange(1.0, 9.0, requires_grad=True)
    norm(inputs)[0].backward()
    # y0 = x0 / r with r = sqrt(mean(x^2)) = sqrt(25.5): dy0/dxj = (delta0j - x0 xj / (8 * 25.5)) / r
    expected = (torch.eye(8)[0] - torch.arange(1.0, 9.0) / 204) / 25.5**0.5
    torch.testing.assert_close(inputs.grad, expected)
    assert norm.weight.grad is None


def test_gradient_checkpointing_changes_no_gradient():
    tokens = ids(2, 32)

    def gradients(checkpointing):
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())


def test_dropout_acts_in_training_only():
    tokens = ids(2, 16)
    for field in ("attention_dropout", "hidden_dropout"):
        model = build(**{field: 0.5})
        assert torch.equal(model(tokens).logits, build()(tokens).logits)
        assert not torch.allclose(model.train()(tokens).logits, model.eval()(tokens).logits)


def test_hidden_dropout_acts_on_everything_that_enters_the_residual_stream():
    """When all of it is dropped, the last norm sees zeros and passes on its bias, whatever the tokens are."""
    model = classic(hidden_dropout=1 - 1e-9).train()
    expected = model.lm_head(model.model.norm.bias).expand(2, 16, -1)
    torch.testing.assert_close(model(ids(2, 16)).logits, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [build, classic])
def test_mixed_precision_trains_all_weights_in_float32(make):
    model, tokens = make().train(), ids(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert loss.item() == pytest.approx(model(tokens, labels=tokens).loss.item(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_logits_to_keep_are_the_last_ones():
    model, tokens = build(), ids(2, 12)
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, model(tokens).logits[:, -3:])


def test_embeddings_can_be_given_instead_of_ids():
    model, tokens = build(), ids(2, 12)
    torch.testing.assert_close(model(inputs_embeds=model.model.embed_tokens(tokens)).logits, model(tokens).logits)


def test_hidden_states_and_attentions_are_recorded():
    model, tokens = build(attn_implementation="eager"), ids(2, 12)
    output = model(tokens, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 12, 48)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 12, 12)] * 2
    torch.testing.assert_close(output.attentions[1].sum(-1), torch.ones(2, 4, 12))


@pytest.mark.parametrize("make", [build, classic])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_bit_for_bit(make, tied, tmp_path):
    from safetensors import safe_open

    model, tokens = make(tie_word_embeddings=tied), ids(2, 12)
    model.save_pretrained(tmp_path)
    loaded = MyPTForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118
    assert not list(tmp_path.glob("*.bin"))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()


def test_ids_beyond_the_tokenizer_are_never_sampled(tmp_path):
    model = build(unpadded_vocab_size=100, lm_head_bias=True)
    with torch.no_grad():
        model.lm_head.bias[100:] = 50.0  # without protection nothing else would ever be sampled
    options = {"do_sample": True, "temperature": 5.0, "top_k": 0, "max_new_tokens": 200}
    model.save_pretrained(tmp_path)
    for each in (model, MyPTForCausalLM.from_pretrained(tmp_path)):
        torch.manual_seed(0)
        generated = each.generate(ids(4, 3) % 100, **options)
        assert generated.max() < 100
        assert generated.unique().numel() > 60
    assert build().generation_config.suppress_tokens is None


def test_initial_weights_have_the_documented_spread():
    torch.manual_seed(0)
    config = preset_config("modern-tiny", vocab_size=1024, num_hidden_layers=8, initializer_range=0.05)
    model = MyPTForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        expected = 0.05 / math.sqrt(16) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.05
        assert weight.std().item() == pytest.approx(expected, rel=0.01), name
    biases = [
        parameter for name, parameter in MyPTForCausalLM(preset_config("tiny")).named_parameters() if "bias" in name
    ]
    assert len(biases) == 4 * 8 + 1  # q, k, v, o, up, down and two norms in each of 4 layers, and the last norm
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("name", ["tiny", "modern-nano"])
@torch.no_grad()
def test_an_untrained_model_knows_nothing(name):
    torch.manual_seed(0)
    model = MyPTForCausalLM(preset_config(name, vocab_size=4096)).eval()
    tokens = torch.randint(0, 4096, (4, 128))
    assert model(tokens, labels=tokens).loss.item() == pytest.approx(math.log(4096), abs=0.05)


def test_too_many_tokens_and_unknown_ids_are_refused():
    model = classic(max_position_embeddings=32)
    with pytest.raises(ValueError, match="33 tokens were given, but this model has 32 learned"):
        model(ids(1, 33))
    with pytest.raises(ValueError, match="learned positions"):
        model.generate(ids(1, 20), max_new_tokens=20, do_sample=False)
    assert model(ids(1, 40), position_ids=torch.arange(20).repeat(2)[None]).logits.shape == (1, 40, 128)
    with pytest.raises(ValueError, match="input_ids must be from 0 to 127, but range from 5 to 128"):
        build()(torch.tensor([[5, 128]]))
    with pytest.raises(ValueError, match="exactly one of"):
        build()()


def test_classification_reads_the_last_real_token():
    config = MyPTConfig(**SMALL, num_labels=3, pad_token_id=0)
    torch.manual_seed(0)
    model = MyPTForSequenceClassification(config).eval()
    tokens = ids(2, 12).clamp(min=1)
    padded = torch.nn.functional.pad(tokens, (0, 5), value=0)
    torch.testing.assert_close(model(padded).logits, model(tokens).logits)
    assert model(tokens, labels=torch.tensor([0, 2])).loss.item() == pytest.approx(math.log(3), abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [build, classic])
def test_the_model_compiles_as_one_graph(make):
    model, tokens = make(), ids(2, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(tokens, labels=tokens)
    torch.testing.assert_close(output.logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    output.loss.backward()
