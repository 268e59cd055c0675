"""A configuration fills in what follows, survives a round trip and refuses what does not fit together."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from mypt import MyPTConfig


def test_what_is_left_out_follows_from_the_rest():
    config = MyPTConfig(hidden_size=96, num_attention_heads=6)
    assert (config.head_dim, config.num_key_value_heads) == (16, 6)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


def test_learned_positions_have_no_rope_parameters():
    assert MyPTConfig(position_embedding_type="learned").rope_parameters is None


def test_a_saved_configuration_is_the_same(tmp_path):
    config = MyPTConfig(
        position_embedding_type="learned", norm_type="layernorm", hidden_size=96, num_attention_heads=6, qk_norm=False
    )
    config.save_pretrained(tmp_path)
    assert MyPTConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert (tmp_path / "configuration_mypt.py").is_file()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 6}, "hidden_size 100 is not a multiple of num_attention_heads 6"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 is not a multiple of num_key_value_heads 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"attention_dropout": 1.5}, "attention_dropout is 1.5"),
        ({"hidden_dropout": -0.1}, "hidden_dropout is -0.1"),
        ({"vocab_size": 64, "unpadded_vocab_size": 65}, "unpadded_vocab_size is 65; a number from 1 to vocab_size 64"),
        ({"norm_type": "batchnorm"}, "'rmsnorm', 'layernorm'"),
        ({"position_embedding_type": "alibi"}, "'rope', 'learned'"),
        ({"hidden_act": "swish"}, "'gelu_new'"),
        ({"hidden_size": "wide"}, "expected int, got str"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        MyPTConfig(**fields)


def test_an_odd_head_is_fine_without_rotary_positions():
    assert MyPTConfig(position_embedding_type="learned", head_dim=15).head_dim == 15
