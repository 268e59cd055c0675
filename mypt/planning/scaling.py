"""Worth of tokens and parameters: repetition, tokens per parameter, predicted loss, FLOPs, size hints.

The law is that of Muennighoff et al. 2023 (2305.16264), which extends Hoffmann et al. 2022 (2203.15556) to repeated
data: L = E + A / N'^alpha + B / D'^alpha, in nats per token, with effective parameters N' and effective data D'.
"""

import math
from dataclasses import dataclass

from mypt.planning.parameters import complete, count_parameters, is_measured

TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann 2022)

R_DATA, R_PARAMETERS = 15.39, 5.31  # repetitions and excess after which 1 - 1/e of the possible gain is used up
LN_A, LN_B, LN_E, ALPHA = 6.255, 7.305, 0.6255, 0.3527

# The law was fitted to GPT-2's 50,257 tokens, among which guessing costs ln 50,257; a higher prediction means nothing.
GUESSING_LOSS = math.log(50_257)

# The owner's guide: (below this size, passes advised at least, at most).
_DATASET_HINTS = ((10_000_000, 3, 5), (100_000_000, 2, 4), (math.inf, 1, 3))
_MODEL_HINTS = ((20_000_000, 3, 5), (150_000_000, 2, 4), (math.inf, 1, 3))


@dataclass(frozen=True)
class Interval:
    """The prediction of a fitted law (the median of a sample of fits), and the bounds of a central interval of 95%."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Optimum:
    """The size with the lowest loss for a number of FLOPs (6 N D), and the tokens that they are enough for."""

    flops: float
    parameters: Interval
    tokens: float
    loss: Interval


def effective_tokens(viewed: float, unique: float) -> float:
    """D': how many fresh tokens `viewed` tokens from a dataset of `unique` are worth.

    D' = U + U R* (1 - exp(-R / R*)), U = min(unique, viewed), R = viewed / U - 1 repetitions, R* = 15.39.
    """
    return _diminishing(viewed, min(unique, viewed), R_DATA)


def effective_parameters(parameters: float, unique: float) -> float:
    """N': how many parameters a model is worth that learns from `unique` distinct tokens.

    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)), R_N = N / U_N - 1, R_N* = 5.31, where U_N is the smaller of N and the
    parameters that the law itself gives as compute-optimal for `unique` tokens. With equal exponents for N and D these
    are unique x (A / B)^(1 / alpha): 1 per 19.6 tokens.
    """
    optimal = unique * math.exp((LN_A - LN_B) / ALPHA)
    return _diminishing(parameters, min(optimal, parameters), R_PARAMETERS)


def _diminishing(amount: float, unique: float, scale: float) -> float:
    return unique * (1 + scale * -math.expm1(-(amount / unique - 1) / scale))


def predicted_loss(parameters: float, viewed: float, unique: float) -> float:
    """Nats per token by the law, from total parameters: to compare plans with each other, never as a promise.

    It was fitted on English web text in GPT-2's tokens, to models of 7M to 9B parameters.
    """
    capacity = effective_parameters(parameters, min(unique, viewed))
    data = effective_tokens(viewed, unique)
    return math.exp(LN_E) + math.exp(LN_A) / capacity**ALPHA + math.exp(LN_B) / data**ALPHA


def flops_per_token(dimensions: dict, block_size: int, adapters: int = 0) -> int:
    """FLOPs to train on one token: 6 N + 12 L A T (Chowdhery 2022, 2204.02311, appendix B).

    N: parameters that multiply, so without the embedding tables, with the head even if tied. L layers, A the width of
    all query heads, T = block_size; the second term counts attention in full, as is usual, though half is masked.
    adapters: parameters of LoRA, which cost 6 each, while the frozen N get no gradient and cost 4.
    """
    each = 4 if adapters else 6
    if is_measured(dimensions):  # of experts those count that a token passes
        matrices = (m["used"] * m["inward"] * m["outward"] * m["count"] for m in dimensions["modules"])
        multiplying = sum(matrices) + dimensions["vocab_size"] * dimensions["hidden_size"]
        attention = dimensions["attention_layers"] * dimensions["query_width"]
    else:
        d = complete(dimensions)
        multiplying = count_parameters(d)["non_embedding"]
        if d["tie_word_embeddings"]:
            multiplying += d["vocab_size"] * d["hidden_size"]
        attention = d["num_hidden_layers"] * d["num_attention_heads"] * d["head_dim"]
    return round(each * multiplying) + 6 * adapters + 12 * attention * block_size


def dataset_hint(total_tokens: int) -> tuple[int, int]:
    """Passes advised for a dataset of this size (owner's guide): 3-5 below 10M tokens, 2-4 below 100M, else 1-3."""
    return _look_up(_DATASET_HINTS, total_tokens)


def model_hint(parameters: int) -> tuple[int, int]:
    """Passes advised for a model of this size (owner's guide): tiny 3-5, small 2-4 (from 20M), from 150M on 1-3."""
    return _look_up(_MODEL_HINTS, parameters)


def _look_up(hints: tuple, size: float) -> tuple[int, int]:
    return next((low, high) for below, low, high in hints if size < below)
