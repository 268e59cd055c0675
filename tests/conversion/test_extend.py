"""A longer context and more tokens: the trained part stays, the new part starts from it."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from mypt import MyPTConfig, MyPTForCausalLM, preset_config
from mypt.conversion.extend import changed, grow_vocabulary, longer_context
from mypt.errors import RecipeError

SIZES = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}


def tiny(preset="modern-nano", **changes):
    torch.manual_seed(0)
    model = MyPTForCausalLM(preset_config(preset, **SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(length, below=100):
    return torch.randint(below, (2, length), generator=torch.Generator().manual_seed(1))


def stretched(model, length, rope=None):
    changes, line = longer_context(model.config, length, rope)
    return changed(model, changes), line


@torch.no_grad()
def test_learned_positions_are_repeated_and_the_trained_ones_stay():
    model = tiny("tiny")
    longer, line = stretched(model, 40)
    table, old = longer.model.embed_positions.weight, model.model.embed_positions.weight
    assert torch.equal(table[:16], old) and torch.equal(table[16:32], old) and torch.equal(table[32:], old[:8])
    assert torch.equal(longer(ids(16)).logits, model(ids(16)).logits)
    assert longer(ids(40)).logits.shape == (2, 40, 128) and longer.config.max_position_embeddings == 40
    assert "16 -> 40 tokens" in line


@torch.no_grad()
def test_yarn_is_the_default_and_a_second_stretch_starts_from_the_trained_length():
    model = tiny()
    longer, line = stretched(model, 64)
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    assert longer.config.rope_parameters == expected and longer.config.max_position_embeddings == 64
    assert "yarn, factor 4" in line and "2309.00071" in line
    assert model.config.rope_parameters["rope_type"] == "default"  # the given one is not changed
    again, _ = stretched(longer, 128)
    assert again.config.rope_parameters == expected | {"factor": 8.0}
    fresh = MyPTForCausalLM(again.config)
    assert torch.equal(again.model.rotary_emb.inv_freq, fresh.model.rotary_emb.inv_freq)


def test_what_is_long_enough_is_left_alone():
    for preset in ("tiny", "modern-nano"):
        assert longer_context(tiny(preset).config, 16, None) == ({}, "")
    model, _ = stretched(tiny(), 64)
    assert longer_context(model.config, 64, dict(model.config.rope_parameters)) == ({}, "")


@pytest.mark.parametrize(
    ("asked", "completed"),
    [
        ({"rope_type": "linear"}, {"factor": 4.0, "rope_theta": 1e4}),
        ({"rope_type": "yarn", "factor": 8.0}, {"factor": 8.0, "original_max_position_embeddings": 16}),
        ({"rope_type": "llama3"}, {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
    ],
)
def test_a_named_method_is_completed(asked, completed):
    changes, line = longer_context(tiny().config, 64, asked)
    assert changes["max_position_embeddings"] == 64
    assert changes["rope_parameters"].items() >= (asked | completed).items()
    assert "16 -> 64 tokens" in line


@torch.no_grad()
def test_dynamic_keeps_the_length_at_which_its_frequencies_start_to_change():
    model = tiny()
    longer, _ = stretched(model, 64, {"rope_type": "dynamic"})
    assert longer.config.max_position_embeddings == 16
    assert torch.equal(longer(ids(12)).logits, model(ids(12)).logits)
    assert not torch.equal(longer(ids(64)).logits, model(ids(64)).logits)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rope_type": "default"}, "as they never occurred in training; raise rope_theta"),
        ({"rope_type": "linear", "factor": 2.0}, "factor 2 stretches 16 tokens to 32, expected 64"),
        ({"rope_type": "yarm"}, "'yarm', expected one of yarn, linear"),
    ],
)
def test_what_does_not_reach_is_refused(asked, words):
    with pytest.raises(RecipeError, match=words):
        longer_context(tiny().config, 64, asked)


def test_a_model_that_was_stretched_in_another_way_wants_a_method():
    config = stretched(tiny(), 64, {"rope_type": "linear"})[0].config
    with pytest.raises(RecipeError, match=r"rope_type linear reaches already: name model\.rope_parameters"):
        longer_context(config, 128, None)
    assert longer_context(config, 128, {"rope_type": "linear"})[0]["rope_parameters"]["factor"] == 8.0
    with pytest.raises(RecipeError, match="learned positions"):
        longer_context(tiny("tiny").config, 64, {"rope_type": "yarn"})


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "lm_head_bias": True}], ids=["tied", "untied"])
@torch.no_grad()
def test_new_rows_are_means_and_old_logits_stay(changes):
    model = tiny(unpadded_vocab_size=100, **changes)
    before = model(ids(12)).logits
    tables = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    grow_vocabulary(model, 100, [[3, 5], [7]] + [[]] * 40)  # 28 rows are free, 14 are missing
    assert model.config.vocab_size == 192 and model.config.unpadded_vocab_size == 142
    assert torch.equal(model(ids(12)).logits[..., :100], before[..., :100])
    grown = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for new, old in zip(grown, tables, strict=True):
        torch.testing.assert_close(new[100], (old[3] + old[5]) / 2)
        assert torch.equal(new[101], old[7])
        torch.testing.assert_close(new[102:], old[:100].mean(0).expand(90, -1))
    if changes:
        bias = model.lm_head.bias
        torch.testing.assert_close(bias[100], bias[[3, 5]].mean())
    assert model.generation_config.suppress_tokens == list(range(142, 192))


@torch.no_grad()
def test_rows_that_are_there_already_are_used_first():
    model = tiny(unpadded_vocab_size=100)
    rows = model.get_input_embeddings().weight.clone()
    grow_vocabulary(model, 100, [[1, 2]])
    assert model.config.vocab_size == 128 and model.config.unpadded_vocab_size == 101
    table = model.get_input_embeddings().weight
    assert torch.equal(table[:100], rows[:100]) and torch.equal(table[101:], rows[101:])
    assert model.generation_config.suppress_tokens == list(range(101, 128))
    grow_vocabulary(model, 101, [[1]] * 27)
    assert model.generation_config.suppress_tokens is None


@torch.no_grad()
def test_any_causal_lm_grows():
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    model = OPTForCausalLM(OPTConfig(vocab_size=100, num_attention_heads=2, **sizes)).eval()
    before = model(ids(9)).logits
    grow_vocabulary(model, 100, [[3, 5]])
    assert model.config.vocab_size == 128
    torch.testing.assert_close(model(ids(9)).logits[..., :100], before)
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(table[100], (table[3] + table[5]) / 2)


def test_a_grown_model_is_saved_and_loaded_whole(tmp_path):
    model, _ = stretched(tiny("tiny", unpadded_vocab_size=100, hidden_dropout=0.1), 40)
    model = changed(model, {"hidden_dropout": 0.3})
    grow_vocabulary(model, 100, [[1]] * 30)
    model.save_pretrained(tmp_path)
    loaded, report = MyPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert type(loaded.config) is MyPTConfig and loaded.model.dropout.p == 0.3
    with torch.no_grad():
        assert torch.equal(loaded(ids(40, 130)).logits, model(ids(40, 130)).logits)
