"""`model.init_from` through the real trainer: what becomes MyPT's own class, what stays, what is extended."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mypt import MyPTForCausalLM
from mypt.errors import CheckpointError, RecipeError, TokenizerError
from mypt.recipe import load_recipe, parse_recipe
from mypt.tokenization.add_tokens import extend_tokenizer
from mypt.tokenization.load import largest_id, load_tokenizer
from mypt.training.build import build_trainer
from mypt.training.run import train

ROTARY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ROTARY |= {"num_key_value_heads": 1, "max_position_embeddings": 64}
WORDS = [" argument", "parser.", " statement"]


@pytest.fixture
def stock(corpora, tmp_path):
    """stock(kind): the folder of a tiny model of transformers' own, with the tokenizer of the corpora."""
    size = largest_id(load_tokenizer(corpora / "general")) + 1

    def save(kind):
        torch.manual_seed(0)
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64))
        elif kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(vocab_size=size, **ROTARY))
        elif kind == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(vocab_size=size, head_dim=16, **ROTARY))
        else:
            sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 1}
            model = OPTForCausalLM(OPTConfig(vocab_size=size, num_attention_heads=2, **sizes))
        model.save_pretrained(tmp_path / kind)
        load_tokenizer(corpora / "general").save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return save


@pytest.fixture
def with_words(corpora, tmp_path):
    """A dataset directory of the domain in a tokenizer with added words."""
    from mypt.preparation.prepare import prepare_dataset

    extend_tokenizer(corpora / "general", WORDS, tmp_path / "words")
    options = {"val_split": "tail", "progress": False}
    prepare_dataset([str(corpora / "domain.txt")], tmp_path / "data", tokenizer=str(tmp_path / "words"), **options)
    return tmp_path / "data"


def recipe(recipe_for, folder, **sections):
    content = recipe_for(**{name: values for name, values in sections.items() if name != "model"})
    content["model"] = {"init_from": str(folder)} | sections.get("model", {})
    return parse_recipe(content)


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


IDS = torch.arange(40)[None]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_a_family_that_mypt_can_express_becomes_mypt_and_trains_with_muon(recipe_for, stock, capsys, kind):
    folder = stock(kind)
    trainer = build_trainer(recipe(recipe_for, folder, hardware={"attention": "sdpa"}))  # as the original has it
    original = AutoModelForCausalLM.from_pretrained(folder)
    assert type(trainer.model) is MyPTForCausalLM
    torch.testing.assert_close(logits(trainer.model, IDS), logits(original, IDS), atol=0, rtol=0)
    assert f"init_from {folder}: {type(original).__name__} as MyPTForCausalLM" in capsys.readouterr().out
    assert load_recipe(trainer.args.output_dir).optimizer.name == "muon"


def test_any_other_model_stays_as_it_is_and_says_why(recipe_for, stock, capsys):
    trainer = build_trainer(recipe(recipe_for, stock("opt")))
    assert type(trainer.model) is OPTForCausalLM
    assert "stays OPTForCausalLM: MyPT does not have model_type opt" in capsys.readouterr().out
    with pytest.raises(RecipeError, match=r"model\.hidden_dropout cannot be changed: .* stays OPTForCausalLM"):
        build_trainer(recipe(recipe_for, stock("opt"), model={"hidden_dropout": 0.1}))


def test_an_adapter_keeps_the_base_that_others_will_load(recipe_for, stock, with_words, capsys):
    pytest.importorskip("peft")
    trainer = build_trainer(recipe(recipe_for, stock("llama"), lora={}))
    assert type(trainer.model.get_base_model()) is LlamaForCausalLM
    assert "stays LlamaForCausalLM, the base that its adapter" in capsys.readouterr().out
    data = {"train": str(with_words), "eval": {"domain": str(with_words)}}
    with pytest.raises(RecipeError, match="an adapter leaves its base as it is"):
        build_trainer(recipe(recipe_for, stock("llama"), lora={}, data=data))


def test_a_resumed_run_of_a_stock_model_is_the_uninterrupted_one(recipe_for, stock, tmp_path, weights):
    folder = stock("gpt2")
    whole = train(recipe(recipe_for, folder))
    assert json.loads((whole / "config.json").read_text())["model_type"] == "mypt"
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for step in (8, 12):
        shutil.rmtree(broken / f"checkpoint-{step}")
    resumed = recipe(recipe_for, folder, training={"output_dir": str(broken)})
    train(resumed, resume=True)
    one, two = weights(whole), weights(broken)
    assert all(torch.equal(one[name], two[name]) for name in one)


def resumed(whole, folder, content: dict, step: int = 4):
    """The run in `whole` as it was after `step`, resumed in `folder`."""
    shutil.copytree(whole, folder)
    for path in folder.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    content = content | {"training": content["training"] | {"output_dir": str(folder)}}
    return train(parse_recipe(content), resume=True)


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_resume_needs_the_base_no_more(recipe_for, stock, with_words, tmp_path, weights, capsys, kind):
    """With added tokens, a stretched context and frozen layers; a model that becomes MyPT's, and one that stays."""
    folder = stock(kind)
    data = {"train": str(with_words), "eval": {"domain": str(with_words)}}
    content = recipe_for(training={"max_steps": 8}, data=data | ({} if kind == "opt" else {"block_size": 96}))
    content["model"] = {"init_from": str(folder), "freeze_layers": 1 if kind != "opt" else 0, "freeze_embeddings": True}
    whole = train(parse_recipe(content))
    content["model"]["init_from"] = str(folder.rename(tmp_path / "renamed"))
    again = resumed(whole, tmp_path / "renamed_base", content)
    assert "not there any more" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "renamed")
    gone = resumed(whole, tmp_path / "no_base", content)
    assert "renamed is not there any more: the run resumes from its checkpoint" in capsys.readouterr().out
    expected = weights(whole)
    for run in (again, gone):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())
        assert (run / "config.json").read_bytes() == (whole / "config.json").read_bytes()
        assert (run / "generation_config.json").read_bytes() == (whole / "generation_config.json").read_bytes()


def test_text_keeps_the_tokenizer_of_a_base_that_is_gone(recipe_for, stock, corpora, tmp_path, weights):
    folder = stock("llama")
    content = recipe_for(training={"max_steps": 8})
    content["data"] = {"train": str(corpora / "domain.txt"), "block_size": 32}
    content["model"] = {"init_from": str(folder)}
    whole = train(parse_recipe(content))
    shutil.rmtree(folder)
    again = resumed(whole, tmp_path / "again", content)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(again).items())


def test_a_model_without_a_longest_context_needs_a_block_size(recipe_for, corpora, tmp_path):
    MambaForCausalLM(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4)).save_pretrained(
        tmp_path / "mamba"
    )
    load_tokenizer(corpora / "general").save_pretrained(tmp_path / "mamba")
    content = recipe_for()
    content["data"].pop("block_size")
    content["model"] = {"init_from": str(tmp_path / "mamba")}
    with pytest.raises(RecipeError, match=r"names no longest context; give data\.block_size"):
        build_trainer(parse_recipe(content))


@pytest.mark.usefixtures("without_plots")
def test_another_base_in_the_same_place_and_other_changes_to_it_are_refused(recipe_for, stock, tmp_path):
    folder = stock("llama")
    content = recipe_for(training={"max_steps": 4}) | {"model": {"init_from": str(folder)}}
    run = train(parse_recipe(content))
    for change, words in (({"hidden_dropout": 0.2}, r'model: .*"hidden_dropout": 0.2. now'),
                          ({"max_position_embeddings": 128}, r'model: .*"max_position_embeddings": 128')):  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            train(parse_recipe(content | {"model": content["model"] | change}), resume=True)
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    model = LlamaForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data[0, 0] += 1e-3
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r'another run \(init_from: {"weights": "\w{32}"} there, {"weights": '):
        train(parse_recipe(content), resume=True)
    # Versions that recorded the name of the base can compare nothing else.
    environment["identity"]["init_from"] = str(folder)
    environment["identity"]["model"] |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 3}
    path.write_text(json.dumps(environment))
    shutil.rmtree(folder)
    train(parse_recipe(content), resume=True)
    with pytest.raises(CheckpointError, match=r"another run \(init_from: .*llama"):
        train(parse_recipe(content | {"model": {"init_from": str(tmp_path / "elsewhere")}}), resume=True)


def test_changes_beside_init_from_are_made_or_refused_by_name(recipe_for, stock):
    folder = stock("llama")
    model = build_trainer(recipe(recipe_for, folder, model={"hidden_dropout": 0.2, "attention_dropout": 0.1})).model
    assert model.model.dropout.p == 0.2 and model.config.attention_dropout == 0.1
    with pytest.raises(RecipeError, match=r"model\.num_hidden_layers cannot be changed together with model\.init_from"):
        build_trainer(recipe(recipe_for, folder, model={"num_hidden_layers": 3}))
    for limit, words in ((32, "below the model's 64"), (80, r"below data\.block_size 96")):
        with pytest.raises(RecipeError, match=words):
            content = {"model": {"max_position_embeddings": limit}, "data": {"block_size": 96}}
            build_trainer(recipe(recipe_for, folder, **content))
    with pytest.raises(RecipeError, match="longrope"):
        content = {"model": {"rope_parameters": {"rope_type": "longrope"}}, "data": {"block_size": 96}}
        build_trainer(recipe(recipe_for, folder, **content))


def test_a_longer_block_stretches_the_context_and_the_way_is_frozen(recipe_for, stock, tmp_path, capsys):
    folder = stock("llama")
    longer = recipe(recipe_for, folder, data={"block_size": 128}, training={"max_steps": 4})
    run = train(longer)
    assert "context 64 -> 128 tokens: rope_type yarn, factor 2" in capsys.readouterr().out
    frozen = load_recipe(run)
    assert frozen.model.config["rope_parameters"]["rope_type"] == "yarn"
    train(frozen, resume=True)  # from the run folder alone
    assert "already complete" in capsys.readouterr().out
    frozen.training["output_dir"] = str(tmp_path / "again")
    again = train(frozen)
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    other = recipe(recipe_for, folder, data={"block_size": 128}, model={"rope_parameters": {"rope_type": "dynamic"}},
                   training={"output_dir": str(tmp_path / "dynamic"), "max_steps": 2})  # fmt: skip
    assert build_trainer(other).model.config.max_position_embeddings == 64


def test_learned_positions_grow_with_the_block(recipe_for, stock, capsys):
    folder = stock("gpt2")
    model = build_trainer(recipe(recipe_for, folder, data={"block_size": 128}, hardware={"attention": "sdpa"})).model
    assert model.config.max_position_embeddings == 128
    assert "the table of learned positions is repeated" in capsys.readouterr().out
    original = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(model, IDS), logits(original, IDS), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_added_words_get_rows_from_their_pieces(recipe_for, stock, corpora, with_words, capsys, kind):
    folder = stock(kind)
    data = {"train": str(with_words), "eval": {"domain": str(with_words)}}
    model = build_trainer(recipe(recipe_for, folder, data=data)).model
    base, original = load_tokenizer(corpora / "general"), AutoModelForCausalLM.from_pretrained(folder)
    known = largest_id(base) + 1
    assert f"added 3 tokens to {known:,} rows" in capsys.readouterr().out
    assert model.config.vocab_size % 64 == 0 and model.config.vocab_size > known
    torch.testing.assert_close(logits(model, IDS)[..., :known], logits(original, IDS), atol=1e-6, rtol=1e-6)
    table = model.get_input_embeddings().weight
    for id, word in enumerate(WORDS, start=known):
        pieces = base(word, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(table[id], table[pieces].mean(0))


def test_a_model_s_free_rows_are_used_for_the_words(recipe_for, corpora, with_words, tmp_path):
    base = recipe_for(data={"train": str(corpora / "domain")}, training={"max_steps": 2, "save_steps": 2})
    first = train(parse_recipe(base))
    config = json.loads((first / "config.json").read_text())
    free = config["vocab_size"] - config["unpadded_vocab_size"]
    data = {"train": str(with_words), "eval": {"domain": str(with_words)}}
    content = recipe(recipe_for, first, data=data, training={"output_dir": str(tmp_path / "adapted")})
    model = build_trainer(content).model
    assert free >= len(WORDS) and model.config.vocab_size == config["vocab_size"]
    assert model.config.unpadded_vocab_size == config["unpadded_vocab_size"] + len(WORDS)


def test_words_that_are_no_extension_are_refused(recipe_for, stock, corpora, tmp_path):
    from mypt.preparation.prepare import prepare_dataset

    options = {"val_split": "tail", "progress": False}
    prepare_dataset([str(corpora / "domain.txt")], tmp_path / "own", tokenizer="char", **options)
    data = {"train": str(tmp_path / "own"), "eval": {"domain": str(tmp_path / "own")}}
    with pytest.raises(TokenizerError, match="have different tokenizers"):
        build_trainer(recipe(recipe_for, stock("gpt2"), data=data))
