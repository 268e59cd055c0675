"""The rolling definition: windows worked by hand."""

import math

import numpy as np
import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import DataError
from mypt.evaluation.loss import token_losses, window_losses
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.rolling_windows import RollingWindows

EOS, PREFIX, BLOCK = 0, 9, 4


class Stream:
    """Token ids with the part of a ShardReader's interface that windows need."""

    def __init__(self, ids: list[int], text_bytes: int):
        self.ids, self.text_bytes, self.eos_token_id = np.array(ids, np.uint16), text_bytes, EOS

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.ids[starts[:, None] + np.arange(length)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MyPTForCausalLM(MyPTConfig(vocab_size=10, max_position_embeddings=8, initializer_range=0.5, **sizes)).eval()


def test_the_windows_of_a_document_are_those_of_the_harness():
    """Ten tokens in blocks of four: 4, 4, and 2 more of which the inputs reach back two tokens further."""
    windows = RollingWindows(Stream([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, EOS], 10), block_size=BLOCK, prefix_token_id=PREFIX)
    inputs, targets = windows.gather(np.arange(3))
    assert inputs["input_ids"].tolist() == [[PREFIX, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 1]]
    assert targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [-100, -100, 1, 2]]
    assert (windows.lengths.tolist(), windows.reach.tolist()) == ([4, 4, 2], [0, 0, 2])


def test_each_document_begins_with_the_prefix_and_eos_is_no_target():
    stream = Stream([EOS, 1, 2, EOS, EOS, 3, 4, 5, 6, 7, EOS, 8], 8)
    windows = RollingWindows(stream, block_size=BLOCK, prefix_token_id=PREFIX)
    inputs, targets = windows.gather(np.arange(len(windows)))
    rows = [row[row != -100].tolist() for row in targets.numpy()]
    assert rows == [[1, 2], [3, 4, 5, 6], [7], [8]]
    assert inputs["input_ids"][[0, 1, 3], 0].tolist() == [PREFIX] * 3
    assert windows.documents.tolist() == [0, 1, 1, 2]
    assert windows.bytes_per_token == 1


def test_every_loss_is_that_of_its_own_context(model):
    """One forward pass per target: no batch, no padding."""
    ids = [1, 2, 3, 4, 5, 6, EOS, 7, 8, EOS]
    windows = RollingWindows(Stream(ids, 8), block_size=BLOCK, prefix_token_id=PREFIX)
    contexts = [[9], [9, 1], [9, 1, 2], [9, 1, 2, 3], [3, 4][-4:], [9], [9, 7]]
    contexts[4] = [2, 3, 4]  # the second window has the inputs 2 3 4 5
    contexts.insert(5, [2, 3, 4, 5])
    expected = []
    with torch.no_grad():
        for context, target in zip(contexts, [1, 2, 3, 4, 5, 6, 7, 8], strict=True):
            logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
            expected.append(math.log(logits.exp().sum()) - logits[target].item())
    for batch_size in (1, 2, 8):
        np.testing.assert_allclose(token_losses(model, windows, batch_size), expected, rtol=1e-4)


def test_token_losses_sum_up_to_the_windows(model, make_shards):
    ids = np.random.default_rng(0).integers(0, 10, 30)
    windows = EvalWindows(make_shards(train=ids, val=ids), block_size=8)
    losses, whole = token_losses(model, windows, 3), window_losses(model, windows, 2)
    np.testing.assert_allclose(np.add.reduceat(losses, [0, 8, 16, 24]), whole.sums, rtol=1e-6)
    assert len(losses) == whole.tokens.sum() == 29


def test_text_without_a_token():
    with pytest.raises(DataError, match="without a single token"):
        RollingWindows(Stream([EOS, EOS], 0), block_size=BLOCK, prefix_token_id=PREFIX)
