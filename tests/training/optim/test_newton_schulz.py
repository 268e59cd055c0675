"""A few products bring every singular value near 1, by the best polynomials there are, and leave the directions."""

import numpy as np
import pytest
import torch

from mypt.training.optim.optimizers import MARGIN, QUINTICS, orthogonalize

SHAPES = [(16, 16), (8, 40), (40, 8), (1, 12)]
LOWEST = 0.01  # singular values below this share of a matrix's Frobenius norm are raised, but may stay short of 1


def best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic with the least max |1 - p(s)| on [low, high], by Remez' exchange: it errs alike at four."""
    if high - low < 1e-3 * high:  # too narrow to tell the points apart: Newton-Schulz' own, of third order at 1
        middle = (low + high) / 2
        return 1.875 / middle, -1.25 / middle**3, 0.375 / middle**5
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(100):
        points = np.array([low, *inner, high])
        system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        before, inner = inner, np.sqrt(np.sort(np.roots([5 * c, 3 * b, a])))  # where p has its extremes
        if np.abs(inner - before).max() < 1e-12:
            break
    return float(a), float(b), float(c)


def polynomials(steps: int) -> tuple[tuple[float, float, float], ...]:
    """The quintics that `orthogonalize` applies."""
    return (*QUINTICS, *[QUINTICS[-1]] * steps)[:steps]


def test_the_constants_are_the_best_quintics_one_after_the_other():
    """Each is the best on the interval that the one before left; from the sixth on nothing changes."""
    low, high = LOWEST, 1.0
    for a, b, c in polynomials(8):
        assert best_quintic(low, high) == pytest.approx((a, b, c), rel=1e-6)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low


def by_svd(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The same polynomials applied to the singular values, in float64: what the matrix products must come to."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (MARGIN * s.norm())
    for a, b, c in polynomials(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


@pytest.mark.parametrize(("low", "high"), [(0.01, 1.0), (0.08, 1.92), (0.29, 1.71), (0.9, 1.1)])
def test_no_odd_quintic_is_nearer_to_one(low, high):
    """It errs equally at four points with alternating signs (Chebyshev), and others found by least squares err more."""
    grid = np.linspace(low, high, 20_001)
    powers = np.stack([grid, grid**3, grid**5], axis=1)
    error = 1 - powers @ best_quintic(low, high)
    worst = np.abs(error).max()
    peaks = [0, *(1 + np.flatnonzero(np.diff(np.sign(np.diff(error))))), len(grid) - 1]
    assert len(peaks) == 4
    assert np.abs(error[peaks]) == pytest.approx(worst, rel=1e-3)
    assert np.abs(np.diff(np.sign(error[peaks]))).tolist() == [2, 2, 2]
    for weight in (np.ones_like(grid), 1 / grid, grid):
        other = np.linalg.lstsq(powers * weight[:, None], weight, rcond=None)[0]
        assert np.abs(1 - powers @ other).max() > worst


@pytest.mark.parametrize(("steps", "error"), [(2, 0.71), (3, 0.27), (4, 0.02), (5, 1e-4)])
def test_the_documented_errors(steps, error):
    s = np.geomspace(LOWEST, 1, 5_001)
    for a, b, c in polynomials(steps):
        s = a * s + b * s**3 + c * s**5
    assert np.abs(1 - s).max() < error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_singular_value_comes_near_one_and_the_directions_stay(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrix[None], 3, dtype)[0]
    assert result.dtype == dtype
    result = result.double()
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    for values in (torch.linalg.svdvals(result), torch.diag(u.mT @ result @ vh.mT)):  # 1 where the result is U V^T
        assert values.min() > 0.7 and values.max() < 1.3


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_polynomial_of_the_singular_values(shape, steps):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(orthogonalize(matrix[None], steps)[0].double(), by_svd(matrix, steps), atol=1e-4)


def test_a_batch_is_its_members_one_by_one_and_tall_is_wide_transposed():
    batch = torch.randn((3, 10, 30), generator=torch.Generator().manual_seed(2))
    kept = batch.clone()
    together = orthogonalize(batch, 3)
    assert torch.equal(batch, kept), "the argument is not worked on in place"
    assert torch.allclose(together, torch.cat([orthogonalize(matrix[None], 3) for matrix in batch]), atol=1e-5)
    assert torch.equal(orthogonalize(batch.mT, 3), together.mT)
    assert torch.allclose(orthogonalize(1e-3 * batch, 3), together, atol=1e-4), "the gradient's size must not matter"
    assert torch.isfinite(orthogonalize(torch.zeros(1, 4, 4), 3)).all()
