"""What is left to the machine is resolved once, said, frozen into the run's recipe, and taken again by a resume."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from mypt.errors import RecipeError
from mypt.hardware.choices import choose_dtype
from mypt.hardware.machine import Machine, this_machine
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.recipe import load_recipe, parse_recipe, save_recipe
from mypt.training import resolve_hardware as module
from mypt.training.resolve_hardware import Hardware, passes_per_step, resolve_compile, resolve_hardware
from mypt.training.run import train


@pytest.fixture
def model(recipe_for):
    return MyPTForCausalLM(preset_config("modern-nano", **dict(list(recipe_for()["model"].items())[1:])))


def recipe(**sections):
    """A resolved recipe as far as settling needs it."""
    data = {"train": "data/x", "block_size": 32} | sections.pop("data", {})
    return parse_recipe({"data": data, "optimizer": {"name": "adamw"}, **sections})


def test_a_run_freezes_its_choices_and_a_resume_takes_them_again(recipe_for, weights, capsys):
    content = recipe_for(data=recipe_for()["data"] | {"tokens_per_step": 130})
    for key in ("bf16", "per_device_train_batch_size"):
        del content["training"][key]
    run = train(parse_recipe(content))
    printed = capsys.readouterr().out
    assert "batch: 128 tokens per step, the nearest to 130, = 4 sequences of 32 x 1 pass (micro-batch: all" in printed
    frozen = load_recipe(run)
    expected = choose_dtype(this_machine()).value
    assert frozen.training["bf16"] == (expected == "bfloat16") and "dtype: " in printed
    assert frozen.hardware.attention == "eager" and "attention: eager (sequences of 32" in printed
    assert frozen.hardware.matmul_precision in ("medium", "highest") and "measured" in printed
    assert frozen.training["torch_compile"] is False and frozen.training["use_liger_kernel"] is False
    assert frozen.training["per_device_train_batch_size"] == 4
    assert "gradient_accumulation_steps" not in frozen.training, "it follows, on any number of processes"
    assert torch.get_float32_matmul_precision() == "highest", "it is the process's, and the run is over"

    save_recipe(replace(frozen, hardware=replace(frozen.hardware, attention="sdpa", matmul_precision="high")),
                run / "recipe.yaml")  # fmt: skip
    content["training"]["max_steps"] = 13
    train(parse_recipe(content), resume=True)
    printed = capsys.readouterr().out
    assert "attention: sdpa (as when the run began)" in printed
    assert "matmul precision: high (as when the run began)" in printed
    assert "(micro-batch: as when the run began)" in printed
    assert load_recipe(run).hardware.attention == "sdpa"


def test_a_given_value_wins_over_a_reused_one(model, tmp_path):
    began = recipe(hardware={"attention": "sdpa", "matmul_precision": "highest"}, training={"bf16": True})
    save_recipe(began, tmp_path / "recipe.yaml")
    resolved, hardware = resolve_hardware(recipe(training={"bf16": False}), model, tmp_path)
    assert resolved.training["bf16"] is False
    assert hardware.lines[0] == "dtype: no autocast of float32 weights (as the recipe says)"
    assert resolved.hardware.attention == model.config._attn_implementation == "sdpa"
    assert hardware.reused == {"hardware.attention", "hardware.matmul_precision"}
    assert hardware.matmul_precision == "highest" and hardware.step.compute_dtype == "float32"
    resolved, _ = resolve_hardware(recipe(hardware={"attention": "eager"}), model, tmp_path)
    assert resolved.hardware.attention == "eager" and resolved.training["bf16"] is True


def test_workers_are_counted_where_training_starts_on_the_value_that_is_used(model, tmp_path):
    save_recipe(recipe(training={"dataloader_num_workers": 20_000}), tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"workers is 20,000, and this machine has \d+ CPUs.* give --training.datal"):
        resolve_hardware(load_recipe(tmp_path), model, tmp_path)
    resolve_hardware(load_recipe(tmp_path, ["--training.dataloader_num_workers=1"]), model, tmp_path)


def test_a_reused_micro_batch_that_other_processes_cannot_share_is_chosen_anew(model, tmp_path):
    began = recipe(data={"tokens_per_step": 24 * 32}, training={"per_device_train_batch_size": 16})
    save_recipe(began, tmp_path / "recipe.yaml")  # as if 24 sequences had been 16 and 8 on two kinds of machines
    again = recipe(data={"tokens_per_step": 24 * 32})
    resolved, _ = resolve_hardware(again, model, tmp_path)
    assert resolved.training["per_device_train_batch_size"] == 24 and passes_per_step(resolved) == 1
    with pytest.raises(RecipeError, match="per_device_train_batch_size 16 makes others"):
        resolve_hardware(began, model, None)
    save_recipe(
        recipe(data={"tokens_per_step": 768}, training={"per_device_train_batch_size": 6}), tmp_path / "recipe.yaml"
    )
    resolved, hardware = resolve_hardware(again, model, tmp_path)
    assert resolved.training["per_device_train_batch_size"] == 6 and passes_per_step(resolved) == 4
    assert (hardware.step.micro_batch_size, hardware.step.accumulation) == (6, 4)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"training": {"fp16": True}}, r"training.fp16 \(as the recipe says\) needs a GPU.*--training.fp16=false"),
        ({"training": {"fp16": True, "bf16": True}}, "training.fp16 and training.bf16 are both true"),
        ({"training": {"fp16": True}, "model": {"dtype": "float16"}}, "fp16 needs float32 weights"),
        ({"training": {"use_liger_kernel": True}}, "its kernels are for GPUs; give --training.use_liger_kernel=false"),
        ({"hardware": {"attention": "flash_attention_2"}}, "hardware.attention flash_attention_2 does not work here"),
        ({"hardware": {"matmul_precision": "medium"}, "training": {"tf32": False}}, "medium and training.tf32 False"),
    ],
)
def test_what_this_machine_cannot_do_is_an_error_that_names_the_key(model, sections, words):
    with pytest.raises(RecipeError, match=words):
        resolve_hardware(recipe(**sections), model, None)


def test_compiling_that_cannot_work_is_refused_if_asked_for_and_else_left_out(model, monkeypatch):
    hardware = Hardware(Machine("cpu", None, "float32"), frozenset())
    monkeypatch.setenv("CXX", "no-such-compiler")
    line = "compile: off (it needs the compiler no-such-compiler, and there is none)"
    assert resolve_compile(recipe(), hardware, model, 10**6) == (False, line)
    with pytest.raises(RecipeError, match=r"as the recipe says.*no-such-compiler.*--training.torch_compile=false"):
        resolve_compile(recipe(training={"torch_compile": True}), hardware, model, 10)
    assert resolve_compile(recipe(training={"torch_compile": False}), hardware, model, 10)[0] is False


def test_tf32_is_another_name_of_the_precision(model):
    resolved, _ = resolve_hardware(recipe(training={"tf32": False}), model, None)
    assert resolved.hardware.matmul_precision == "highest"


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_weights_under_clean_names(recipe_for, weights, tmp_path):
    """About a minute: python -m pytest -m slow tests/training/hardware/test_settle.py"""
    content = recipe_for()
    content["training"] |= {"torch_compile": True, "output_dir": str(tmp_path / "whole")}
    path = tmp_path / "recipe.yaml"
    for run, options in (("whole", []), ("resumed", ["--resume"])):
        content["training"]["output_dir"] = str(tmp_path / run)
        path.write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "mypt", "train", str(path), *options]  # compiled anew by each process
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
        assert "compile: on (as the recipe says)" in done.stdout
        if run == "whole":
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
            for step in (8, 12):
                shutil.rmtree(tmp_path / "resumed" / f"checkpoint-{step}")
            Path(tmp_path, "resumed", "model.safetensors").unlink()
    whole, resumed = (weights(tmp_path / name) for name in ("whole", "resumed"))
    assert not [name for name in whole if "_orig_mod" in name]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    metrics = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_domain_loss" in entry for entry in metrics)


def test_what_is_free_is_what_was_before_the_model_was_loaded(model, monkeypatch):
    monkeypatch.setattr(module, "machine_of", lambda device: Machine("cpu", 10**9, "float32", free=10**8))
    _, hardware = resolve_hardware(recipe(), model, None)
    assert hardware.machine.free == 10**8 + 4 * model.num_parameters()


def test_adapters_of_a_stock_model_by_its_own_names_do_without_the_memory_model():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    for lora, known in (({"target_modules": ["c_attn"]}, False), ({}, True)):
        settings = recipe(model={"init_from": "gpt2"}, lora=lora, data={"tokens_per_step": 256})
        _, hardware = resolve_hardware(settings, model, None)
        assert bool(hardware.dimensions) == known
        assert any(line.startswith("batch: 256 tokens") for line in hardware.lines)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (
            "training",
            {"per_device_train_batch_size": 10**9},
            "per_device_train_batch_size 1,000,000,000 x .*the ids of a",
        ),
        ("training", {"gradient_accumulation_steps": 10**12}, "1,000,000,000,000 passes: the ids of a step alone"),
        ("training", {"per_device_train_batch_size": 3 * 10**7}, "by the estimate, and this machine|the ids of a step"),
        ("forgetting", {"eval_windows": "all"}, None),
        ("model", {"num_hidden_layers": 10**12}, "these dimensions make .* parameters"),
        ("model", {"hidden_size": 10**9}, "these dimensions make .* parameters"),
    ],
)
def test_sizes_that_this_machine_cannot_hold_are_refused_before_it_tries(section, values, words, recipe_for):
    content = recipe_for(**{section: values})
    if words is None:  # of which the last batch is cut off
        content["training"] |= {"per_device_eval_batch_size": 10**9}
        words = "the logits of an evaluation's batch alone"
    with pytest.raises(RecipeError, match=words):
        train(parse_recipe(content))
