"""What a tokenizer loses, by hand."""

from mypt.tokenization.encode import encode_flat
from mypt.tokenization.statistics import describe_loss, measure_loss
from tests.tokenization.families import llama, wordlevel


def measured(tokenizer, texts):
    backend = tokenizer.backend_tokenizer
    return measure_loss(backend, lambda texts: encode_flat(backend, texts), texts)


def test_all_is_given_back():
    loss = measured(llama(), ["the cat\n", "", " 日本 é"])
    assert (loss["characters"], loss["changed_texts"], loss["lost"]) == (13, 0, 0)
    assert describe_loss(loss) == "gives all of 13 characters back"


def test_unknown_words_and_blanks_are_lost():
    # "the cat" comes back; "the\ncat" with a blank for the line end; of "a the" the word and the blank are lost.
    loss = measured(wordlevel(), ["the cat", "the\ncat", "a the"])
    assert loss == {"texts": 3, "characters": 19, "changed_texts": 2, "lost_characters": 3, "lost": 3 / 19}
    assert describe_loss(loss) == "loses 15.8% of characters (3 of 19); 2 of 3 texts change"
