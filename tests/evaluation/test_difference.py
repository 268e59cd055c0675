"""Paired differences: intervals worked by hand, their coverage, and models of different tokenizers."""

import math

import numpy as np
import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import DataError, MyPTError, TokenizerError
from mypt.evaluation.compare import compare
from mypt.evaluation.difference import paired_difference
from mypt.evaluation.sets import EvaluationSet
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer
from tests.datasets import ALPHABET
from tests.evaluation.test_rolling import Stream


class Windows:
    """Windows of four targets each over a stream, as `EvalWindows` cuts them."""

    block_size = 4

    def __init__(self, stream: Stream):
        self.reader = stream
        self.starts = np.arange(0, len(stream) - 1, self.block_size)
        self.lengths = np.minimum(self.block_size, len(stream) - 1 - self.starts)
        self.bytes_per_token = stream.text_bytes / len(stream)

    def __len__(self) -> int:
        return len(self.starts)


def set_of(ids: list[int]) -> EvaluationSet:
    stream = Stream(ids, 2 * len(ids))
    stream.fingerprint = str(ids)
    return EvaluationSet(Windows(stream), tokenizer=None)


def test_an_interval_by_hand():
    """Sixteen windows of one document: d = 1, 0, 1, 0, ...; the mean is 0.5 and its error 0.5 / sqrt(15)."""
    its = set_of([1] * 65)
    first, second = np.ones(64, np.float32), np.ones(64, np.float32)
    second[np.arange(64) // 4 % 2 == 0] += 1
    found = paired_difference((first, its), (second, its))
    half = 2.13145 * 0.5 / math.sqrt(15)  # Student's t for 15 degrees of freedom
    assert (found.nats, found.unit, found.units) == (0.5, "window", 16)
    assert found.interval_in_nats == pytest.approx([0.5 - half, 0.5 + half], rel=1e-4)
    bits = 0.5 / math.log(2) / 2
    assert found.bits == pytest.approx(bits)
    assert found.interval == pytest.approx([bits * (1 - half / 0.5), bits * (1 + half / 0.5)], rel=1e-4)


def test_windows_of_one_document_count_as_one_piece():
    """Twelve documents of eight tokens: two windows each, of one difference. Windows alone would halve the variance."""
    its = set_of([0, *([1] * 7 + [0]) * 12])
    assert its.documents_of_windows.tolist() == [number for number in range(1, 13) for _ in range(2)]
    change = np.repeat(np.array([0.0, 1.0] * 6, np.float32), 8)
    found = paired_difference((np.zeros(96, np.float32), its), (change, its))
    assert (found.nats, found.unit, found.units) == (0.5, "document", 12)
    half = 2.20099 * 0.5 / math.sqrt(11)
    assert found.interval_in_nats == pytest.approx([0.5 - half, 0.5 + half], rel=1e-4)


def test_few_pieces_have_no_interval():
    its = set_of([1] * 33)
    found = paired_difference((np.zeros(32, np.float32), its), (np.arange(32, dtype=np.float32), its))
    assert (found.units, found.interval, found.interval_in_nats) == (8, None, None)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """500 texts of 12 documents whose windows share a random effect: windows alone would cover about 75%."""
    rng, its, hits = np.random.default_rng(0), set_of([0, *([1] * 15 + [0]) * 12]), 0
    for _ in range(500):
        change = np.repeat(rng.normal(size=12), 16) + rng.normal(size=192)
        low, high = paired_difference((np.zeros(192), its), (change, its)).interval_in_nats
        hits += low <= 0 <= high
    assert 0.92 < hits / 500 < 0.98


WORDS = [
    "the",
    "king",
    "and",
    "queen",
    "of",
    "all",
    "this",
    "land",
    "have",
    "come",
    "to",
    "see",
    "what",
    "a",
    "day",
    "may",
]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 20)) + "\n\u00fc." for _ in range(14)]


@pytest.fixture(scope="module")
def models(tmp_path_factory, documents):
    """`char` and `bpe`: random models of different tokenizers."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in (
        ("char", build_char_tokenizer(ALPHABET)),
        ("bpe", train_bpe_tokenizer(documents, vocab_size=290)),
    ):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MyPTConfig(vocab_size=448, max_position_embeddings=16, initializer_range=0.2, **sizes)
        MyPTForCausalLM(config).save_pretrained(root / name)
        save_tokenizer(tokenizer, root / name)
    return root


@pytest.fixture
def data(make_dataset, models, documents):
    """data("name", documents): the directories of one text by both tokenizers, joined by a comma."""

    def make(name="text", char=documents, bpe=documents) -> str:
        options = [("char", char), ("bpe", bpe)]
        return ",".join(
            str(make_dataset(f"{name}_{kind}", train=["x"], val=texts, tokenizer=load_tokenizer(models / kind)))
            for kind, texts in options
        )

    return make


@pytest.mark.parametrize("definition", ["windows", "rolling"])
def test_different_tokenizers_compare_in_bits_per_byte(models, data, documents, definition):
    paths = [str(models / "char"), str(models / "bpe")]
    first, second = compare(paths, {"text": data()}, definition=definition)
    assert second.delta is None and second.interval is None, "nats per token of different tokens say nothing"
    assert second.bits_delta == pytest.approx(second.bits_per_byte - first.bits_per_byte, abs=1e-9)
    assert second.bits_interval[0] < second.bits_delta < second.bits_interval[1]
    assert (second.unit, second.units) == ("document", 14)
    assert first.tokens > 1.3 * second.tokens, "the tokenizers differ"
    raw = compare(paths, {"text": documents}, definition=definition)
    for one, other in zip((first, second), raw, strict=True):
        assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-6)
    assert raw[1].bits_interval == pytest.approx(second.bits_interval, rel=1e-5)


def test_one_long_document_is_compared_in_stretches(models, documents):
    paths = [str(models / "char"), str(models / "bpe")]
    _, second = compare(paths, {"text": ["".join(documents)]})
    assert second.unit == "stretch" and second.units >= 10
    assert second.bits_interval[0] < second.bits_delta < second.bits_interval[1]


def test_texts_that_differ_are_refused(models, data, documents):
    paths = [str(models / "char"), str(models / "bpe")]
    changed = [*documents[:6], documents[6].replace("k", "q"), *documents[7:]]
    with pytest.raises(DataError, match=r"the set x is not the same text in .*document 7 of 14 differ"):
        compare(paths, {"x": data("changed", bpe=changed)})
    with pytest.raises(DataError, match="14 and 13 documents differ"):
        compare(paths, {"x": data("shorter", bpe=documents[:-1])})
    with pytest.raises(TokenizerError, match=r"none of .* has the tokenizer of model"):
        others = ",".join([data("one").split(",")[0]] * 2)
        compare(paths, {"x": others})


def test_a_tolerance_is_of_one_tokenizer(models, documents):
    with pytest.raises(MyPTError, match="a tolerance is in nats per token; leave out --guard"):
        compare([str(models / "char"), str(models / "bpe")], {"x": documents}, guard=["x"])
