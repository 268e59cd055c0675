"""Probabilities are those of transformers' processors; draws follow them, row by row."""

from random import Random

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from mypt.generation.sampler import Sampler
from mypt.generation.settings import GenerationSettings

VOCABULARY = 700  # beyond the sampler's first guess of a nucleus
BANNED, ENDS = [3, 690, 691], [5]

CHOICES = {
    "plain": {"temperature": 1.0},
    "temperature": {"temperature": 0.4},
    "top_k": {"top_k": 12},
    "top_k_above_all": {"top_k": 5000},
    "top_p": {"top_p": 0.8, "temperature": 1.0},
    "wide_top_p": {"top_p": 0.99, "temperature": 3.0},
    "min_p": {"min_p": 0.1, "temperature": 1.5},
    "penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "min_new_tokens": {"min_new_tokens": 4},
    "everything": {
        "temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3, "min_new_tokens": 2,
    },
}  # fmt: skip


def logits_like(rows: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def sampler_for(histories, seeds=None, **settings) -> Sampler:
    seeds = range(len(histories)) if seeds is None else seeds
    return Sampler(GenerationSettings(seed=0, **settings), [Random(s) for s in seeds], histories, BANNED, ENDS)


@pytest.fixture(scope="module")
def by_transformers():
    """by_transformers(ids, logits, settings): the probabilities that its own list of processors leaves."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1, n_positions=8))

    def probabilities(ids: torch.Tensor, logits: torch.Tensor, settings: dict) -> torch.Tensor:
        options = {"temperature": 0.8, "top_k": None, "min_p": None, "repetition_penalty": None} | settings
        options["top_k"] = options["top_k"] or 0
        config = GenerationConfig(do_sample=True, suppress_tokens=BANNED, eos_token_id=ENDS, **options)
        config._eos_token_tensor = torch.tensor(ENDS)
        processors = model._get_logits_processor(config, input_ids_seq_length=ids.shape[1], device="cpu")
        return processors(ids, logits.clone()).softmax(-1)

    return probabilities


@pytest.mark.parametrize("choice", CHOICES)
def test_probabilities_are_those_of_transformers(by_transformers, choice):
    settings = CHOICES[choice]
    ids = torch.randint(VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(2))
    logits = logits_like(4)
    sampler = sampler_for(ids.tolist(), **settings)
    found = sampler.probabilities(sampler.scores(logits))
    found = found / found.sum(-1, keepdim=True)
    expected = by_transformers(ids, logits, settings)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_ties_at_the_edge_of_top_k_are_all_kept_as_in_transformers(by_transformers):
    logits = logits_like(1).round()
    ids = torch.zeros(1, 1, dtype=torch.long)
    sampler = sampler_for([[0]], top_k=10)
    found = sampler.probabilities(sampler.scores(logits))
    assert (found > 0).sum() > 10
    assert torch.equal(found > 0, by_transformers(ids, logits, {"top_k": 10}) > 0)


def test_draws_follow_the_probabilities():
    """20,000 rows with one distribution: no count is further from its expectation than five standard errors."""
    rows = 20_000
    logits = logits_like(1, scale=1.5)
    settings = {"temperature": 1.0, "top_k": 8}
    sampler = sampler_for([[0]] * rows, **settings)
    (expected,) = sampler.probabilities(sampler.scores(logits))
    counts = torch.bincount(sampler.choose(logits.expand(rows, -1)), minlength=VOCABULARY)
    assert ((counts - rows * expected).abs() <= 5 * (rows * expected * (1 - expected)).sqrt()).all()
    assert counts[expected == 0].sum() == 0


def test_a_row_draws_the_same_whatever_stands_beside_it():
    logits = [logits_like(5, seed=step) for step in range(6)]
    settings = {"temperature": 2.0, "repetition_penalty": 1.5, "top_p": 0.95}
    histories = [[row, row + 1] for row in range(5)]
    together = sampler_for(histories, **settings)
    ids = torch.stack([together.choose(step) for step in logits])
    for row in (0, 3):
        alone = sampler_for([histories[row]], seeds=[row], **settings)
        assert [int(alone.choose(step[row : row + 1])) for step in logits] == ids[:, row].tolist()
    assert len(set(map(tuple, ids.T.tolist()))) == 5


def test_the_penalty_counts_what_was_chosen():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 100], logits[0, 200] = 3.0, 2.0
    sampler = sampler_for([[7]], greedy=True, repetition_penalty=2.0)
    assert [int(sampler.choose(logits)) for _ in range(3)] == [100, 200, 100]


def test_no_end_before_min_new_tokens_and_no_banned_id_ever():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, BANNED], logits[0, ENDS], logits[0, 9] = 50.0, 40.0, 30.0
    sampler = sampler_for([[7]], greedy=True, min_new_tokens=2)
    assert [int(sampler.choose(logits)) for _ in range(4)] == [9, 9, 5, 5]
    drawing = sampler_for([[7]], temperature=10.0)
    assert not {int(drawing.choose(torch.zeros(1, VOCABULARY))) for _ in range(3000)} & set(BANNED)
