"""What users of transformers do with a model besides training it: resize, offload, compile, other caches and heads."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from mypt import (
    MyPTConfig,
    MyPTForCausalLM,
    MyPTForQuestionAnswering,
    MyPTForSequenceClassification,
    MyPTForTokenClassification,
)
from tests.models.test_modeling_mypt import SMALL, build, classic, ids, left_padded

BOTH = pytest.mark.parametrize("make", [build, classic])
GREEDY = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@BOTH
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_leave_the_old_ones_as_they_were_and_can_be_sampled(make, tied, tmp_path):
    model, tokens = make(tie_word_embeddings=tied, lm_head_bias=True, unpadded_vocab_size=120), ids(2, 12) % 120
    before = model(tokens).logits
    model.resize_token_embeddings(140, pad_to_multiple_of=64)
    assert model.config.vocab_size == model.lm_head.out_features == len(model.lm_head.bias) == 192
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert torch.equal(model(tokens).logits[..., :120], before[..., :120])

    model.save_pretrained(tmp_path)
    for each in (model, MyPTForCausalLM.from_pretrained(tmp_path).eval()):
        assert each.config.unpadded_vocab_size == 140
        with torch.no_grad():
            each.lm_head.bias[139:141] = 1000.0  # the last token and the first row of padding
        assert each.generate(tokens, do_sample=True, max_new_tokens=4)[:, 12:].unique().tolist() == [139]


def test_resizing_keeps_what_the_user_suppressed_and_can_shrink(tmp_path):
    model = build(unpadded_vocab_size=120)
    model.generation_config.suppress_tokens.append(7)
    model.resize_token_embeddings(100)
    assert model.generation_config.suppress_tokens == [7]
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.generation_config.suppress_tokens == [7, *range(100, 128)]
    model.model.resize_token_embeddings(90)
    model.model.save_pretrained(tmp_path)
    assert type(model.model).from_pretrained(tmp_path).config.unpadded_vocab_size == 90


@BOTH
@pytest.mark.parametrize("other", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_all_attentions_give_the_same_logits(make, other):
    packed = {"input_ids": ids(2, 30), "position_ids": torch.cat([torch.arange(12), torch.arange(18)])[None]}
    for inputs in (packed, left_padded(2, 30, padding=7)):
        real = inputs.get("attention_mask", torch.ones(2, 30)).bool()
        eager, found = (
            make(attn_implementation=name)(**inputs, use_cache=False).logits[real] for name in ("eager", other)
        )
        torch.testing.assert_close(found, eager, atol=1e-4, rtol=1e-4)


@BOTH
@torch.no_grad()
def test_padding_before_packed_documents_is_a_document_of_its_own(make):
    model = make()
    first, second = ids(1, 9, seed=3), ids(1, 14, seed=4)
    row = torch.cat([torch.zeros(1, 6, dtype=torch.long), first, second], dim=1)
    positions = torch.cat([torch.arange(length) for length in (6, 9, 14)])[None]
    whole = ids(1, 29)
    batch = model(
        torch.cat([row, whole]), position_ids=torch.cat([positions, torch.arange(29)[None]]), use_cache=False
    ).logits
    torch.testing.assert_close(batch[:1, 6:15], model(first).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch[:1, 15:], model(second).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch[1:], model(whole).logits, atol=1e-4, rtol=1e-4)


@BOTH
def test_assisted_generation_gives_the_greedy_tokens(make):
    model, prompt = make(), ids(1, 20)
    greedy = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, assistant_model=make(num_hidden_layers=1), **GREEDY), greedy)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=4, **GREEDY), greedy)


@BOTH
def test_beam_search_reorders_the_cache(make):
    model, prompt = make(), ids(2, 20)
    cached, uncached = (model.generate(prompt, num_beams=4, use_cache=use, **GREEDY) for use in (True, False))
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, model.generate(prompt, **GREEDY))


@BOTH
@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantised_cache_stays_near_the_exact_one(make, backend):
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend], reason="installed on demand")
    model, prompt = make(hidden_size=128, num_attention_heads=2, num_key_value_heads=2, head_dim=64), ids(2, 20)
    settings = {"quanto": {"nbits": 4}, "hqq": {"nbits": 8, "axis_key": 1, "axis_value": 1}}[backend]
    options = {"cache_implementation": "quantized", "cache_config": {"backend": backend, **settings}}
    first = model.generate(prompt, **options, **GREEDY)[:, 20]
    assert torch.equal(first, model.generate(prompt, **GREEDY)[:, 20])
    assert model.generate(prompt, **options, **GREEDY).shape == (2, 40)


@BOTH
def test_layers_offloaded_to_disk_change_nothing(make, tmp_path):
    model, tokens = make(), ids(2, 20)
    model.save_pretrained(tmp_path / "model")
    places = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "lm_head": "cpu"}
    loaded = MyPTForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    ).eval()
    assert loaded.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    automatic = MyPTForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": 100_000}, offload_folder=tmp_path / "automatic"
    ).eval()
    assert "disk" in automatic.hf_device_map.values()
    assert torch.equal(automatic(tokens).logits, model(tokens).logits)


@BOTH
@pytest.mark.parametrize("labels", [True, pytest.param(False, marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_model_compiles_as_one_graph_without_a_mask(make, labels):
    graphs, model, tokens = [], make(), ids(2, 16)
    torch._dynamo.reset()

    def keep(graph, inputs):
        graphs.append(graph.graph)
        return graph.forward

    arguments = {"labels": tokens} if labels else {}
    output = torch.compile(model, fullgraph=True, backend=keep)(tokens, **arguments)
    assert torch.equal(output.logits, model(tokens).logits)
    calls = [node for graph in graphs for node in graph.nodes if "scaled_dot_product" in str(node.target)]
    assert len(graphs) == 1
    assert len(calls) == 2  # layers
    assert all(call.kwargs["is_causal"] and call.kwargs["attn_mask"] is None for call in calls)


@pytest.mark.slow
@BOTH
@torch.no_grad()
def test_an_exported_graph_gives_the_logits_at_any_length(make):
    model = make()
    shapes = {"input_ids": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, "use_cache": None}
    graph = torch.export.export(
        model, (), {"input_ids": ids(2, 20), "use_cache": False}, dynamic_shapes=shapes, strict=False
    ).module()
    for tokens in (ids(2, 20), ids(3, 31)):
        logits = graph(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(logits, model(tokens).logits, atol=1e-5, rtol=1e-5)


@BOTH
def test_heads_on_every_token_train_and_load(make, tmp_path):
    config, tokens = make().config, ids(2, 12)
    config.num_labels = 5
    tagger, reader = MyPTForTokenClassification(config), MyPTForQuestionAnswering(config)
    tags = tagger(tokens, labels=tokens % 5)
    assert tags.logits.shape == (2, 12, 5)
    spans = reader(tokens, start_positions=torch.tensor([1, 2]), end_positions=torch.tensor([3, 4]))
    assert spans.start_logits.shape == spans.end_logits.shape == (2, 12)
    (tags.loss + spans.loss).backward()
    for model, auto in ((tagger, AutoModelForTokenClassification), (reader, AutoModelForQuestionAnswering)):
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.save_pretrained(tmp_path)
        loaded = auto.from_pretrained(tmp_path).eval()
        assert type(loaded) is type(model)
        assert torch.equal(loaded(tokens)[0], model.eval()(tokens)[0])


def test_a_trained_decoder_keeps_its_weights_under_another_head(tmp_path):
    model = MyPTForCausalLM(MyPTConfig(**SMALL))
    model.save_pretrained(tmp_path)
    tagger = MyPTForTokenClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(tagger.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)


@BOTH
def test_the_pipelines_of_text_take_the_model(make):
    words = {f"w{index}": index for index in range(128)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w0", unk_token="w0"
    )
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    model = make()
    model.generation_config.pad_token_id = model.config.pad_token_id = 0
    text = "w5 w9 w77"
    options = {"do_sample": False, "max_new_tokens": 5}
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    expected = model.generate(**tokenizer(text, return_tensors="pt"), **options)[0, 3:]
    assert writer(text, return_full_text=False, **options)[0]["generated_text"] == tokenizer.decode(expected)
    classifier, tagger = (cls(model.config) for cls in (MyPTForSequenceClassification, MyPTForTokenClassification))
    assert 0 < pipeline("text-classification", model=classifier, tokenizer=tokenizer)(text)[0]["score"] < 1
    assert len(pipeline("token-classification", model=tagger, tokenizer=tokenizer)(text)) == 3
    (features,) = pipeline("feature-extraction", model=model.model, tokenizer=tokenizer)(text)
    assert torch.tensor(features).shape == (3, model.config.hidden_size)
