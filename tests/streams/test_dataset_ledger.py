"""The size of anybody's training dataset: counted where it can be, estimated and marked where not, or asked for."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from mypt.errors import MyPTError
from mypt.streams import dataset_ledger
from mypt.streams.dataset_ledger import ledger_of
from mypt.streams.shard_stream import ShardStream

LENGTHS = [3, 5, 1, 7]
ROWS = [{"input_ids": [1] * length} for length in LENGTHS]
PADDED = [{"input_ids": [1] * 8, "attention_mask": [1] * length + [0] * (8 - length)} for length in LENGTHS]


class Items(torch.utils.data.Dataset):
    """Makes a sample when it is asked for it."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read += 1
        return {name: torch.tensor(value) for name, value in self.rows[index].items()}


def transformed(rows):
    dataset = Dataset.from_dict({"text": ["a"] * len(rows), "number": range(len(rows))})
    return dataset.with_transform(
        lambda batch: {"input_ids": [rows[number]["input_ids"] for number in batch["number"]]}
    )


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_list(ROWS),
        Dataset.from_list(PADDED),
        Dataset.from_list(ROWS * 2).select([7, 6, 5, 4]),
        transformed(ROWS),
        Items(ROWS),
        Items(PADDED),
        ROWS,
        torch.utils.data.Subset(Items(ROWS + ROWS), range(4)),
    ],
    ids=["column", "padded", "selected", "transformed", "items", "padded-items", "list", "subset"],
)
def test_a_map_style_dataset_is_counted_without_padding(dataset):
    ledger = ledger_of(dataset)
    assert (ledger.samples, ledger.block_size, ledger.exact) == (4, 4.0, True)
    assert ledger.sources[0].tokens == sum(LENGTHS)
    [seen] = ledger.seen(6)
    assert (seen.samples, seen.tokens, seen.epochs, seen.coverage, seen.estimated) == (6, 24, 1.5, 1.5, False)


def test_a_large_one_is_estimated_from_evenly_spaced_samples(monkeypatch):
    monkeypatch.setattr(dataset_ledger, "READ_SAMPLES", 11)
    monkeypatch.setattr(dataset_ledger, "COUNTED_ROWS", 11)
    rows = [{"input_ids": [1] * (10 + index)} for index in range(101)]  # the mean of every tenth is the mean of all
    items = Items(rows)
    for dataset in (items, Dataset.from_list(rows)):
        ledger = ledger_of(dataset)
        assert (ledger.samples, ledger.block_size, ledger.exact) == (101, 60.0, False)
        assert ledger.seen(1)[0].estimated
    assert items.read == 11


def test_a_stream_has_a_mean_length_and_no_size_unless_it_is_given():
    rows = Dataset.from_list(ROWS).to_iterable_dataset()
    unknown = ledger_of(rows)
    assert (unknown.samples, unknown.block_size, unknown.sources[0].tokens) == (0, 4.0, 0)
    assert "give CoverageCallback(tokens=N)" in unknown.missing
    [seen] = unknown.seen(10)
    assert (seen.samples, seen.tokens, seen.coverage, seen.estimated) == (10, 40, None, True)
    given = ledger_of(rows, tokens=400)
    assert given.samples == 100 and given.seen(50)[0].coverage == 0.5 and given.seen(50)[0].estimated


def test_what_may_be_read_only_once_is_not_read():
    class Once(torch.utils.data.IterableDataset):
        def __iter__(self):
            raise AssertionError("read")

    assert "block_size=TOKENS_PER_SAMPLE" in ledger_of(Once()).missing


def test_samples_without_ids_need_the_number_of_tokens():
    texts = Dataset.from_dict({"text": ["one", "two"]})
    assert "no input_ids; give CoverageCallback(tokens=N)" in ledger_of(texts).missing
    assert ledger_of(texts).seen(3)[0].coverage == 1.5
    given = ledger_of(texts, tokens=50)
    assert (given.block_size, given.exact, given.seen(1)[0].tokens) == (25.0, True, 25)
    for wrong in (0, -5, 1.5, float("nan")):
        with pytest.raises(MyPTError, match="tokens is"):
            ledger_of(texts, tokens=wrong)


def test_a_stream_of_ours_is_its_own_ledger(make_shards):
    stream = ShardStream(make_shards(train=np.arange(100)), block_size=8)
    assert ledger_of(stream) is stream
