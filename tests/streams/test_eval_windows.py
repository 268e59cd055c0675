"""Evaluation windows: in order, every token but the first a target once, shared out without loss."""

import numpy as np
import pytest
import torch

from mypt.errors import DataError
from mypt.streams.eval_windows import EvalWindows


@pytest.mark.parametrize("tokens", [2, 16, 17, 18, 100, 161])
def test_the_targets_are_the_split_without_its_first_token(make_shards, tokens):
    ids = np.random.default_rng(0).integers(0, 99, tokens)
    windows = EvalWindows(make_shards(train=[1, 2], val=ids, per_shard=23, eos=7), block_size=16)
    items = [windows[i] for i in range(len(windows))]
    inputs, labels, targets = (torch.cat([item[name] for item in items]).numpy() for name in items[0])
    assert len(inputs) == 16 * len(windows), "items of one length stack in any DataLoader"
    assert np.array_equal(inputs[: tokens - 1], ids[:-1]) and (inputs[tokens - 1 :] == 7).all()
    for filled, wanted in ((labels, ids[:-1]), (targets, ids[1:])):
        assert np.array_equal(filled[: tokens - 1], wanted) and (filled[tokens - 1 :] == -100).all()
    assert windows.lengths.sum() == tokens - 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_all_windows(make_shards, world):
    windows = EvalWindows(make_shards(train=[1, 2], val=np.arange(170)), block_size=16)
    batches = [batch for rank in range(world) for batch in windows.batches(4, rank, world)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(windows)))
    assert all(len(set(windows.lengths[batch].tolist())) == 1 for batch in batches)


def test_a_limit_takes_evenly_spaced_windows(make_shards):
    windows = EvalWindows(make_shards(train=[1, 2], val=np.arange(1_601)), block_size=16, max_windows=5)
    assert windows.starts[0] == 0 and windows.starts[-1] == 99 * 16
    gaps = np.diff(windows.starts)
    assert gaps.max() - gaps.min() <= 16


def test_bytes_per_token(make_shards):
    assert EvalWindows(make_shards(train=[1, 2], val=np.arange(100)), block_size=16).bytes_per_token == 3


def test_positions_begin_anew_with_each_document(make_shards):
    ids = np.tile([3, 4, 5, 0], 10)[:37]
    windows = EvalWindows(make_shards(train=[1, 2], val=ids, eos=0), block_size=8, document_mask=True)
    inputs, targets = windows.gather(np.array([0, 1]))
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3] * 2] * 2 and targets.shape == (2, 8)
    assert windows[4]["position_ids"].tolist() == [0, 1, 2, 3, 0, 0, 0, 0]  # 4 inputs, then filled up
    assert "position_ids" not in EvalWindows(windows.reader.directory, block_size=8)[0]


@pytest.mark.parametrize("reading", ["ram", "readahead", "pread"])
def test_the_first_shards_alone_in_any_way_of_reading(make_shards, reading):
    ids = np.arange(100)
    directory = make_shards(train=[1, 2], val=ids, per_shard=30)
    windows = EvalWindows(directory, block_size=16, shards=2, reading=reading)
    assert windows.reader.reading == reading and windows.lengths.sum() == 59
    assert windows.gather(np.array([0, 1]))[1].flatten().tolist() == list(range(1, 33))
    assert windows.bytes_per_token == 3


def test_document_masks_give_positions(make_shards):
    ids = np.array([5, 6, 0, 7, 8, 9, 0, 4, 3, 2])
    windows = EvalWindows(make_shards(train=[1, 2], val=ids), block_size=8, document_mask=True)
    assert windows[0]["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert windows[1]["position_ids"].tolist() == [0] * 8, "what fills up the last window is no document"
    inputs, targets = windows.gather(np.array([1]))
    assert (inputs["input_ids"].tolist(), inputs["position_ids"].tolist(), targets.tolist()) == ([[3]], [[0]], [[2]])


def test_the_first_shards_are_the_set_as_it_was(make_shards):
    ids = np.random.default_rng(0).integers(0, 99, 161)
    old = EvalWindows(make_shards("old", train=[1, 2], val=ids[:100], per_shard=50), block_size=16)
    grown = make_shards("grown", train=[1, 2], val=ids, per_shard=50)
    pinned = EvalWindows(grown, block_size=16, shards=2)
    assert pinned.reader.fingerprint == old.reader.fingerprint != EvalWindows(grown, block_size=16).reader.fingerprint
    assert len(pinned) == len(old) and pinned.bytes_per_token == old.bytes_per_token
    for index in range(len(old)):
        assert torch.equal(pinned[index]["shift_labels"], old[index]["shift_labels"])


TEXTS = ["the first text", "", "a second one, \u00fc"]
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    """Of characters, so that ids can be written by hand."""
    from mypt.tokenization.train import build_char_tokenizer

    made = build_char_tokenizer("".join(map(chr, range(32, 127))) + "\n\u00fc")
    made.chat_template = TEMPLATE
    return made


def spelled(windows: EvalWindows, tokenizer) -> str:
    """The text of all inputs and the last target, with its EOS."""
    parts = [windows[index] for index in range(len(windows))]
    ids = np.concatenate([part["input_ids"][: int(n)] for part, n in zip(parts, windows.lengths, strict=True)])
    return tokenizer.decode([*ids.tolist(), int(parts[-1]["shift_labels"][windows.lengths[-1] - 1])])


def test_texts_are_one_stream_in_which_an_eos_ends_each(tokenizer):
    windows = EvalWindows.from_texts(TEXTS, tokenizer, block_size=8)
    assert spelled(windows, tokenizer) == "".join(text + tokenizer.eos_token for text in TEXTS)
    assert windows.bytes_per_token == len("".join(TEXTS).encode()) / (len("".join(TEXTS)) + 3)
    masked = EvalWindows.from_texts(TEXTS, tokenizer, block_size=64, document_mask=True)
    assert masked[0]["position_ids"].tolist()[14:18] == [14, 0, 0, 1], "an empty text is a document, too"
    assert len(EvalWindows.from_texts(TEXTS, tokenizer, block_size=8, max_windows=2)) == 2
    assert len(EvalWindows.from_texts("one string", tokenizer, block_size=8)) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_dataset_give_their_texts_ids_or_dialogues(tokenizer, streaming):
    from datasets import Dataset

    def windows(rows: list[dict], **options) -> EvalWindows:
        dataset = Dataset.from_list(rows)
        dataset = dataset.to_iterable_dataset().take(len(rows)) if streaming else dataset
        return EvalWindows.from_dataset(dataset, tokenizer, block_size=8, **options)

    of_texts = EvalWindows.from_texts(TEXTS, tokenizer, block_size=8)
    ids = [{"input_ids": tokenizer(text)["input_ids"] + [tokenizer.eos_token_id], "text": "other"} for text in TEXTS]
    for same in (windows([{"text": text} for text in TEXTS]), windows(ids), windows(ids, column="input_ids")):
        assert (
            same.reader.fingerprint == of_texts.reader.fingerprint and same.bytes_per_token == of_texts.bytes_per_token
        )
    assert spelled(windows(ids, column="text"), tokenizer) == 3 * f"other{tokenizer.eos_token}"
    dialogue = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    assert spelled(windows([{"messages": dialogue}] * 2), tokenizer) == 2 * "[user]hello\n[assistant]yes\n"
    with pytest.raises(DataError, match="the columns prompt, answer; name the one with text"):
        windows([{"prompt": "a", "answer": "b"}])


def test_a_set_without_texts_or_a_tokenizer_without_eos_is_refused(tokenizer):
    with pytest.raises(DataError, match="without rows or texts"):
        EvalWindows.from_texts([], tokenizer, block_size=8)
    with pytest.raises(DataError, match="have no text"):
        EvalWindows.from_texts(["", ""], tokenizer, block_size=8)
    tokenizer.eos_token, before = None, tokenizer.eos_token
    try:
        with pytest.raises(DataError, match=r"set tokenizer\.eos_token"):
            EvalWindows.from_texts(TEXTS, tokenizer, block_size=8)
    finally:
        tokenizer.eos_token = before
