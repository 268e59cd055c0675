"""The report agrees with the model itself, and damage is named."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.tensors import count_by_part, layer_of, list_tensors, part_of, read_header
from mypt.errors import CheckpointError
from mypt.inspection.checkpoint import inspect_checkpoint, is_model_or_run
from mypt.inspection.describe import describe
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.train import build_char_tokenizer

SMALL = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLASSIC = {
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "mlp_gated": False,
    "qk_norm": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "max_position_embeddings": 24,
}
UNTIED = {"tie_word_embeddings": False, "lm_head_bias": True, "num_key_value_heads": 1}


@pytest.fixture
def save(tmp_path):
    def saved(dtype=torch.float32, folder=tmp_path / "model", shard_size="50GB", **changes):
        model = MyPTForCausalLM(MyPTConfig(**SMALL | changes)).to(dtype)
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder, model

    return saved


@pytest.mark.parametrize("changes", [{}, CLASSIC, UNTIED], ids=["modern", "classic", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_and_dtype_are_the_models_own(save, changes, dtype):
    folder, model = save(dtype, **changes)
    report = inspect_checkpoint(folder)
    assert report["problems"] == []
    assert report["parameters"]["total"] == report["weights"]["parameters"] == model.num_parameters()
    assert report["parameters"]["non_embedding"] == model.num_parameters(exclude_embeddings=True)
    assert report["weights"]["dtypes"] == {str(dtype).removeprefix("torch."): model.num_parameters()}
    assert report["model"] | {"config": None} == {
        "architecture": "MyPTForCausalLM",
        "model_type": "mypt",
        "layers": 2,
        "heads": 2,
        "kv_heads": changes.get("num_key_value_heads", 2),
        "width": 16,
        "context": changes.get("max_position_embeddings", 1024),
        "vocabulary": 320,
        "config": None,
    }


def test_files_are_listed_with_their_sizes(save):
    folder, _ = save()
    (folder / "sub").mkdir()
    files = {entry["name"]: entry["bytes"] for entry in inspect_checkpoint(folder)["files"]}
    assert files == {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors"} <= set(files)


def test_weights_in_several_files_are_added_up_and_a_missing_one_is_named(save):
    folder, model = save(shard_size="20KB")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 1
    assert inspect_checkpoint(folder)["weights"]["parameters"] == model.num_parameters()
    files[-1].unlink()
    problems = inspect_checkpoint(folder)["problems"]
    assert problems[0] == f"{files[-1].name} is missing"
    assert "the weights hold" in problems[1]


def test_another_family_is_described_from_its_own_names(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=20))
    model.save_pretrained(tmp_path)
    report = inspect_checkpoint(tmp_path)
    assert [report["model"][name] for name in ("layers", "heads", "width", "context", "vocabulary")] == [
        3,
        2,
        16,
        20,
        50,
    ]
    counted = report["parameters"]
    assert counted["total"] == report["weights"]["parameters"] == model.num_parameters()
    per_layer = {"attention": 4 * 16 * 16 + 4 * 16, "mlp": 2 * 16 * 64 + 64 + 16, "norms": 4 * 16}
    assert {part: counted[part] for part in per_layer} == {
        part: 3 * count + (2 * 16 if part == "norms" else 0) for part, count in per_layer.items()
    }
    assert (counted["embedding"], counted["positions"], counted["head"]) == (50 * 16, 20 * 16, 0)
    assert report["problems"] == []


@pytest.mark.parametrize("changes", [{}, CLASSIC, UNTIED], ids=["modern", "classic", "untied"])
def test_parts_counted_in_the_files_are_those_of_the_config(save, changes):
    """The two ways of counting know nothing of each other."""
    folder, _ = save(**changes)
    tensors, _ = list_tensors(folder)
    counted = count_by_part((name, entry.numel) for name, entry in tensors.items())
    assert counted == inspect_checkpoint(folder)["parameters"]


@pytest.mark.parametrize(
    ("name", "part", "layer"),
    [
        ("transformer.h.11.attn.c_attn.weight", "attention", 11),
        ("transformer.h.0.ln_1.bias", "norms", 0),
        ("transformer.ln_f.weight", "norms", None),
        ("transformer.wpe.weight", "positions", None),
        ("gpt_neox.embed_in.weight", "embedding", None),
        ("gpt_neox.layers.3.attention.query_key_value.weight", "attention", 3),
        ("embed_out.weight", "head", None),
        ("model.decoder.layers.2.self_attn_layer_norm.weight", "norms", 2),
        ("model.decoder.layers.2.fc1.weight", "mlp", 2),
        ("model.layers.5.self_attn.q_norm.weight", "norms", 5),
        ("model.layers.5.mlp.experts.7.up_proj.weight", "mlp", 5),
        ("transformer.word_embeddings.weight", "embedding", None),
        ("model.rotary", "other", None),
    ],
)
def test_parts_by_the_names_of_many_families(name, part, layer):
    assert (part_of(name), layer_of(name)) == (part, layer)


def test_an_adapter_tells_its_rank_and_targets(save, tmp_path):
    peft = pytest.importorskip("peft")
    folder, model = save()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    report = inspect_checkpoint(tmp_path / "adapter")
    assert (report["kind"], report["model"], report["problems"]) == ("adapter", None, [])
    told = report["adapter"]
    assert (told["r"], told["lora_alpha"], told["target_modules"]) == (3, 6, ["q_proj", "v_proj"])
    assert told["base_model_name_or_path"] == str(folder) and told["layers"] == 4  # 2 layers, 2 modules each
    assert report["parameters"]["attention"] == report["weights"]["parameters"] == 2 * 2 * (16 * 3 + 3 * 16)
    assert f"LORA of {folder}" in "\n".join(block for block in describe(report) if isinstance(block, str))


def test_a_model_in_the_hubs_cache_is_found_by_its_id(tmp_path):
    program = (
        "import sys; from mypt.checkpoints.model_config import cached_model; "
        "print(cached_model('some/model'), cached_model('other/model'), cached_model('no//id'))"
    )
    snapshot = tmp_path / "models--some--model" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path)},
    )
    assert done.stdout.split() == [str(snapshot), "None", "None"], done.stderr


def test_a_config_that_is_not_the_weights_own_is_a_problem(save):
    folder, model = save()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (problem,) = inspect_checkpoint(folder)["problems"]
    per_layer = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16 + 2 * 8
    counts = model.num_parameters(), model.num_parameters() + per_layer
    assert f"the weights hold {counts[0]:,} parameters, the config means {counts[1]:,}" in problem


def test_the_tokenizer_is_described_and_must_fit(save):
    folder, _ = save()
    assert inspect_checkpoint(folder)["tokenizer"] is None
    save_tokenizer(build_char_tokenizer("abc"), folder)
    report = inspect_checkpoint(folder)
    assert report["tokenizer"] == {"type": "BPE", "ids": 260, "largest_id": 259, "eos_token": "<|endoftext|>"}
    assert report["problems"] == []
    save_tokenizer(build_char_tokenizer(map(chr, range(40, 120))), folder)
    assert inspect_checkpoint(folder)["problems"] == ["the tokenizer gives ids up to 336, the model knows 320"]


def test_the_header_is_safetensors_own(save):
    folder, _ = save()
    header, whole = read_header(folder / "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    assert whole and {name: entry["shape"] for name, entry in header.items()} == {
        name: list(tensor.shape) for name, tensor in weights.items()
    }


def test_weights_cut_short_are_a_problem(save):
    folder, _ = save()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert inspect_checkpoint(folder)["problems"] == ["model.safetensors does not have the length that its header says"]


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 10**12) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_what_is_no_safetensors_file_is_one_error(save, content):
    folder, _ = save()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no whole safetensors file"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_json_is_one_error(save, name, content):
    folder, _ = save()
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name} (is damaged|holds list)"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("content", ['{"state": "plateau"}', '{"lines": 3}', '{"lines": [1]}'])
def test_a_damaged_diagnosis_is_one_error(save, content):
    folder, _ = save()
    (folder / "recipe.yaml").write_text("training: {}")
    (folder / "diagnosis.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"diagnosis.json is damaged.*lines.*delete it"):
        inspect_checkpoint(folder)


def test_a_folder_without_weights_says_so(save):
    folder, _ = save()
    (folder / "model.safetensors").unlink()
    report = inspect_checkpoint(folder)
    assert report["weights"] is None and report["problems"] == ["there are no weights"]


def test_an_interrupted_save_is_a_problem(save, tmp_path):
    folder, _ = save(folder=tmp_path / "checkpoint-5")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 5, "max_steps": 9, "log_history": []}))
    report = inspect_checkpoint(folder)
    assert report["kind"] == "checkpoint" and report["progress"]["step"] == 5
    assert report["problems"] == ["not complete, a resume would skip it: rng_state.pth is missing or cut short"]


def test_what_counts_as_a_checkpoint(save, tmp_path):
    folder, _ = save()
    assert is_model_or_run(folder)
    assert not is_model_or_run(tmp_path)
    (tmp_path / "checkpoint-7").mkdir()
    assert is_model_or_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint-7 holds no config\.json"):
        inspect_checkpoint(tmp_path)


def test_torch_is_not_imported(save):
    folder, _ = save()
    program = (
        "import sys; from pathlib import Path; from mypt.inspection.checkpoint import inspect_checkpoint; "
        f"inspect_checkpoint(Path({str(folder)!r})); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def as_bin(folder, shards: int = 1, legacy: bool = False):
    """The folder's weights in torch.save's files instead, the tied head under its own name, too."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    names = [f"pytorch_model-{n:05}-of-{shards:05}.bin" for n in range(1, shards + 1)]
    names = names if shards > 1 else ["pytorch_model.bin"]
    held = {name: names[number % shards] for number, name in enumerate(sorted(tensors))}
    held["lm_head.weight"] = held["model.embed_tokens.weight"]
    for file in names:
        part = {name: tensor for name, tensor in tensors.items() if held[name] == file}
        torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": held}))
    return folder


@pytest.mark.parametrize(("shards", "legacy"), [(1, False), (1, True), (3, False)])
def test_weights_by_torch_save_are_described_as_those_in_safetensors(save, tmp_path, shards, legacy):
    folder, _ = save(torch.bfloat16)
    expected = inspect_checkpoint(folder)
    found = inspect_checkpoint(as_bin(folder, shards, legacy))
    assert found["problems"] == []
    assert found["parameters"] == expected["parameters"]
    for part in ("tensors", "parameters", "dtypes"):
        assert found["weights"][part] == expected["weights"][part]
    if shards > 1:
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        assert "pytorch_model-00002-of-00003.bin is missing" in inspect_checkpoint(folder)["problems"]


def test_no_code_of_a_pickle_runs(save, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder, _ = save()
    (folder / "model.safetensors").unlink()
    for content in ({"weight": Harmful()}, [1, 2]):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            inspect_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_gpt2_in_a_bin_file_is_no_checkpoint_of_the_original(tmp_path):
    from mypt.legacy.checkpoint import is_original

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 16, "n_layer": 1}))
    torch.save({"wte.weight": torch.zeros(8, 16)}, tmp_path / "pytorch_model.bin")
    assert not is_original(tmp_path)
    assert inspect_checkpoint(tmp_path)["parameters"]["embedding"] == 128
