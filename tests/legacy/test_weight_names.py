"""What the weights and the config of the original's say is brought together, or the contradiction is named."""

import pytest
import torch

from mypt.conversion.original_checkpoint import convert_checkpoint
from mypt.errors import CheckpointError
from tests.checkpoints.original_mypt import OriginalModel, write_bundle

CONTRADICTIONS = [
    ({"n_embd": 32}, "n_embd 32 but the weights mean 16"),
    ({"n_layer": 3, "vocab_size": 10}, "n_layer 3 but the weights mean 2; vocab_size 10 but the weights mean 9"),
    ({"block_size": 13}, "block_size 13 but the weights mean 12"),
    ({"pos_encoding": "rope"}, "pos_encoding rope but the weights mean learned"),
    ({"norm_type": "rmsnorm"}, "norm_type rmsnorm but the weights mean layernorm"),
    ({"mlp_type": "swiglu"}, "mlp_type swiglu but the weights mean not gated"),
    ({"mlp_type": "mish"}, "mlp_type 'mish'; gelu, relu or swiglu"),
    ({"n_head": 3}, "n_head 3, which does not divide n_embd 16"),
    ({"n_head": None}, "n_head None; a number of at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_a_config_that_contradicts_the_weights_is_one_error(tmp_path, changes, message):
    model = OriginalModel()
    old = write_bundle(tmp_path / "old", model, config=model.config | changes)
    with pytest.raises(CheckpointError) as error:
        convert_checkpoint(old, tmp_path / "new")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_per_head_weights_decide_the_number_of_heads(tmp_path):
    model = OriginalModel(per_head=True)
    old = write_bundle(tmp_path / "old", model, config=model.config | {"n_head": 4})
    with pytest.raises(CheckpointError, match="n_head 4 but the weights mean 2"):
        convert_checkpoint(old, tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.sa.qkv.weight"), "lack 'blocks.1.sa.heads.0.query.weight'"),
        (lambda w: w.pop("blocks.1.ln2.bias"), "post_attention_layernorm.bias the shape None"),
        (lambda w: w.update({"blocks.0.sa.odd": torch.ones(1)}), r"hold 1 tensors that .* blocks\.0\.sa\.odd first"),
        (lambda w: w.update({"ln_f.weight": torch.ones(3)}), r"model\.norm\.weight the shape \(3,\)"),
    ],
)
def test_weights_that_are_not_whole_are_one_error(tmp_path, change, message):
    model = OriginalModel()
    weights = dict(model.state_dict())
    change(weights)
    old = write_bundle(tmp_path / "old", model)
    torch.save(weights, old / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(old, tmp_path / "new", dry_run=True)
