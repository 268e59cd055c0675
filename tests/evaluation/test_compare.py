"""Several models on the same windows: the first is the yardstick of all others."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import CheckpointError, DataError, MyPTError, TokenizerError
from mypt.evaluation.compare import compare, parse_data
from mypt.evaluation.loss import window_losses
from mypt.streams.eval_windows import EvalWindows

VOCABULARY = 40


@pytest.fixture
def save_model(tmp_path):
    def save(name, seed=0, context=32, dtype=torch.float32, gpt2=False) -> str:
        torch.manual_seed(seed)
        if gpt2:
            sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=context, **sizes))
        else:
            sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            model = MyPTForCausalLM(
                MyPTConfig(vocab_size=VOCABULARY, max_position_embeddings=context, initializer_range=0.3, **sizes)
            )
        model.to(dtype).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def data(make_shards):
    rng = np.random.default_rng(0)
    sets = {}
    for name, size in {"general": 700, "domain": 330}.items():
        ids = rng.integers(0, VOCABULARY, size)
        sets[name] = str(make_shards(name, train=ids[:50], val=ids, vocab_size=VOCABULARY))
    return sets


def test_changes_are_against_the_first_model(save_model, data):
    first, second, third = save_model("first"), save_model("second", seed=1), save_model("third", gpt2=True)
    scores = compare([first, second, third], data, guard=["general"])
    assert [(score.model, score.data) for score in scores] == [
        (model, name) for model in (first, second, third) for name in ("general", "domain")
    ]
    by_set = {name: [score for score in scores if score.data == name] for name in data}
    for name, (base, *others) in by_set.items():
        assert (base.delta, base.delta_error, base.state) == (None, None, None)
        for other in others:
            assert other.delta == pytest.approx(other.loss - base.loss, abs=1e-12)
            assert other.delta_error > 0
            assert (other.state is not None) == (name == "general")
        assert all(score.tokens == {"general": 699, "domain": 329}[name] for score in (base, *others))


def test_a_change_is_judged_by_the_tolerance_given_or_of_the_run(save_model, data, tmp_path):
    # Data at random, so that a model that says nothing is the best there is.
    models = [save_model("flat", gpt2=True), *(save_model(name) for name in ("run/best", "run/checkpoint-3", "run/x"))]
    options = {"guard": ["general"]}
    (_, delta), *_ = [(score.model, score.delta) for score in compare(models, data, **options) if score.state]

    def judged(**given) -> list[tuple]:
        return [(score.state, score.tolerance) for score in compare(models, data, **options, **given) if score.state]

    assert delta > 0.3 and judged() == [("critical", 0.05)] * 3
    (tmp_path / "run" / "forgetting.json").write_text(json.dumps({"history": [], "tolerance": delta * 0.9}))
    assert judged() == [("watch", delta * 0.9)] * 2 + [("critical", 0.05)], "best and checkpoint-N are the run's"
    assert judged(tolerance=2 * delta) == [("healthy", 2 * delta)] * 3
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(MyPTError, match="expected a number above 0"):
            judged(tolerance=wrong)


def test_figures_are_those_of_the_exact_evaluator(save_model, data):
    path = save_model("model")
    (score,) = compare([path, path], {"general": data["general"]}, block_size=8)  # a model named twice is one model
    model = MyPTForCausalLM.from_pretrained(path)
    windows = EvalWindows(data["general"], block_size=8)
    losses = window_losses(model, windows, 1)
    assert score.loss == pytest.approx(losses.loss, rel=1e-6)
    assert score.standard_error == pytest.approx(losses.standard_error, rel=1e-4)
    assert score.perplexity == math.exp(score.loss)
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) / 3)  # make_shards: 3 bytes per token


def test_document_masks_are_the_evaluators(save_model, data):
    path = save_model("model")
    (masked,) = compare([path], {"general": data["general"]}, document_mask=True)
    (plain,) = compare([path], {"general": data["general"]})
    windows = EvalWindows(data["general"], block_size=32, document_mask=True)
    assert masked.loss == pytest.approx(window_losses(MyPTForCausalLM.from_pretrained(path), windows).loss, rel=1e-6)
    assert masked.tokens == plain.tokens and masked.loss != plain.loss


def test_half_precision_weights_compute_in_float32(save_model, data):
    path = save_model("half", dtype=torch.bfloat16)
    losses = window_losses(
        MyPTForCausalLM.from_pretrained(path, dtype=torch.float32), EvalWindows(data["domain"], block_size=32)
    )
    (score,) = compare([path], {"domain": data["domain"]})
    assert score.loss == pytest.approx(losses.loss, rel=1e-7)


def test_the_default_context_is_the_shortest(save_model, data):
    long, short = save_model("long", context=32), save_model("short", context=8)
    names = {"domain": data["domain"]}
    together = compare([long, short], names)
    assert together[0].loss == compare([long], names, block_size=8)[0].loss
    assert together[0].loss != compare([long], names)[0].loss


@pytest.mark.parametrize("block_size", [0, -4, 9])
def test_a_context_that_no_model_has(save_model, data, block_size):
    models = [save_model("long", context=32), save_model("short", context=8, gpt2=True)]
    with pytest.raises(MyPTError, match=r"expected 1 to 8 tokens, the context of .*short"):
        compare(models, data, block_size=block_size)


def test_a_batch_of_nothing(save_model, data):
    with pytest.raises(MyPTError, match="--batch-size is 0"):
        compare([save_model("model")], data, batch_size=0)


def test_the_training_split_too(save_model, data):
    (score,) = compare([save_model("model")], {"domain": data["domain"]}, split="train")
    assert score.tokens == 49


def test_a_guard_must_be_a_set(save_model, data):
    with pytest.raises(MyPTError, match="'genral', --data has: general, domain"):
        compare([save_model("model")], data, guard=["genral"])


def test_broken_weights_are_no_result(save_model, data):
    path = save_model("model")
    model = MyPTForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = math.nan
    model.save_pretrained(path)
    with pytest.raises(MyPTError, match="gives logits that are NaN or infinite: its weights are damaged"):
        compare([path], data)


def test_data_of_more_tokens_than_the_model_knows(save_model, make_shards):
    ids = np.arange(200) % 50
    with pytest.raises(TokenizerError, match=r"uses 50 tokens, model .* knows 40"):
        compare([save_model("model")], {"x": str(make_shards("big", train=ids, val=ids))})


def test_a_tokenizer_that_is_not_the_data_s(save_model, data):
    from mypt.tokenization.load import save_tokenizer
    from mypt.tokenization.train import build_char_tokenizer

    path = save_model("model")
    save_tokenizer(build_char_tokenizer(["abc"]), path)
    with pytest.raises(TokenizerError, match=r"and the data of general have different tokenizers .*--tokenizer"):
        compare([path], data)


def test_missing_models_and_data(save_model, data, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        compare([str(tmp_path)], data)
    with pytest.raises(DataError, match="nowhere"):
        compare([save_model("model")], {"x": str(tmp_path / "nowhere")})


def test_data_arguments():
    assert parse_data(["a=x", "b=y=z"]) == {"a": "x", "b": "y=z"}
    for wrong in ("a", "=x", "a=", "data/general"):
        with pytest.raises(MyPTError, match="expected NAME=DIR"):
            parse_data(["ok=x", wrong])
    with pytest.raises(MyPTError, match="a name twice"):
        parse_data(["a=x", "a=y"])
