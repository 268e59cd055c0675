"""Counts, passes, times and sizes in words."""

import itertools


def short(number: float) -> str:
    """A count in at most three significant digits: 950, 12.3k, 1.23M, 500M, 1.2B, 3T."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{figure(number / limit)}{letter}"
    return figure(number)


def figure(number: float) -> str:
    """A number in three significant digits, without an exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1e-4 else f"{number:.6f}"


def times(coverage: float) -> str:
    """Coverage in two decimals, never rounded up to a full pass: 4.10x, 0.99x, 0.004x; from 100 passes on in none."""
    if 0.99 <= coverage < 1:
        return "0.99x"
    if coverage >= 100:
        return f"{coverage:,.0f}x"
    return f"{coverage:.2f}x" if coverage >= 0.01 else f"{coverage:.1g}x"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min 20 s, 5 h 12 min, 9 d 4 h."""
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    for (size, name), (smaller, smaller_name) in itertools.pairwise(units):
        if seconds >= size:
            return f"{seconds // size:,.0f} {name} {seconds % size // smaller:.0f} {smaller_name}"
    return f"{seconds:.0f} s"


def gibibytes(size: int) -> str:
    """Bytes as GiB with three digits or so: 0.012, 1.53, 24.0."""
    value = size / 2**30
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"
