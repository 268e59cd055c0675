"""The evaluator gives the mean over every token of a split, whatever the batches, ranks and models."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.evaluation.loss import WindowLosses, ratio_standard_error, window_losses
from mypt.streams.eval_windows import EvalWindows
from tests.processes import Command

BLOCK = 16
VOCABULARY = 40


def mypt_model(**fields) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MyPTForCausalLM(MyPTConfig(vocab_size=VOCABULARY, max_position_embeddings=BLOCK, **sizes, **fields))


def gpt2_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=16, n_layer=2, n_head=2))


def sharpened(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights, so that windows differ in their loss."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.fixture
def windows(make_shards):
    """165 targets in shards of 50 tokens: ten whole windows and one of five targets."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 166)
    return EvalWindows(make_shards(train=ids, val=ids, per_shard=50, vocab_size=VOCABULARY), block_size=BLOCK)


def by_hand(model: torch.nn.Module, tokens: np.ndarray) -> list[list[float]]:
    """Negative log-likelihood of each target, window by window, in double precision."""
    model = model.double().eval()
    windows = []
    for start in range(0, len(tokens) - 1, BLOCK):
        window = torch.from_numpy(tokens[start : start + BLOCK + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=window[None, :-1]).logits[0]
        rows = []
        for logit, target in zip(logits, window[1:], strict=True):
            rows.append(math.log(sum(math.exp(value) for value in logit.tolist())) - logit[target].item())
        windows.append(rows)
    return windows


@pytest.mark.parametrize("make_model", [mypt_model, gpt2_model])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_equals_a_loop_over_every_token(windows, make_model, batch_size):
    model = sharpened(make_model())
    losses = window_losses(model, windows, batch_size)
    tokens = windows.reader.gather(np.array([0]), len(windows.reader))[0]
    expected = by_hand(model, tokens)
    assert losses.tokens.tolist() == [16] * 10 + [5]
    np.testing.assert_allclose(losses.sums, [sum(rows) for rows in expected], rtol=1e-5)
    assert losses.loss == pytest.approx(sum(map(sum, expected)) / 165, rel=1e-6)
    assert np.ptp(losses.sums[:10] / 16) > 0.1, "a test of windows that are all alike would show nothing"


def test_the_last_token_and_the_last_partial_window_count(make_shards):
    """A window of one target is a window."""
    ids = np.arange(BLOCK + 2) % VOCABULARY
    directory = make_shards(train=ids, val=ids, vocab_size=VOCABULARY)
    assert window_losses(mypt_model(), EvalWindows(directory, block_size=BLOCK)).tokens.tolist() == [BLOCK, 1]


def test_every_token_weighs_the_same():
    losses = WindowLosses(np.array([32.0, 0.5]), np.array([16, 1]))
    assert losses.loss == 32.5 / 17  # not the mean of 2 and 0.5
    assert losses.perplexity == math.exp(32.5 / 17)
    assert WindowLosses(np.array([16e3]), np.array([16])).perplexity == math.inf


def test_bits_per_byte():
    losses = WindowLosses(np.array([10 * math.log(2), 20 * math.log(2)]), np.array([5, 5]))  # 3 bits per token
    assert losses.bits_per_byte(4.0) == pytest.approx(0.75)


def test_ids_of_padding_are_targets_like_any_other(windows):
    with_pad, without = mypt_model(pad_token_id=3), mypt_model()
    with_pad.load_state_dict(without.state_dict())
    assert (window_losses(with_pad, windows).sums == window_losses(without, windows).sums).all()


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(windows, training):
    model = gpt2_model().train(training)  # GPT-2's dropout of 0.1 would show in the losses
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    losses = window_losses(model, windows)
    assert model.training is training and model.transformer.h[0].attn.training is training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    assert (torch.get_rng_state() == random_state).all()
    assert (losses.sums == window_losses(model.eval(), windows).sums).all()


def test_progress_adds_up_to_all_windows(windows):
    done = []
    window_losses(mypt_model(), windows, 4, progress=done.append)
    assert sum(done) == len(windows) == 11


RANK = """
import sys, types
import numpy as np, torch
from mypt.evaluation.loss import window_losses
from mypt.streams.eval_windows import EvalWindows

class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))
    def forward(self, input_ids, use_cache):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # as a sharded model, whose every forward waits for all processes
        return types.SimpleNamespace(logits=self.table[input_ids])

directory, store, rank, out = sys.argv[1:]
windows = EvalWindows(directory, block_size=16)
if rank == "alone":
    sums = window_losses(Bigram(), windows, 4).sums
else:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    sums = window_losses(Bigram(), windows, 4, rank=int(rank), world_size=2).sums
    torch.distributed.destroy_process_group()
np.save(out, sums)
"""


def test_two_processes_both_know_what_one_knows(windows, tmp_path):
    assert [len([*windows.batches(4, rank, 2)]) for rank in (0, 1)] == [3, 2]  # and yet as many forwards
    ranks = ("0", "1", "alone")
    (tmp_path / "rank.py").write_text(RANK)
    arguments = [[windows.reader.directory, tmp_path / "store", rank, tmp_path / rank] for rank in ranks]
    processes = [Command(words, script=tmp_path / "rank.py") for words in arguments]
    assert [process.wait() for process in processes] == [0, 0, 0], [process.output() for process in processes]
    first, second, alone = (np.load(tmp_path / f"{rank}.npy") for rank in ranks)
    assert (first == alone).all() and (second == alone).all()
    assert (alone > 0).all()


def correlated(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Sums and unequal token counts of n windows whose losses differ."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 100, n)
    return tokens * rng.normal(3.0, 0.5, n) + rng.normal(0, 5, n), tokens


def test_standard_error_against_the_bootstrap_and_the_jackknife():
    sums, tokens = correlated(0)
    n = len(sums)
    rows = np.random.default_rng(1).integers(0, n, (6_000, n))
    bootstrap = (sums[rows].sum(1) / tokens[rows].sum(1)).std()
    left_out = (sums.sum() - sums) / (tokens.sum() - tokens)
    jackknife = math.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    error = ratio_standard_error(sums, tokens)
    assert error == pytest.approx(jackknife, rel=0.01)
    assert error == pytest.approx(bootstrap, rel=0.05)
    assert WindowLosses(sums, tokens).standard_error == error


def test_standard_error_of_equal_windows_is_that_of_a_mean():
    losses = np.array([2.0, 2.5, 3.5, 4.0])
    assert ratio_standard_error(losses * 8, np.full(4, 8)) == pytest.approx(losses.std(ddof=1) / 2)
    assert ratio_standard_error(np.array([5.0]), np.array([2])) == 0.0


def test_a_paired_delta_is_known_far_better_than_two_losses():
    sums, tokens = correlated(2)
    shift = np.random.default_rng(3).normal(0.04, 0.02, len(sums))
    before, after = WindowLosses(sums, tokens), WindowLosses(sums + shift * tokens, tokens)
    delta, error = after.delta(before)
    assert delta == pytest.approx(after.loss - before.loss)
    assert abs(delta - 0.04) < 4 * error
    unpaired = math.hypot(before.standard_error, after.standard_error)
    assert 0 < error < unpaired / 10
    assert before.delta(before) == (0.0, 0.0)
