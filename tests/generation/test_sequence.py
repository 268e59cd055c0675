"""Text handed out token by token is the text of all tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mypt.generation.sequence import GrowingText, StoppedText
from mypt.tokenization.load import wrap
from mypt.tokenization.train import build_char_tokenizer

TEXT = "Été: 5 €, 你好!\n    def f():\n\treturn '🙂'  # done\n"


def byte_level() -> PreTrainedTokenizerFast:
    """256 bytes and a few merges: most characters beyond ASCII are several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(["def def return"], trainers.BpeTrainer(vocab_size=265, initial_alphabet=alphabet))
    return wrap(backend)


def llama_like() -> PreTrainedTokenizerFast:
    """A blank is part of the next word, and the first one of a text is left out when it is decoded."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Etdefrun():#5,!", "▁d"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "d")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(backend)


TOKENIZERS = {"byte_level": byte_level, "char": lambda: build_char_tokenizer("Etdefrun \n()"), "llama": llama_like}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def pieces_of(tokenizer, ids: list[int], prompt_length: int) -> list[str]:
    text = GrowingText(tokenizer, ids[:prompt_length])
    return [*(text.add(id) for id in ids[prompt_length:]), text.rest()]


@pytest.mark.parametrize("prompt", ["É", "Été: 5", TEXT[:-1]])
def test_the_pieces_make_the_text_and_none_ends_within_a_character(tokenizer, prompt):
    ids = tokenizer(TEXT).input_ids
    length = len(tokenizer(prompt).input_ids)
    assert ids[:length] == tokenizer(prompt).input_ids  # the prompt ends where a token does
    pieces = pieces_of(tokenizer, ids, length)
    assert prompt + "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_each_token_is_handed_out_at_once():
    tokenizer = build_char_tokenizer("abc ")
    ids = tokenizer("abc cab").input_ids
    assert pieces_of(tokenizer, ids, 1) == [*"bc cab", ""]


def test_an_unfinished_character_comes_last():
    tokenizer = byte_level()
    euro = tokenizer("€").input_ids
    assert len(euro) == 3
    assert pieces_of(tokenizer, [*tokenizer("a").input_ids, *euro[:2]], 1) == ["", "", "\ufffd"]
    assert pieces_of(tokenizer, [*tokenizer("a").input_ids, *euro], 1) == ["", "", "€", ""]


def test_special_tokens_are_no_text():
    tokenizer = byte_level()
    a, b = tokenizer("ab").input_ids
    assert pieces_of(tokenizer, [a, b, tokenizer.eos_token_id], 1) == ["b", "", ""]


CUTS = [[3, 1, 1, 2, 4, 1], [1] * 40, [40]]


def passed_on(text: str, cut: list[int], *stop: str, strip: bool = False) -> tuple[list[str], bool]:
    """What StoppedText hands out of `text` in pieces of the lengths `cut`, and whether it ended at a stop string."""
    pieces, start = [], 0
    stopped = StoppedText(stop, pieces.append, strip)
    for length in cut:
        if stopped.add(text[start : start + length]):
            return pieces, True
        start += length
    stopped.add(text[start:])
    stopped.end()
    assert stopped.text == "".join(pieces)
    return pieces, False


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo\n\nthree", ["\n\n"], "one"),
        ("ababac and more", ["abac"], "ab"),
        ("the end", ["end", "the"], ""),
        ("never here", ["hereafter", "xyz"], "never here"),
        ("aXYZb", ["Z", "YZb", "XYZ"], "a"),  # two are complete at one character: the longer one counts
        ("aXYb", ["XYZ", "Y"], "aX"),
        ("nothing", [], "nothing"),
    ],
)
def test_a_text_ends_before_the_stop_string_however_it_is_cut(text, stop, expected, cut):
    pieces, _ = passed_on(text, cut, *stop)
    assert "".join(pieces) == expected


def test_nothing_of_a_stop_string_is_handed_out_before_it_is_known_to_be_none():
    pieces: list[str] = []
    stopped = StoppedText(("STOP",), pieces.append)
    for piece, seen in (("a S", "a "), ("TO", "a "), ("x ST", "a STOx "), ("OP b", "a STOx ")):
        stopped.add(piece)
        assert "".join(pieces) == seen


@pytest.mark.parametrize("cut", CUTS)
def test_white_space_around_a_text_is_left_out_on_demand(cut):
    assert "".join(passed_on("  \n an answer. \n\n", cut, strip=True)[0]) == "an answer."
    assert "".join(passed_on("\n an answer. \n Q: more", cut, "\n Q:", strip=True)[0]) == "an answer."
    assert passed_on("   ", cut, strip=True) == ([], False)
    assert "".join(passed_on("\n\n an answer\n\nmore", cut, "\n\n", strip=True)[0]) == "an answer"
    assert passed_on("\n\nQ: more", cut, "\n\n", "\nQ:", strip=True) == ([], True)
