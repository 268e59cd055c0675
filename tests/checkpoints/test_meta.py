"""Shapes from a config alone are those of the model itself, and a plan of any architecture can be followed."""

import io
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, GPTNeoXConfig, MambaConfig, MixtralConfig, T5Config

from mypt.checkpoints.meta import HubError, measured_dimensions, read_config
from mypt.cli.main import main
from mypt.errors import CheckpointError
from mypt.planning.memory import generation_memory, training_memory
from mypt.planning.parameters import lora_parameters
from mypt.planning.scaling import flops_per_token
from mypt.planning.step import Step
from mypt.recipe import LoraSection
from mypt.training.model.flops import flops_per_token as trained_flops
from mypt.training.model.lora import attach_adapters

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
CONFIGS = {
    "experts": lambda: MixtralConfig(
        **SIZES, **HEADS, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    ),
    "recurrent": lambda: MambaConfig(**SIZES, state_size=8),
    "tied": lambda: FalconConfig(**SIZES, num_attention_heads=4),
    "untied": lambda: GPTNeoXConfig(**SIZES, **HEADS),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders that hold nothing but a config.json."""
    root = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        config().save_pretrained(root / name)
    return root


def kept_bytes(model, tokens: int) -> float:
    """Bytes per token that autograd keeps of a forward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return sum(size for size, _ in kept.values()) / tokens if outputs else 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_shapes_are_the_models_own(kind, folders):
    dimensions = measured_dimensions(folders / kind)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    assert dimensions["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert dimensions["tie_word_embeddings"] == (head is table)
    matrices = sum(m["count"] * m["inward"] * m["outward"] for m in dimensions["modules"])
    tables = {id(parameter): parameter.numel() for parameter in (head, table)}
    expected = sum(p.numel() for p in model.parameters() if p.dim() > 1) - sum(tables.values())
    assert matrices == expected
    step = Step(micro_batch_size=1, block_size=64, attention=model.config._attn_implementation)
    estimated = training_memory(dimensions, step)["activations"] / 64
    assert 0.5 < estimated / kept_bytes(model.train(), 64) < 2
    json.dumps(dimensions)


def test_more_of_everything_needs_more_memory(folders):
    dimensions = measured_dimensions(folders / "experts")
    small = Step(micro_batch_size=2, block_size=64, device="gpu")
    total = training_memory(dimensions, small)["total"]
    for more in ({"micro_batch_size": 4}, {"block_size": 128}, {"attention": "eager"}, {"accumulation": 2}):
        assert (
            training_memory(dimensions, Step(**{"micro_batch_size": 2, "block_size": 64, "device": "gpu"} | more))[
                "total"
            ]
            >= total
        )
    for less in ({"checkpointing": True}, {"lora_r": 1}, {"optimizer": "sgd"}, {"freeze_layers": 1}, {"fsdp": 2}):
        phases = training_memory(dimensions, Step(micro_batch_size=2, block_size=64, device="gpu", **less))["phases"]
        assert min(phases["update"]["total"], phases["loss"]["total"]) < total
    assert generation_memory(dimensions, context=64)["kv_cache"] == 2 * 2 * 16 * 64 * 4


def test_a_token_passes_some_of_the_experts(folders):
    dimensions = measured_dimensions(folders / "experts")
    attention = 2 * 32 * (32 + 16 + 16 + 32)  # two layers of q, k, v, o
    experts = 2 * (2 * 3 * 32 * 64 + 32 * 4)  # two of four, and the router
    assert flops_per_token(dimensions, 64) == 6 * (attention + experts + 512 * 32) + 12 * 2 * 32 * 64


def test_adapters_are_those_that_peft_makes(folders):
    peft = pytest.importorskip("peft")
    dimensions = measured_dimensions(folders / "untied")
    for targets in ("all-linear", ["query_key_value"], r".*\.attention\.dense"):
        model = AutoModelForCausalLM.from_config(CONFIGS["untied"]())
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert lora_parameters(dimensions, 4, targets) == trained


def test_adapters_of_experts_are_counted_and_training_counts_the_same_operations(folders):
    dimensions = measured_dimensions(folders / "experts")
    model = AutoModelForCausalLM.from_config(CONFIGS["experts"]())
    assert trained_flops(model, 64) == pytest.approx(flops_per_token(dimensions, 64), rel=0.02)  # norms
    adapted = attach_adapters(model, LoraSection(r=4), "base", seed=0)
    assert lora_parameters(dimensions, 4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_code_that_a_model_brings_does_not_run(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "theirs", "auto_map": {"AutoConfig": "configuration_theirs.Theirs"}})
    )
    (tmp_path / "configuration_theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(CheckpointError, match="cannot be planned"):
        measured_dimensions(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_causal_model_is_one_error(tmp_path):
    T5Config(vocab_size=32, d_model=16).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be planned as a causal language model.*--params N"):
        measured_dimensions(tmp_path)


@pytest.mark.parametrize("command", ["plan", "estimate"])
@pytest.mark.parametrize("lora", ["", "lora: {r: 4}\n"])
def test_a_recipe_of_any_architecture_is_planned(command, lora, folders, tmp_path, make_shards, capsys):
    data = make_shards(train=range(1, 500), val=range(1, 100))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{init_from: {folders / 'experts'}}}\n{lora}data: {{train: {data}, block_size: 16}}\n")
    assert main([command, str(recipe), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"]["total"] == measured_dimensions(folders / "experts")["parameters"]["total"]
    assert any("rough estimate" in note for note in report["notes"])
    assert report["memory"]["training"]["total"] > 0
    assert main([command, str(recipe), "--data.block_size=256"]) == 2
    assert "longer than the 128 positions" in capsys.readouterr().err


def test_of_a_hub_model_one_file_is_fetched(logged_in, folders):
    config = (folders / "tied" / "config.json").read_bytes()
    logged_in.models["you/falcon"] = {"main": {"config.json": config, "model.safetensors": b"never read"}}
    folder, content = read_config("you/falcon")
    assert content == json.loads(config)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    with pytest.raises(HubError, match="you/none is neither a folder here nor a model that the hub gives"):
        read_config("you/none")
