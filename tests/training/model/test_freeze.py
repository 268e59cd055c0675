"""Frozen parts stay bit for bit, cost no optimizer state, and change nothing else; for MyPT's and other causal LMs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    XLMConfig,
    XLMWithLMHeadModel,
)

from mypt.errors import CheckpointError, RecipeError
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.recipe import ModelSection, parse_recipe
from mypt.tokenization.load import largest_id, load_tokenizer
from mypt.training.model.freeze import decoder_layers, forward_only_layers, freeze
from mypt.training.run import train

SIZES = {"vocab_size": 32, "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 2}
MYPT = SIZES | {"num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 40, "max_position_embeddings": 16}
MODELS = {
    "mypt": (lambda: MyPTForCausalLM(preset_config("modern-nano", **MYPT)), "model.layers"),
    "mypt classic": (lambda: MyPTForCausalLM(preset_config("tiny", **MYPT)), "model.layers"),
    "mypt untied": (
        lambda: MyPTForCausalLM(preset_config("modern-nano", tie_word_embeddings=False, **MYPT)),
        "model.layers",
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=24, n_layer=3, n_head=2, n_positions=16)),
        "transformer.h",
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=40, **SIZES)), "model.layers"),
    "opt": (lambda: OPTForCausalLM(OPTConfig(word_embed_proj_dim=16, ffn_dim=40, **SIZES)), "model.decoder.layers"),
    "gpt_neox": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=40, **SIZES)), "gpt_neox.layers"),
    "bloom": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=24, n_layer=3, n_head=2)),
        "transformer.h",
    ),
}
TABLES = ("embed_tokens", "embed_positions", "wte", "wpe", "embed_in", "word_embeddings")
UNTIED = ("mypt untied", "llama", "gpt_neox")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("layers", "embeddings"), [(0, True), (2, False), (2, True)])
def test_exactly_what_is_named_gets_no_gradient(name, layers, embeddings):
    build, path = MODELS[name]
    model = build()
    line = freeze(model, ModelSection(freeze_layers=layers, freeze_embeddings=embeddings), {})
    ids = torch.arange(10)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    frozen = [f"{path}.{index}." for index in range(layers)]
    names = {key for key, _ in model.named_parameters()}
    expected = {key for key in names if key.startswith(tuple(frozen))}
    expected |= {key for key in names if key.split(".")[-2] in TABLES} if embeddings else set()
    assert without == expected
    trained = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert f"{trained:,} of {model.num_parameters():,} parameters are trained" in line
    assert ("first 2 of 3 layers" in line) == bool(layers)
    assert ("the same tensor" in line) == (embeddings and name not in UNTIED)
    unreached = forward_only_layers(model)
    between = name in ("opt", "bloom")  # a projection or a norm between the embeddings and the layers is trained
    assert len(unreached) == (layers if embeddings and not between else 0)
    assert reached_layers(model) == [layer for layer in decoder_layers(model) if layer not in unreached]


def reached_layers(model) -> list:
    """Decoder layers that the backward pass goes through."""
    layers, seen = decoder_layers(model), set()
    for layer in layers:
        layer.register_full_backward_hook(lambda module, *_: seen.add(module))
    ids = torch.arange(10)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    return [layer for layer in layers if layer in seen]


def test_a_list_of_layers_that_is_not_clear_is_refused():
    model = XLMWithLMHeadModel(XLMConfig(n_words=32, emb_dim=24, n_layers=3, n_heads=2))
    with pytest.raises(RecipeError, match=r"decoder layers of XLMWithLMHeadModel \(candidates: transformer.attentions"):
        freeze(model, ModelSection(freeze_layers=1), {})


def test_more_layers_than_there_are_and_nothing_left_to_train_are_refused():
    model = MODELS["mypt"][0]()
    with pytest.raises(RecipeError, match="freeze_layers is 4, expected 0 to 3"):
        freeze(model, ModelSection(freeze_layers=4), {})
    assert "all 3 layers; 24 of" in freeze(model, ModelSection(freeze_layers=3, freeze_embeddings=True), {}).replace(
        " and the embeddings (and the head, which is the same tensor)", ""
    )
    model.model.norm.requires_grad_(False)
    with pytest.raises(RecipeError, match="leave nothing to train"):
        freeze(model, ModelSection(freeze_embeddings=True), {})
    assert freeze(MODELS["gpt2"][0](), ModelSection(), {}) is None


def test_beside_lora_freezing_is_refused():
    content = {"model": {"init_from": "base", "freeze_layers": 1}, "lora": {}}
    with pytest.raises(RecipeError, match="refused beside lora"):
        parse_recipe(content)
    for wrong in ({"freeze_layers": -1}, {"freeze_layers": 1.5}, {"freeze_embeddings": 1}):
        with pytest.raises(RecipeError, match=f"model.{next(iter(wrong))} is"):
            parse_recipe({"model": wrong})


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_checkpointing_beside_frozen_embeddings_trains_the_layers(options):
    training = {"activation_checkpointing": True, "activation_checkpointing_kwargs": options}
    gradients = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        model = MODELS["mypt"][0]().train()
        freeze(model, ModelSection(freeze_layers=1, freeze_embeddings=True), training if checkpointing else {})
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        ids = torch.arange(10)[None]
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


@pytest.fixture
def base(corpora, tmp_path):
    """base(kind): the folder of a tiny MyPT, or of a tiny GPT-NeoX, which stays one and names its head otherwise."""
    tokenizer = load_tokenizer(corpora / "general")
    size = largest_id(tokenizer) + 1

    def save(kind):
        sizes = MYPT | {"vocab_size": -(-size // 64) * 64, "max_position_embeddings": 64}
        if kind == "mypt":
            model = MyPTForCausalLM(preset_config("modern-nano", unpadded_vocab_size=size, **sizes))
        else:
            sizes = SIZES | {"vocab_size": size, "intermediate_size": 40, "max_position_embeddings": 64}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


@pytest.mark.parametrize(("kind", "optimizer"), [("mypt", "muon"), ("neox", "adafactor")])
def test_a_run_moves_the_rest_alone_keeps_no_state_of_it_and_resumes_to_the_last_bit(
    recipe_for, base, tmp_path, weights, capsys, kind, optimizer
):
    content = recipe_for(forgetting={"eval_windows": 2}, optimizer={"name": optimizer})
    content["training"] |= {"max_steps": 6, "save_steps": 3, "eval_steps": 1000}
    base = base(kind)
    content["model"] = {"init_from": str(base), "freeze_layers": 1, "freeze_embeddings": True}
    capsys.readouterr()
    run = train(parse_recipe(content))
    assert "frozen: the first 1 of" in capsys.readouterr().out
    before, after = load_file(base / "model.safetensors"), weights(run)
    equal = {key for key in after if torch.equal(before[key], after[key])}
    frozen = {key for key in after if ".layers.0." in key or "embed_" in key} - {"embed_out.weight"}
    assert equal == frozen and len(frozen) < len(after)
    state = torch.load(run / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == len(after) - len(frozen)

    killed = tmp_path / "killed"
    shutil.copytree(run, killed)
    shutil.rmtree(killed / "checkpoint-6")
    content["training"]["output_dir"] = str(killed)
    resumed = weights(train(parse_recipe(content), resume=True))
    assert all(torch.equal(after[key], resumed[key]) for key in after)
    content["model"]["freeze_layers"] = 0
    with pytest.raises(CheckpointError, match=r"holds another run \(frozen: .*\"layers\": 1.* cannot change"):
        train(parse_recipe(content), resume=True)
