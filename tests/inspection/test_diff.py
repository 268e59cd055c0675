"""What differs between two checkpoints is found, and nothing else."""

import json

import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.conversion.original_checkpoint import convert_checkpoint
from mypt.errors import CheckpointError
from mypt.inspection.describe import describe_diff
from mypt.inspection.diff import diff_checkpoints, differing_fields
from mypt.inspection.weight_diff import compare_weights
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.train import build_char_tokenizer
from tests.checkpoints.original_mypt import OriginalModel, write_bundle

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def saved(folder, change=None, dtype=torch.float32, shard_size="50GB", **config):
    torch.manual_seed(0)
    model = MyPTForCausalLM(MyPTConfig(**SMALL | config))
    if change:
        with torch.no_grad():
            change(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def double(model):
    model.model.layers[1].mlp.up_proj.weight.mul_(2)


def test_a_checkpoint_and_itself(tmp_path):
    folder = saved(tmp_path / "a")
    report = diff_checkpoints(folder, folder, weights=True)
    assert (report["config"], report["settings"], report["losses"]) == ({}, None, {})
    assert {tensor["state"] for tensor in report["weights"]["tensors"].values()} == {"identical"}
    assert report["weights"]["total"]["relative_change"] == 0


def test_relative_change_by_tensor_part_and_layer(tmp_path):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b", double)
    found = compare_weights(a, b)
    changed = {name: t for name, t in found["tensors"].items() if t["state"] == "changed"}
    assert changed == {"model.layers.1.mlp.up_proj.weight": {"state": "changed", "relative_change": pytest.approx(1)}}
    torch.manual_seed(0)
    model = MyPTForCausalLM(MyPTConfig(**SMALL))
    up = model.model.layers[1].mlp.up_proj.weight.norm()

    def norm(tensors):
        return torch.stack([tensor.norm() for tensor in tensors]).norm()

    mlp = norm([p for name, p in model.named_parameters() if ".mlp." in name])
    layer = norm(model.model.layers[1].parameters())
    assert found["parts"]["mlp"]["relative_change"] == pytest.approx((up / mlp).item(), rel=1e-5)
    assert found["layers"]["1"]["relative_change"] == pytest.approx((up / layer).item(), rel=1e-5)
    assert found["layers"]["0"]["relative_change"] == found["parts"]["attention"]["relative_change"] == 0
    assert found["parts"]["mlp"]["identical"] == found["parts"]["mlp"]["tensors"] - 1
    assert found["total"]["relative_change"] == pytest.approx((up / norm(model.parameters())).item(), rel=1e-5)


def test_the_files_layout_and_exact_dtypes_make_no_difference(tmp_path):
    a = saved(tmp_path / "a", dtype=torch.bfloat16)
    b = saved(tmp_path / "b", shard_size="5KB", change=lambda model: model.bfloat16().float())
    assert len(list(b.glob("*.safetensors"))) > 1
    assert {tensor["state"] for tensor in compare_weights(a, b)["tensors"].values()} == {"identical"}


def test_other_shapes_and_missing_tensors_are_named(tmp_path):
    a = saved(tmp_path / "a")
    b = saved(tmp_path / "b", intermediate_size=48, tie_word_embeddings=False)
    report = diff_checkpoints(a, b, weights=True)
    assert report["config"] == {"intermediate_size": [32, 48], "tie_word_embeddings": [True, False]}
    tensors = report["weights"]["tensors"]
    assert tensors["lm_head.weight"] == {"state": "only in B"}
    assert tensors["model.layers.0.mlp.up_proj.weight"]["shapes"] == [[32, 16], [48, 16]]
    text = "\n".join(block for block in describe_diff(report) if isinstance(block, str))
    assert "only in B     lm_head.weight" in text


def test_something_from_nothing_has_no_ratio(tmp_path):
    a = saved(tmp_path / "a", lambda model: model.lm_head.bias.zero_(), lm_head_bias=True)
    b = saved(tmp_path / "b", lambda model: model.lm_head.bias.fill_(1), lm_head_bias=True)
    found = compare_weights(a, b)
    assert found["tensors"]["lm_head.bias"] == {"state": "changed", "relative_change": None}
    assert found["parts"]["head"]["relative_change"] is None
    report = diff_checkpoints(a, b, weights=True)
    assert any("A is zero" in row for block in describe_diff(report) if isinstance(block, tuple) for row in block[1])


def test_tokenizers_are_the_same_or_not(tmp_path):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert diff_checkpoints(a, b)["tokenizer"] is None
    for folder in (a, b):
        save_tokenizer(build_char_tokenizer("abc"), folder)
    assert diff_checkpoints(a, b)["tokenizer"] == "same"
    save_tokenizer(build_char_tokenizer("abd"), b)
    assert diff_checkpoints(a, b)["tokenizer"] == "different"


def test_settings_progress_and_losses_side_by_side(tmp_path):
    folders = saved(tmp_path / "a"), saved(tmp_path / "b")
    for number, folder in enumerate(folders):
        (folder / "recipe.yaml").write_text(f"model: {{preset: x}}\ntraining: {{learning_rate: {number + 1}e-3}}\n")
        reading = {"loss": 2.0 + number, "delta": -0.5 * number, "state": "target"}
        history = [{"step": 0, "sets": {}}, {"step": 9, "sets": {"domain": reading}}]
        (folder / "forgetting.json").write_text(json.dumps({"history": history, "verdict": "fine"}))
    report = diff_checkpoints(*folders)
    assert report["settings"] == {"training.learning_rate": [0.001, 0.002]}
    assert report["losses"] == {"domain": {"loss": [2.0, 3.0], "delta": [-0.0, -0.5]}}
    table = next(block for block in describe_diff(report) if isinstance(block, tuple) and "B - A" in block[0])
    assert table[1] == [["domain", "2.0000", "-0.0000", "3.0000", "-0.5000", "+1.0000"]]


def test_settings_that_only_one_tells_are_not_compared(tmp_path):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    (a / "recipe.yaml").write_text("training: {learning_rate: 1e-3}\n")
    report = diff_checkpoints(a, b)
    assert report["settings"] is None
    assert "settings      not compared: A or B has none" in list(describe_diff(report))


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True, "mlp_type": "swiglu", "norm_type": "rmsnorm"}])
def test_an_original_and_what_was_made_of_it(tmp_path, changes):
    old = write_bundle(tmp_path / "old", OriginalModel(**changes))
    convert_checkpoint(old, tmp_path / "new")
    report = diff_checkpoints(old, tmp_path / "new", weights=True)
    assert {tensor["state"] for tensor in report["weights"]["tensors"].values()} == {"identical"}
    assert report["config"] == {} and [progress["step"] for progress in report["progress"]] == [7, 7]


def test_fields_inside_fields():
    first, second = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "e": 4}
    assert differing_fields(first, second) == {"a.c": [2, 3], "e": [None, 4]}


def test_a_folder_without_weights_is_one_error(tmp_path):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    (b / "model.safetensors").unlink()
    assert diff_checkpoints(a, b)["config"] == {}
    with pytest.raises(CheckpointError, match="holds no weights"):
        diff_checkpoints(a, b, weights=True)
