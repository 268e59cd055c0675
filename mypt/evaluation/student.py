"""Student's t distribution without scipy, for any degrees of freedom above 0."""

import math
from functools import lru_cache

import numpy as np

_ANGLES = 4_001  # points of the integral
_WIDTH = 12.0  # standard deviations beyond which nothing lies, where the degrees are many


def student_probability(t: float, degrees: float) -> float:
    """P(T <= t), within 1e-5."""
    angles, total = _student(degrees)
    return float(np.interp(math.atan(t / math.sqrt(degrees)), angles, total))


def student_quantile(probability: float, degrees: float) -> float:
    """The t with P(T <= t) = probability."""
    angles, total = _student(degrees)
    return math.sqrt(degrees) * math.tan(float(np.interp(probability, total, angles)))


@lru_cache(64)
def _student(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles a and P(T <= sqrt(degrees) tan(a)): the density of a is cos(a)^(degrees - 1), summed by trapezoids."""
    widest = min(math.pi / 2, _WIDTH / math.sqrt(degrees))
    angles = np.linspace(-widest, widest, _ANGLES)
    density = np.cos(angles).clip(0) ** (degrees - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, total / total[-1]
