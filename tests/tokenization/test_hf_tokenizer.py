"""The ids are those of tokenizer.json, whatever class transformers makes of it; and so are those of a saved copy."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mypt.tokenization.encode import encode_documents
from mypt.tokenization.hf_tokenizer import PROBES
from mypt.tokenization.load import load_tokenizer, save_tokenizer, tokenizer_hash
from mypt.tokenization.long_text import plain_text
from tests.tokenization.families import TEXT, llama, plain_bpe, unigram

TEXTS = [*PROBES, TEXT]


def folder(path, tokenizer, tokenizer_class, model_type=None, **more):
    tokenizer.save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text()) | {"tokenizer_class": tokenizer_class} | more
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type:
        (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return path


def ids(backend):
    with plain_text(backend):
        return [backend.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.mark.parametrize(
    ("make", "tokenizer_class", "model_type"),
    [
        (llama, "LlamaTokenizer", None),  # a text that begins with a blank
        (llama, "GPT2Tokenizer", None),
        (unigram, "GemmaTokenizer", None),
        (unigram, None, "gpt_neox"),
        (plain_bpe, "GemmaTokenizer", None),  # which cannot be built without <unk>
    ],
)
def test_the_file_s_ids(make, tokenizer_class, model_type, tmp_path):
    made = make()
    source = folder(tmp_path / "source", made, tokenizer_class, model_type, chat_template="{{ messages }}")
    expected, said = ids(Tokenizer.from_file(str(source / "tokenizer.json"))), []
    loaded = load_tokenizer(source, said.append)
    assert ids(loaded.backend_tokenizer) == expected
    assert len(said) == 1 and "read from its tokenizer.json alone" in said[0]
    assert (loaded.eos_token_id, loaded.chat_template) == (made.eos_token_id, "{{ messages }}")
    save_tokenizer(loaded, tmp_path / "saved")
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "saved").backend_tokenizer) == expected
    again = load_tokenizer(tmp_path / "saved", said.append)
    assert len(said) == 1 and tokenizer_hash(again) == tokenizer_hash(loaded)


def test_what_is_read_rightly_is_left_alone(tmp_path):
    said = []
    loaded = load_tokenizer(folder(tmp_path, plain_bpe(), "GPT2Tokenizer"), said.append)
    assert (type(loaded).__name__, said) == ("GPT2Tokenizer", [])
    assert tokenizer_hash(loaded) == tokenizer_hash(plain_bpe())


def test_dropout_is_switched_off_and_said(tmp_path, capsys):
    tokenizer = plain_bpe()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    source = folder(tmp_path / "source", tokenizer, "PreTrainedTokenizerFast")
    loaded = load_tokenizer(source)
    assert "BPE dropout 0.5 is switched off" in capsys.readouterr().err
    assert len({tuple(encode_documents(loaded, [TEXT])[0]) for _ in range(10)}) == 1
    save_tokenizer(loaded, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/tokenizer.json").read_text())["model"]["dropout"] is None
    assert tokenizer_hash(loaded) == tokenizer_hash(plain_bpe())


def test_an_eos_that_the_file_takes_for_text_is_special(tmp_path):
    tokenizer = plain_bpe()
    tokenizer.add_tokens(["<|im_end|>"])
    source = folder(tmp_path, tokenizer, "PreTrainedTokenizerFast", eos_token="<|im_end|>")
    loaded = load_tokenizer(source, lambda line: None)
    [found] = encode_documents(loaded, ["a<|im_end|>b"])
    assert loaded.eos_token_id not in found and len(found) > 5
