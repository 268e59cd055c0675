"""Added tokens: text without them keeps its ids, text with them comes back whole."""

import pytest

from mypt.errors import TokenizerError
from mypt.tokenization.add_tokens import add_tokens, added_pieces, extend_tokenizer, read_tokens
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import largest_id, load_tokenizer, save_tokenizer, tokenizer_hash
from mypt.tokenization.token_bytes import TextOf
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

TEXT = "The clerk was told that the notice was served, naïve as it may sound.\n\tCosts were awarded.\r\n"
WORDS = [" immunoglobulin", "cytokine", " notice"]


def bpe():
    return train_bpe_tokenizer([TEXT] * 3, 300)


def ids(tokenizer, text):
    return encode_documents(tokenizer, [text])[0].tolist()


@pytest.mark.parametrize("make", [bpe, lambda: build_char_tokenizer(TEXT)], ids=["bpe", "char"])
def test_only_the_new_words_are_spelled_anew(make):
    base, extended = make(), make()
    size = largest_id(base) + 1
    assert add_tokens(extended, WORDS) == WORDS
    plain = TEXT.replace(" notice", " note")
    assert ids(extended, plain) == ids(base, plain)
    assert ids(extended, f"{plain} immunoglobulin") == [*ids(base, plain), size]
    mixed = "A cytokine,  immunoglobulins and\ncytokines: notice"
    assert {size, size + 1} < set(ids(extended, mixed))
    assert TextOf(extended)(encode_documents(extended, [mixed])[0]).decode() == mixed
    assert extended.decode(ids(extended, mixed)) == mixed


def test_the_longest_word_wins_and_one_token_stays_one():
    tokenizer = bpe()
    size = largest_id(tokenizer) + 1
    assert add_tokens(tokenizer, [" interleukin", " interleukin-6", " interleukin", "t"]) == [
        " interleukin",
        " interleukin-6",
    ]
    assert ids(tokenizer, " interleukin-6 interleukin") == [size + 1, size]
    with pytest.raises(TokenizerError, match="cannot be a token"):
        add_tokens(tokenizer, [" \t"])


def test_an_extension_is_told_with_the_pieces_of_each_word():
    base, extended = bpe(), bpe()
    add_tokens(extended, WORDS)
    texts, pieces = added_pieces(base, extended)
    assert texts == WORDS and pieces == [ids(base, word) for word in WORDS]
    assert added_pieces(base, base) == ([], [])
    assert added_pieces(extended, base) is None
    assert added_pieces(train_bpe_tokenizer([TEXT] * 3, 280), extended) is None
    again = bpe()
    add_tokens(again, WORDS[:1])
    assert added_pieces(again, extended)[0] == WORDS[1:]


def test_a_directory_holds_the_extension_and_nothing_else_is_replaced(tmp_path):
    save_tokenizer(bpe(), tmp_path / "base")
    assert extend_tokenizer(tmp_path / "base", WORDS, tmp_path / "more") == WORDS
    loaded = load_tokenizer(tmp_path / "more")
    assert added_pieces(load_tokenizer(tmp_path / "base"), loaded)[0] == WORDS
    assert extend_tokenizer(tmp_path / "base", WORDS, tmp_path / "more") == WORDS  # again: the same
    with pytest.raises(TokenizerError, match="holds something else"):
        extend_tokenizer(tmp_path / "base", WORDS[:1], tmp_path / "more")
    assert tokenizer_hash(load_tokenizer(tmp_path / "more")) == tokenizer_hash(loaded)
    with pytest.raises(TokenizerError, match="has one token for each of the 2 texts already"):
        extend_tokenizer(tmp_path / "base", ["a", "b"], tmp_path / "none")


def test_words_come_from_files_and_from_the_command_line(tmp_path):
    (tmp_path / "words.txt").write_text(" alpha\n\nbeta gamma\r\n", encoding="utf-8")
    assert read_tokens([str(tmp_path / "words.txt"), " delta", "x" * 5000]) == [
        " alpha", "beta gamma", " delta", "x" * 5000
    ]  # fmt: skip
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(TokenizerError, match="is not UTF-8 text"):
        read_tokens([str(tmp_path / "latin")])
