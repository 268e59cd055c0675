"""Fit a scaling law to a ladder of small runs and predict a larger one: rungs, fit, intervals, the best size.

The law is that of Hoffmann et al. 2022 (2203.15556), with the effective tokens of Muennighoff et al. 2023 (2305.16264):

    L(N, D) = E + A / N^alpha + B / D'^beta        nats per token

N: parameters of the model, embeddings included. D': viewed tokens, in fresh ones (`effective_tokens`).

Four to six rungs do not determine five numbers, so the fit is a posterior: Huber's loss of log L (Hoffmann's third
approach), and normal priors on what published laws agree about. Its intervals are a parametric bootstrap in which the
losses are drawn again from their noise and the priors' centres from the priors (randomized maximum a posteriori), so
that what the rungs leave open is as wide as the priors allow.

No law of this form holds over many decades, and the planned run is beyond the largest rung. The noise of a run
therefore grows with the logarithm of the compute between it and that rung: small rungs count less, and a far run has a
wide interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mypt.errors import MyPTError
from mypt.planning.parameters import count_parameters
from mypt.planning.scaling import ALPHA, LN_A, LN_B, Interval, Optimum

LEVEL = 0.95  # of every interval
FACTOR = 8.0  # compute of the planned run by that of the largest rung
FEWEST = 4  # rungs
# Parameters and tokens of the rungs by those of the largest. The first two are the planned run in small; the other two
# tell what parameters and tokens are worth one without the other. A fifth, (1/4, 1/4), made predictions worse.
DESIGN = ((1, 1), (1 / 2, 1 / 2), (1, 1 / 4), (1 / 4, 1))
FEWEST_LAYERS = FEWEST_HEADS = 4  # a model with fewer works otherwise; one that is planned with fewer keeps its number

NOISE = 0.005  # relative scatter of a run's loss, by its seed, before any is measured: as of _MEASURED runs
_MEASURED = 4.0
_DISTANCE = math.log(4)  # of compute from the largest rung at which the law's own error is as large as that scatter
_HUBER = 1.345  # residuals count linearly from so many standard deviations on: 95% efficient for normal errors
_DRAWS = 400
_ITERATIONS = 60
# Priors: normal, of logarithms.
_ENTROPY = (math.log(0.42), 0.4)  # E in nats per byte: 0.6 bits of text
_EXPONENT = (math.log(ALPHA), 0.5)  # alpha, beta: 0.35 in Muennighoff 2023, 0.34 and 0.28 in Hoffmann 2022
_SAME = 0.3  # alpha / beta is near 1
_BALANCE = 0.7  # A / N^alpha by B / D^beta, near that of the published law


@dataclass(frozen=True)
class Rung:
    """A finished run.

    Attributes:
        parameters: Of its model, embeddings included.
        tokens: Viewed.
        effective_tokens: These in fresh ones.
        loss: Nats per token of the evaluation set at its end.
        error: Standard error of it over the windows of the set.
    """

    parameters: int
    tokens: int
    effective_tokens: float
    loss: float
    error: float


class Law:
    """The law fitted to rungs; the same rungs give the same law.

    Args:
        rungs: Four or more.
        bytes_per_token: Of the text; it bounds E.

    Attributes:
        terms: Intervals of E, A, B, alpha and beta. A and B are of N and D in units of one.
        noise: Relative scatter of the loss of a run of the largest rung's compute.
        residuals: log L - log of the law, of each rung.

    Raises:
        MyPTError: Too few rungs, or a loss that is NaN, infinite or 0.
    """

    def __init__(self, rungs: Sequence[Rung], bytes_per_token: float):
        if len(rungs) < FEWEST:
            raise MyPTError(f"a law needs {FEWEST} finished rungs, and there are {len(rungs)}")
        if bad := next((rung for rung in rungs if not 0 < rung.loss < math.inf), None):
            raise MyPTError(f"the rung of {bad.parameters:,} parameters ended with a loss of {bad.loss}; leave it out")
        self.rungs = [*rungs]
        sizes = np.log([rung.parameters for rung in rungs])
        tokens = np.log([rung.effective_tokens for rung in rungs])
        losses = np.log([rung.loss for rung in rungs])
        top = int(np.argmax(sizes + tokens))
        self._origin = sizes[top], tokens[top]
        self._sizes, self._tokens = sizes - sizes[top], tokens - tokens[top]
        self._growth = _noise_growth(self._sizes + self._tokens)
        # Of the unknowns log E, log a, log b, log alpha, log beta, with a and b the two terms of the largest rung.
        balance = LN_A - LN_B + ALPHA * (tokens[top] - sizes[top])
        entropy = _ENTROPY[0] + math.log(bytes_per_token)
        rows = ([1, 0, 0, 0, 0], [0, 1, -1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, -1])
        widths = np.array([_ENTROPY[1], _BALANCE, _EXPONENT[1], _EXPONENT[1], _SAME])
        centres = np.array([entropy, balance, _EXPONENT[0], _EXPONENT[0], 0.0]) / widths
        self._prior = np.array(rows) / widths[:, None]
        starts = np.array(
            [
                [math.log(loss * share), *[math.log(loss * (1 - share) / 2)] * 2, math.log(power), math.log(power)]
                for loss in (rungs[top].loss,)
                for share in (0.1, 0.4, 0.7)
                for power in (0.2, 0.35, 0.6)
            ]
        )
        found = self._solve(starts, losses, centres, NOISE)
        self.residuals = losses - self._model(found)[0][0]
        # The noise that is left, with the assumed one as of _MEASURED runs; the diagonal alone fits three numbers.
        freedom = _MEASURED + max(0, len(rungs) - 3)
        scatter = np.square(self.residuals / self._growth).sum()
        self.noise = math.sqrt((_MEASURED * NOISE**2 + scatter) / freedom)
        self._best = self._solve(np.vstack([found, starts]), losses, centres, self.noise)
        self.residuals = losses - self._model(self._best)[0][0]
        random = np.random.default_rng(0)
        spread = self.noise * np.sqrt(freedom / random.chisquare(freedom, _DRAWS))
        drawn = losses + spread[:, None] * self._growth * random.standard_normal((_DRAWS, len(losses)))
        moved = centres + random.standard_normal((_DRAWS, len(centres)))
        self._draws = self._descend(np.repeat(self._best, _DRAWS, axis=0), drawn, moved, self.noise)[0]
        # A run's own scatter, and that its evaluation set is a sample of the text.
        error = rungs[top].error if 0 <= rungs[top].error < math.inf else 0.0
        self._scatter = spread * random.standard_normal(_DRAWS), error * random.standard_normal(_DRAWS)

    @property
    def terms(self) -> dict[str, Interval]:
        def named(unknowns: np.ndarray) -> dict[str, np.ndarray]:
            e, a, b, alpha, beta = unknowns.T
            alpha, beta = np.exp(alpha), np.exp(beta)
            size, tokens = self._origin
            return {
                "E": np.exp(e),
                "A": np.exp(a + alpha * size),
                "B": np.exp(b + beta * tokens),
                "alpha": alpha,
                "beta": beta,
            }

        best, drawn = named(self._best), named(self._draws)
        return {name: _interval(values[0], drawn[name]) for name, values in best.items()}

    def predict(self, parameters: float, tokens: float) -> Interval:
        """The loss that a run would measure at its end. tokens: effective ones."""
        drawn = self._at(self._draws, parameters, tokens)
        relative, error = self._scatter
        distance = math.log(parameters) + math.log(tokens) - sum(self._origin)
        drawn = drawn * np.exp(relative * _noise_growth(distance)) + error
        return _interval(self._at(self._best, parameters, tokens)[0], drawn)

    def optimum(self, flops: float, effective: Callable[[float], float]) -> Optimum:
        """The size for which `flops` give the lowest loss. effective: of viewed tokens, how many fresh ones they are.

        Sizes from a hundredth to a hundred times that of equal exponents and terms are compared.
        """
        low, high = (math.sqrt(flops / 6 / ratio) for ratio in (20_000, 0.2))  # tokens per parameter
        sizes = np.geomspace(low, high, 400)
        tokens = flops / 6 / sizes
        worth = np.array([effective(count) for count in tokens])
        best = int(np.argmin(self._at(self._best, sizes, worth)[0]))
        drawn = sizes[np.argmin(self._at(self._draws, sizes, worth), axis=1)]
        return Optimum(
            flops, _interval(sizes[best], drawn), float(tokens[best]), self.predict(sizes[best], worth[best])
        )

    def beyond(self, parameters: float, tokens: float) -> dict[str, float]:
        """How many times the largest rung's parameters, tokens and compute a run has. tokens: viewed ones."""
        return {
            "parameters": parameters / max(rung.parameters for rung in self.rungs),
            "tokens": tokens / max(rung.tokens for rung in self.rungs),
            "compute": parameters * tokens / max(rung.parameters * rung.tokens for rung in self.rungs),
        }

    def _at(self, unknowns: np.ndarray, parameters, tokens) -> np.ndarray:
        """float64 (draws, points)"""
        sizes = np.atleast_1d(np.log(parameters) - self._origin[0])
        tokens = np.atleast_1d(np.log(tokens) - self._origin[1])
        found = sum(_terms(unknowns, sizes, tokens))
        return found if found.shape[1] > 1 else found[:, 0]

    def _model(self, unknowns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L of the rungs, float64 (draws, rungs), and its derivatives (draws, rungs, 5)."""
        entropy, a, b = _terms(unknowns, self._sizes, self._tokens)
        loss = entropy + a + b
        alpha, beta = np.exp(unknowns[:, 3:4]), np.exp(unknowns[:, 4:5])
        parts = [np.broadcast_to(entropy, a.shape), a, b, -a * alpha * self._sizes, -b * beta * self._tokens]
        return np.log(loss), np.stack(parts, axis=-1) / loss[..., None]

    def _solve(self, starts: np.ndarray, losses: np.ndarray, centres: np.ndarray, noise: float) -> np.ndarray:
        """The best of the minima that are found from these starts, float64 (1, 5)."""
        found, costs = self._descend(starts, losses[None], centres[None], noise)
        return found[[int(np.argmin(costs))]]

    def _descend(
        self, unknowns: np.ndarray, losses: np.ndarray, centres: np.ndarray, noise: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Levenberg-Marquardt with Huber's weights, on all rows at once: where each ends, and its cost."""
        noise = noise * self._growth  # of each rung

        def cost(unknowns: np.ndarray) -> np.ndarray:
            rest = np.abs(losses - self._model(unknowns)[0]) / noise
            huber = np.where(rest < _HUBER, rest**2 / 2, _HUBER * (rest - _HUBER / 2))
            return huber.sum(axis=1) + np.square(unknowns @ self._prior.T - centres).sum(axis=1) / 2

        costs, damping = cost(unknowns), np.full(len(unknowns), 1e-2)
        for _ in range(_ITERATIONS):
            predicted, slopes = self._model(unknowns)
            rest, slopes = (losses - predicted) / noise, slopes / noise[:, None]
            weights = np.minimum(1, _HUBER / np.maximum(np.abs(rest), 1e-12))
            hessian = np.einsum("rik,ri,ril->rkl", slopes, weights, slopes) + self._prior.T @ self._prior
            descent = (
                np.einsum("rik,ri->rk", slopes, weights * rest) - (unknowns @ self._prior.T - centres) @ self._prior
            )
            scale = damping[:, None, None] * np.einsum("rkk->rk", hessian)[:, :, None] * np.eye(hessian.shape[1])
            step = np.linalg.solve(hessian + scale, descent[..., None])[..., 0]
            moved = unknowns + np.clip(step, -1, 1)
            new = cost(moved)
            better = new <= costs
            unknowns, costs = np.where(better[:, None], moved, unknowns), np.where(better, new, costs)
            damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
        return unknowns, costs


def _terms(unknowns: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three terms of the law. sizes, tokens: logarithms, of those of the largest rung."""
    entropy, a, b, alpha, beta = (column[:, None] for column in unknowns.T)
    return np.exp(entropy), np.exp(a - np.exp(alpha) * sizes), np.exp(b - np.exp(beta) * tokens)


def _noise_growth(distance):
    """Noise of a run by that of one of the largest rung's compute. distance: log of its compute by that rung's."""
    return np.sqrt(1 + np.square(distance / _DISTANCE))


def _interval(middle: float, drawn: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(low), float(middle), float(high))


def smaller_model(dimensions: dict, parameters: float) -> dict:
    """The fields of a model like this one, with a number of parameters as near as whole layers and widths come.

    Depth falls with the cube root of the parameters, not below four layers, and width does the rest, in steps of 8 (4
    below 64): the ratio of depth to width stays as far as it can. So do the width of a head, the share of key-value
    heads, and the width of the MLP by the model's; a model keeps four heads, or as many as are planned.

    Args:
        dimensions: MyPTConfig fields of the planned model.
        parameters: In all, embeddings included.
    """
    layers, width = dimensions["num_hidden_layers"], dimensions["hidden_size"]
    share = min(1.0, parameters / count_parameters(dimensions)["total"])
    depth = max(min(layers, FEWEST_LAYERS), round(layers * share ** (1 / 3)))
    widths = [*range(4, min(64, width), 4), *range(64, width, 8), width]
    changed = [_narrowed(dimensions, depth, narrow) for narrow in widths]
    counts = [count_parameters(dimensions | fields)["total"] for fields in changed]
    return min(zip(counts, changed, strict=True), key=lambda pair: abs(math.log(pair[0] / parameters)))[1]


def _narrowed(dimensions: dict, layers: int, width: int) -> dict:
    heads, head = dimensions["num_attention_heads"], dimensions["head_dim"]
    group = heads // dimensions["num_key_value_heads"]
    wide = heads * head / dimensions["hidden_size"]  # of all heads by the model's width, 1 in most
    least = min(heads, FEWEST_HEADS)
    counts = [number for number in range(least, heads + 1) if width * wide % (2 * number) == 0] or [1]
    number = min(counts, key=lambda count: abs(math.log(width * wide / count / head)))
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": number,
        "num_key_value_heads": number // group if number % group == 0 else number,
        "head_dim": int(width * wide) // number,
        "intermediate_size": max(8, 8 * round(dimensions["intermediate_size"] / dimensions["hidden_size"] * width / 8)),
    }
