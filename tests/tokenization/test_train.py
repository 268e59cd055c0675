"""BPE training is bounded, spread over the corpus and deterministic."""

import random

import pytest

from mypt.errors import TokenizerError
from mypt.shards.settings import PrepareSettings
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import tokenizer_hash
from mypt.tokenization.train import EXAMPLE_CHARACTERS, TRAINED, TextSample, train_bpe_tokenizer


def words(seed, count):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("etaoin", k=draw.randint(1, 6))) for _ in range(count))


def sample_of(texts, size, seed=0):
    sample = TextSample(size, seed)
    for text in texts:
        sample.add(text)
    return list(sample)


def test_training_is_deterministic_and_reaches_the_size():
    texts = [words(seed, 200) for seed in range(50)]
    first, second = train_bpe_tokenizer(texts, 400), train_bpe_tokenizer(iter(texts), 400)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert tokenizer_hash(first) != tokenizer_hash(train_bpe_tokenizer(texts, 401))
    assert (len(first), first.eos_token_id, first.pad_token_id) == (400, 0, 0)


def test_round_trip_of_any_text():
    tokenizer = train_bpe_tokenizer([words(0, 100)], 300)
    for text in ("etaoin\r\n\x00 😀  ", "<|endoftext|>", " lead"):
        [ids] = encode_documents(tokenizer, [text])
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.eos_token_id not in ids


def test_little_text_gives_a_smaller_vocabulary():
    assert len(train_bpe_tokenizer(["ab ab ab"], 5000)) == 257 + 2  # ab, and ab with its space


def test_too_small_a_vocabulary():
    with pytest.raises(TokenizerError, match=r"256 is too small.*257"):
        train_bpe_tokenizer(["x"], 256)


def test_the_sample_is_everything_when_it_fits():
    texts = [f"document {i}" for i in range(100)]
    assert sorted(sample_of(texts * 3, 100)) == sorted(texts)


def test_the_sample_depends_on_seed_and_texts_not_on_order_or_repeats():
    texts = [f"document {i}" for i in range(1000)]
    chosen = sample_of(texts, 50)
    assert len(chosen) == 50 == len(set(chosen))
    assert sample_of(reversed(texts * 2), 50) == chosen
    assert sample_of(texts, 50, seed=1) != chosen


def test_the_sample_spreads_over_the_corpus():
    places = [int(text) for text in sample_of(map(str, range(10_000)), 1000)]
    tenths = [sum(place // 1000 == tenth for place in places) for tenth in range(10)]
    assert min(tenths) > 60  # 100 expected, 9.5 standard deviation


def test_long_documents_are_cut_into_examples():
    text = words(3, 20_000)
    examples = sample_of([text], 10_000)
    assert max(map(len, examples)) == EXAMPLE_CHARACTERS
    assert sum(map(len, examples)) == len(text)


def test_a_vocabulary_beyond_what_texts_can_give_takes_no_memory():
    texts = ["hello world, hello there"] * 20
    assert train_bpe_tokenizer(texts, 2**32).get_vocab() == train_bpe_tokenizer(texts, 1_000).get_vocab()


@pytest.mark.parametrize("name", TRAINED)
def test_of_a_corpus_read_in_parts_comes_the_same_tokenizer(name, tmp_path):
    kind, settings = TRAINED[name], PrepareSettings.of(name, tokenizer_train_examples=20)
    texts = [f"{words(seed, 30)} {chr(0x100 + seed)} \U0001f600" for seed in range(60)]
    whole, parts = kind.collect(settings, 2**64), kind.collect(settings, 2**64)
    for text in texts:
        whole.add(text)
    for start in range(0, 60, 20):
        part = kind.collect(settings, parts.below)
        for text in texts[start : start + 20]:
            part.add(text)
        with open(tmp_path / "part", "wb") as file:
            part.write(file)
        parts.merge((tmp_path / "part").read_bytes())
    size, notes = sum(len(text.encode()) for text in texts), []
    first, second = (kind.make(found, size, settings, notes.append).to_str() for found in (whole, parts))
    assert first == second and notes[: len(notes) // 2] == notes[len(notes) // 2 :] != []
