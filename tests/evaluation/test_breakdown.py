"""The loss by position and by source: the parts are those of the tokens, and add up to the whole."""

import json

import numpy as np
import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import DataError
from mypt.evaluation.breakdown import break_down, edges
from mypt.evaluation.compare import compare
from mypt.evaluation.sets import open_set
from mypt.preparation.append import append_dataset
from mypt.preparation.prepare import prepare_dataset
from mypt.tokenization.load import load_tokenizer, save_tokenizer


def test_buckets_double_and_then_grow_by_eighths():
    assert edges(1024) == [1, 2, 4, 8, 16, 32, 64, *range(128, 1025, 128)]
    assert edges(8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert edges(5) == [1, 2, 3, 4, 5]
    assert edges(1) == [1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`data`, of the sources digits.jsonl and letters.jsonl, and `model`."""
    root = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for name, letters in (("digits", "0123456789"), ("letters", "abcdefghij klmnop")):
        lines = (json.dumps({"text": "".join(rng.choice([*letters], 40))}) for _ in range(60))
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [str(root / name) for name in ("digits.jsonl", "letters.jsonl")]
    prepare_dataset(sources, root / "data", tokenizer="char", val_fraction=0.3, progress=False)
    tokenizer = load_tokenizer(root / "data")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MyPTConfig(vocab_size=320, max_position_embeddings=16, initializer_range=0.2, **sizes)
    model = MyPTForCausalLM(config)
    with torch.no_grad():  # digits are likely wherever they are, which shows in their source alone
        for token in "0123456789":
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] *= 3
    model.save_pretrained(root / "model")
    save_tokenizer(tokenizer, root / "model")
    return root


@pytest.mark.parametrize("definition", ["windows", "rolling"])
def test_parts_add_up_to_the_whole(place, definition):
    data = {"x": str(place / "data")}
    (score,) = compare([str(place / "model")], data, definition=definition, by=["position", "source"])
    for parts in score.parts.values():
        assert sum(part["tokens"] for part in parts) == score.tokens
        assert sum(part["loss"] * part["tokens"] for part in parts) / score.tokens == pytest.approx(score.loss)
    sizes = sum(part["loss"] * part["tokens"] / part["bits_per_byte"] for part in score.parts["source"]) / np.log(2)
    assert sizes == pytest.approx(score.bytes, abs=1), "every byte is of one source (windows: but the first)"
    assert [part["part"] for part in score.parts["position"]][-1] == "15-16"


def test_a_source_has_the_tokens_of_its_documents(place):
    """A loss that is 1 for digits and 2 for letters: each source has its own."""
    its = open_set("x", str(place / "data"), str(place / "model"), 320, block_size=16)
    tokenizer = load_tokenizer(place / "data")
    tokens = tokenizer.convert_ids_to_tokens(its.ids[its.places].tolist())
    losses = np.array([1.0 if token.isdigit() else 2.0 for token in tokens], np.float32)
    losses[its.ids[its.places] == tokenizer.eos_token_id] = 1.5
    digits, letters = break_down("source", losses, its)
    assert (digits.part, letters.part) == (str(place / "digits.jsonl"), str(place / "letters.jsonl"))
    assert 1 <= digits.loss < 1.02 and 1.98 < letters.loss <= 2
    assert digits.standard_error < 0.02


def test_a_position_is_the_number_of_tokens_before_a_target(place):
    its = open_set("x", str(place / "data"), str(place / "model"), 320, block_size=8)
    losses = its.contexts.astype(np.float32)
    parts = break_down("position", losses, its, first=(losses - 1, its))
    assert [(part.part, part.loss, part.delta) for part in parts] == [(str(n), n, 1) for n in range(1, 9)]


def test_appended_sources_are_known(place, tmp_path):
    import shutil

    shutil.copytree(place / "data", tmp_path / "data")
    append_dataset(tmp_path / "data", place / "data")
    (score,) = compare([str(place / "model")], {"x": str(tmp_path / "data")}, by=["source"])
    assert len(score.parts["source"]) == 4
    assert score.parts["source"][0]["loss"] == pytest.approx(score.parts["source"][2]["loss"], abs=0.05)


def test_a_text_has_one_source(place):
    with pytest.raises(DataError, match="--by source needs dataset directories"):
        compare([str(place / "model")], {"x": ["text"]}, by=["source"])
