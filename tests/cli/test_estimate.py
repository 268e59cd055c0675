"""`mypt estimate`: exact parameters and memory by component for presets, recipes, checkpoints and changed sizes."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from mypt.cli.main import main
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import PRESETS, preset_config, preset_dimensions
from mypt.planning.memory import training_memory
from mypt.planning.parameters import count_parameters
from mypt.planning.step import Step

SMALL = {"num_hidden_layers": 2, "vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4}


@pytest.fixture
def estimate(capsys):
    """Run `mypt estimate ... --json` and return what it printed, parsed."""

    def run(*arguments):
        assert main(["estimate", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_a_preset_are_those_of_its_model(estimate, name):
    with torch.device("meta"):
        model = MyPTForCausalLM(preset_config(name))
    parts = estimate(name)["parameters"]
    assert parts["total"] == model.num_parameters()
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert parts["per_layer"]["total"] == layer
    assert parts["norms"] == sum(p.numel() for n, p in model.named_parameters() if "norm" in n)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=64, n_head=4, n_layer=2, n_positions=32, vocab_size=96),
        LlamaConfig(**SMALL, intermediate_size=80, num_key_value_heads=2),
        Qwen2Config(**SMALL, intermediate_size=80, num_key_value_heads=2, tie_word_embeddings=True),
        Qwen3Config(**SMALL, head_dim=32, num_key_value_heads=1),
        preset_config("modern-tiny", vocab_size=320),
    ],
)
def test_a_folder_with_a_config(estimate, config, tmp_path):
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert estimate(str(tmp_path))["parameters"]["total"] == model.num_parameters()


def test_sizes_change_the_target(estimate):
    parts = estimate("modern-tiny", "--hidden-size", "512", "--num-attention-heads", "8", "--vocab-size", "8k")
    changed = preset_dimensions("modern-tiny", hidden_size=512, num_attention_heads=8, vocab_size=8000)
    assert parts["parameters"]["total"] == count_parameters(changed)["total"]
    assert estimate()["dimensions"] == preset_dimensions("modern-tiny")


def test_every_option_reaches_the_step(estimate):
    sizes = ["--batch-size", "3", "--block-size", "64", "--accumulation", "2", "--fsdp", "2", "--device", "gpu"]
    kinds = ["--optimizer", "adamw", "--weights", "bfloat16", "--attention", "eager", "--checkpointing"]
    adapters = ["--lora-r", "4", "--lora-targets", "q_proj", "v_proj"]
    report = estimate("modern-nano", *sizes, *kinds, *adapters)
    step = Step(micro_batch_size=3, block_size=64, accumulation=2, weight_dtype="bfloat16", compute_dtype="bfloat16",
                attention="eager", checkpointing=True, lora_r=4, lora_targets=["q_proj", "v_proj"], fsdp=2,
                device="gpu")  # fmt: skip
    assert report["memory"]["training"] == training_memory(preset_dimensions("modern-nano"), step)
    assert report["parameters"]["trained"] == 4 * 4 * (192 + 192 + 192 + 192)


def test_a_recipe_with_lora(estimate, tmp_path):
    preset_config("modern-nano").save_pretrained(tmp_path / "base")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
model: {{init_from: {tmp_path / "base"}}}
data: {{train: nowhere, block_size: 256}}
lora: {{r: 4}}
training: {{per_device_train_batch_size: 2, bf16: true, activation_checkpointing: true}}
""")
    step = estimate(str(path))["step"]
    assert (step["micro_batch_size"], step["block_size"], step["lora_r"]) == (2, 256, 4)
    assert (step["optimizer"], step["compute_dtype"], step["checkpointing"]) == ("adamw", "bfloat16", True)
    assert estimate(str(path), "--lora.r=8")["step"]["lora_r"] == 8


def test_a_recipe_that_freezes(estimate, tmp_path, capsys):
    (tmp_path / "frozen.yaml").write_text("model: {preset: modern-nano, freeze_layers: 2, freeze_embeddings: true}\n")
    report, whole = estimate(str(tmp_path / "frozen.yaml"), "--optimizer", "adamw"), estimate("modern-nano")
    parts = whole["parameters"]
    frozen = 2 * parts["per_layer"]["total"] + parts["embedding"]
    assert report["parameters"] == parts | {"trained": parts["total"] - frozen, "frozen": frozen}
    assert report["memory"]["training"]["phases"]["update"]["optimizer"] == 2 * 4 * (parts["total"] - frozen)
    main(["estimate", str(tmp_path / "frozen.yaml")])
    assert "2 layers frozen, embeddings frozen" in capsys.readouterr().out
    assert main(["estimate", str(tmp_path / "frozen.yaml"), "--lora-r", "4"]) == 2
    assert "refused with LoRA" in capsys.readouterr().err


def test_the_tables_and_the_largest_micro_batch(capsys):
    assert main(["estimate", "modern-nano", "--memory", "24G"]) == 0
    printed = capsys.readouterr().out
    for words in ("4,843,712", "forward", "Memory to generate", "of 24.0 GiB; up to"):
        assert words in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["modern-tinny"], "modern-tiny"),
        (["tiny", "--training.max_steps=3"], "only a recipe"),
        (["tiny", "--hidden-size", "190"], "multiple of num_attention_heads"),
        (["modern-tiny", "--lora-r", "4", "--lora-targets", "q_porj"], "did you mean q_proj"),
        (["modern-tiny", "--lora-r", "4", "--optimizer", "muon"], "expected adamw"),
    ],
)
def test_bad_input_is_one_clear_message(arguments, says, capsys):
    assert main(["estimate", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
