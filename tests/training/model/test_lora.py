"""Adapters on any architecture: the base stays as it is, a resume is exact, the adapter alone is saved."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.checksums import write_checksums
from mypt.checkpoints.complete import last_complete_checkpoint, what_is_missing
from mypt.checkpoints.load import load_model
from mypt.cli.main import main
from mypt.errors import CheckpointError, RecipeError
from mypt.recipe import LoraSection, parse_recipe
from mypt.tokenization.load import largest_id, load_tokenizer
from mypt.training.build import build_trainer
from mypt.training.model.lora import attach_adapters
from mypt.training.run import train
from mypt.yaml12 import dump_yaml
from tests.processes import launch
from tests.training.test_distributed import evaluations
from tests.training.test_kill import start, wait_for
from tests.training.test_run import equal, losses

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def mypt(vocab_size: int = 64, **options) -> MyPTForCausalLM:
    torch.manual_seed(0)
    sizes = WIDTH | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
    return MyPTForCausalLM(MyPTConfig(vocab_size=vocab_size, **sizes | options)).eval()


def stock(name: str):
    import transformers

    sizes = {"GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2}, "Qwen3": WIDTH | {"num_key_value_heads": 1}}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=64, **sizes.get(name, WIDTH))
    class_name = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    return getattr(transformers, class_name)(config).eval()


ARCHITECTURES = {
    "mypt": mypt,
    "mypt-classic": lambda: mypt(position_embedding_type="learned", mlp_gated=False, num_key_value_heads=2),
    **{name: lambda name=name: stock(name) for name in ("GPT2", "Llama", "Qwen3", "GPTNeoX", "Phi")},
}


def save_base(corpora: Path, folder: Path, **options) -> Path:
    tokenizer = load_tokenizer(corpora / "general")
    mypt(largest_id(tokenizer) + 1, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(corpora, tmp_path_factory) -> Path:
    """The folder of a run of 4 steps, for tests that only read it."""
    root = tmp_path_factory.mktemp("finished")
    sets = {name: str(corpora / name) for name in ("domain", "general")}
    training = {"output_dir": str(root / "run"), "max_steps": 4, "eval_steps": 2, "save_steps": 2, "bf16": False}
    content = {
        "model": {"init_from": str(save_base(corpora, root / "base"))},
        "data": {"train": sets["domain"], "eval": sets, "block_size": 32},
        "coverage": {"confirm": False},
        "forgetting": {"eval_windows": 20},
        "lora": {},
        "training": training | {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "use_cpu": True},
    }
    return train(parse_recipe(content))


@pytest.fixture
def base(corpora, tmp_path) -> Path:
    """A small model for the corpora's tokenizer, in a folder of its own."""
    return save_base(corpora, tmp_path / "base", hidden_dropout=0.1)


@pytest.fixture
def lora_for(recipe_for, base):
    """lora_for(section={key: value}): a recipe of a second or two that trains adapters beside the base."""

    def build(lora=None, training=None, **sections) -> dict:
        training = {"max_steps": 4, "eval_steps": 2, "save_steps": 2} | (training or {})
        content = recipe_for(training=training, **sections)
        return content | {"model": {"init_from": str(base)}, "lora": lora or {}}

    return build


def adapter(folder: Path) -> dict:
    return load_file(Path(folder) / "adapter_model.safetensors")


# ---- where adapters stand ----


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_layer_but_the_head_on_any_architecture(name, tmp_path):
    model = ARCHITECTURES[name]()
    ids = torch.arange(32).view(2, 16)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    logits = model(ids).logits
    head = model.get_output_embeddings()
    linear = [key for key, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    assert len(linear) >= 8
    model.save_pretrained(tmp_path / "base")

    adapted = attach_adapters(model, LoraSection(), str(tmp_path / "base"), seed=0)
    trained = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {key.split(".lora_")[0].removeprefix("base_model.model.") for key in trained} == set(linear)
    assert torch.equal(adapted(input_ids=ids).logits, logits), "an untrained adapter adds nothing"
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in adapted.parameters() if p.requires_grad)
    changed = adapted.eval()(input_ids=ids).logits
    assert (changed - logits).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    assert equal(adapted.unload().state_dict(), before)
    merged = load_model(tmp_path / "adapter", device="cpu")
    assert type(merged) is type(ARCHITECTURES[name]())
    assert (merged(ids).logits - changed).abs().max() < 1e-5 * changed.abs().max()


def test_named_modules_and_a_regular_expression(tmp_path):
    def adapted(targets) -> set[str]:
        model = attach_adapters(mypt(), LoraSection(target_modules=targets), "nowhere", seed=0)
        return {key.split(".lora_")[0] for key, p in model.named_parameters() if p.requires_grad}

    assert len(adapted(["q_proj", "mlp.down_proj"])) == 4
    assert adapted(r".*layers\.0\..*\.[qv]_proj") == {
        f"base_model.model.model.layers.0.self_attn.{name}_proj" for name in "qv"
    }
    untied = attach_adapters(
        mypt(tie_word_embeddings=False), LoraSection(target_modules=["lm_head"]), "nowhere", seed=0
    )
    assert untied.num_parameters(only_trainable=True) == 8 * (32 + 64)


@pytest.mark.parametrize("targets", [["q_proj", "c_attn"], ["lm_head"], ["embed_tokens"], ["proj"], "q_proj"])
def test_a_name_that_is_no_linear_layer_is_refused_with_those_there_are(targets):
    with pytest.raises(RecipeError, match=r"is no linear layer of the model, which has: down_proj, gate_proj"):
        attach_adapters(mypt(tie_word_embeddings=True), LoraSection(target_modules=targets), "nowhere", seed=0)


def test_settings_that_make_no_sense_are_refused(lora_for):
    refused = {
        "lora.r is 0": {"lora": {"r": 0}},
        "lora.alpha": {"lora": {"alpha": -1}},
        "lora.dropout": {"lora": {"dropout": 1.0}},
        "expected names of modules": {"lora": {"target_modules": []}},
        "no regular expression": {"lora": {"target_modules": "(q_proj"}},
        "did you mean 'alpha'": {"lora": {"lora_alpha": 8}},
        "model.init_from": {"model": {"preset": "modern-nano"}},
        "muon is refused beside lora": {"optimizer": {"name": "muon"}},
    }
    for words, change in refused.items():
        with pytest.raises(RecipeError, match=words):
            parse_recipe(lora_for() | change)


def test_four_bits_need_a_gpu(lora_for):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RecipeError, match=r"lora\.load_in_4bit needs a CUDA GPU, and there is none here"):
        build_trainer(parse_recipe(lora_for(lora={"load_in_4bit": True})))


# ---- a run ----


def test_a_run_leaves_the_adapter_and_never_writes_the_base(lora_for, base, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in base.iterdir()}
    run = train(parse_recipe(lora_for()))
    printed = capsys.readouterr().out
    # 2 layers x (q 32+32, k and v 32+16, o 32+32, gate and up 32+64, down 64+32) x rank 8
    trained = 2 * 8 * (64 + 48 + 48 + 64 + 96 + 96 + 96)
    assert f"lora: {trained:,} of them are trained" in printed and "adamw, learning rate" in printed
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in base.iterdir()} == before
    for folder in (run, run / "best", run / "checkpoint-4"):
        names = {path.name for path in folder.iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "adapter_base.json", "tokenizer.json"} <= names
        assert not names & {"model.safetensors", "config.json", "README.md", "training_args.bin"}
    assert sum(tensor.numel() for tensor in adapter(run).values()) == trained
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    history = json.loads((run / "forgetting.json").read_text())["history"]
    assert history[0]["sets"]["general"]["delta"] == 0.0 and history[-1]["sets"]["domain"]["delta"] < 0
    best = min(history[1:], key=lambda entry: entry["constrained_loss"])["step"]
    assert equal(adapter(run / "best"), adapter(run / f"checkpoint-{best}"))


def test_the_step_0_baseline_is_the_base_models_loss(finished, corpora):
    from mypt.evaluation.loss import window_losses
    from mypt.streams.eval_windows import EvalWindows

    windows = EvalWindows(str(corpora / "general"), "val", block_size=32, max_windows=20)
    history = json.loads((finished / "forgetting.json").read_text())["history"]
    for entry, folder in ((history[0], finished.parent / "base"), (history[-1], finished)):
        loss = window_losses(load_model(folder, device="cpu"), windows).loss
        assert entry["sets"]["general"]["loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    ("lora", "training", "optimizer"),
    [
        ({"r": 3, "dropout": 0.2}, {"gradient_accumulation_steps": 2}, {"schedule": "wsd"}),
        ({}, {"optim": "adamw_torch", "activation_checkpointing": True}, {}),
    ],
    ids=["dropout-accumulation-wsd", "hf-optim-checkpointing"],
)
def test_a_resume_is_the_uninterrupted_run(lora_for, tmp_path, lora, training, optimizer):
    content = lora_for(lora=lora, training=training, optimizer={"schedule": "constant"} | optimizer)
    whole = train(parse_recipe(content))
    run = shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(run / "checkpoint-4")
    (run / "adapter_model.safetensors").unlink()
    content["training"]["output_dir"] = str(run)
    train(parse_recipe(content), resume=True)
    assert equal(adapter(whole), adapter(run))
    assert losses(whole) == losses(run)
    for name in ("coverage.json", "forgetting.json"):
        assert json.loads((whole / name).read_text()) == json.loads((run / name).read_text())


def test_another_rank_and_another_base_are_another_run(lora_for, base):
    content = lora_for()
    train(parse_recipe(content))
    with pytest.raises(CheckpointError, match=r"holds another run .*lora"):
        train(parse_recipe(content | {"lora": {"r": 4}}), resume=True)
    write_checksums(base)
    vocabulary, weights = load_model(base).config.vocab_size, bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"adapters cannot be loaded: .*base: model.* was changed: .*restore it"):
        train(parse_recipe(content), resume=True)
    mypt(vocabulary, initializer_range=0.1).save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"holds another run .*lora"):
        train(parse_recipe(content), resume=True)


@pytest.mark.usefixtures("without_plots")
def test_a_base_that_moved_is_named_on_a_resume(lora_for, base, tmp_path):
    content = lora_for()
    whole = train(parse_recipe(content))
    run = shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(run / "checkpoint-4")
    content["training"]["output_dir"] = str(run)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base of this run's adapters is not there.* --model\.init_from=PATH"):
        train(parse_recipe(content), resume=True)
    environment = json.loads((run / "environment.json").read_text())
    for recorded in (environment["identity"]["init_from"], str(base)):  # the second as early versions did
        environment["identity"]["init_from"] = recorded
        (run / "environment.json").write_text(json.dumps(environment))
        train(parse_recipe(content | {"model": {"init_from": str(moved)}}), resume=True)
    assert equal(adapter(whole), adapter(run))
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(moved)


@pytest.mark.slow
def test_kill_at_any_moment(lora_for, tmp_path):
    content = lora_for(lora={"dropout": 0.1})
    content["training"] |= {"max_steps": 30, "save_steps": 3, "eval_steps": 15, "logging_steps": 1}
    whole = train(parse_recipe(content))
    content["training"]["output_dir"] = str(tmp_path / "killed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(content))
    moment = random.SystemRandom().randrange(1, 28)
    process = start(recipe)
    wait_for(tmp_path / "killed", moment, process)
    process.kill()
    final = start(recipe)
    assert final.wait() == 0, f"killed at {moment}: {final.output()}"
    assert equal(adapter(whole), adapter(tmp_path / "killed")), f"killed at {moment}"


def test_two_processes_equal_one(recipe_for, corpora, tmp_path):
    base = save_base(corpora, tmp_path / "base")
    content = recipe_for(training={"max_steps": 8}) | {"model": {"init_from": str(base)}, "lora": {}}
    one = train(parse_recipe(content))
    content["training"] |= {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 2}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(content))
    launch("cpu_2.yaml", recipe)
    left, right = adapter(one), adapter(tmp_path / "two")
    assert max((left[name] - right[name]).abs().max().item() for name in left) < 1e-5
    assert max(tensor.abs().max().item() for name, tensor in left.items() if "lora_B" in name) > 1e-3
    for first, second in zip(evaluations(one), evaluations(tmp_path / "two"), strict=True):
        assert first == pytest.approx(second, abs=1e-5)


def test_verify_reads_adapters(finished, tmp_path, capsys):
    best = shutil.copytree(finished / "best", tmp_path / "best")
    assert main(["verify", str(finished)]) == 0 and f"{finished / 'best'}: ok" in capsys.readouterr().out
    assert main(["verify", str(best)]) == 0 and f"{best}: ok: 1 file" in capsys.readouterr().out
    for name in ("config.json", "model.safetensors"):  # which transformers would load in its place
        shutil.copy(finished.parent / "base" / name, best)
    assert main(["verify", str(best)]) == 1 and "model.safetensors was not part" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"model\.safetensors was not part of the save"):
        load_model(best)


def test_a_damaged_adapter_is_skipped(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    newest = run / "checkpoint-4"
    assert what_is_missing(newest) is None
    for name in ("adapter_model.safetensors", "adapter_config.json", "adapter_base.json"):
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[: len(content) // 2])
        assert name in what_is_missing(newest)
        assert last_complete_checkpoint(run)[0] == run / "checkpoint-2"
        (newest / name).write_bytes(content)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (newest / name).rename(run / "aside")
        assert name in what_is_missing(newest)
        (run / "aside").rename(newest / name)
    assert what_is_missing(newest) is None


def test_checkpointing_gives_the_same_gradients(base):
    gradients = []
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = attach_adapters(load_model(base, device="cpu"), LoraSection(), str(base), seed=0).train()
        model.base_model.model.config.hidden_dropout = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if options:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        ids = torch.arange(32).view(2, 16)
        torch.manual_seed(0)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(equal(gradients[0], other) for other in gradients[1:])


def test_weight_decay_and_flops_are_the_adapters(lora_for):
    trainer = build_trainer(parse_recipe(lora_for()))
    trainer.create_optimizer()
    (group,) = trainer.optimizer.param_groups
    assert group["weight_decay"] == 0.1 and not group["muon"]
    assert sum(p.numel() for p in group["params"]) == trainer.model.num_parameters(only_trainable=True)
    base = load_model(trainer.model.peft_config["default"].base_model_name_or_path)
    frozen = base.num_parameters(exclude_embeddings=True) + base.lm_head.weight.numel()  # the head multiplies, too
    trained = trainer.model.num_parameters(only_trainable=True)
    attention = 12 * base.config.num_hidden_layers * base.config.num_attention_heads * base.config.head_dim * 8
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}
    assert trainer.floating_point_ops(batch) == 16 * (4 * frozen + 6 * trained + attention)


def test_documents_of_a_window_stay_apart(lora_for, recipe_for):
    trainer = build_trainer(parse_recipe(lora_for(data=recipe_for()["data"] | {"document_mask": True})))
    batch = next(iter(trainer.train_dataset))
    batch["position_ids"] = torch.arange(16).repeat(2).expand(len(batch["input_ids"]), -1)
    other = batch | {"input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, :16] += 1
    trainer.model.eval()
    first, second = (trainer.compute_loss(trainer.model, x, return_outputs=True)[1].logits for x in (batch, other))
    assert torch.equal(first[:, 16:], second[:, 16:]) and not torch.equal(first[:, :16], second[:, :16])


def test_an_adapter_is_no_base_for_adapters(base, tmp_path):
    attach_adapters(load_model(base, device="cpu"), LoraSection(), str(base), seed=0).save_pretrained(
        tmp_path / "first"
    )
    with pytest.raises(RecipeError, match="is an adapter itself; merge it first: mypt merge"):
        attach_adapters(load_model(base, device="cpu"), LoraSection(), str(tmp_path / "first"), seed=0)


def test_plain_peft_and_transformers_load_what_was_saved(finished):
    from peft import AutoPeftModelForCausalLM, PeftModel

    ids = torch.arange(32).view(2, 16)
    config = json.loads((finished / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    ways = [PeftModel.from_pretrained(base, finished), AutoPeftModelForCausalLM.from_pretrained(finished),
            AutoModelForCausalLM.from_pretrained(finished)]  # fmt: skip
    expected = load_model(finished, device="cpu")(ids).logits
    for model in ways:
        assert (model.eval()(input_ids=ids).logits - expected).abs().max() < 1e-5
