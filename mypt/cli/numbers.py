"""Parse numbers as people write them on a command line."""

import argparse
import math
import re
from typing import TypeVar

from mypt.errors import shown

Number = TypeVar("Number", int, float)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def count(text: str) -> int:
    """500_000_000, 5e8, 1.2B or 500M as a whole number."""
    return _parse(text, _UNITS, "a number such as 500_000_000, 5e8, 1.2B or 500M")


def byte_count(text: str) -> int:
    """24G, 24GiB or 25769803776 as bytes; the letters are powers of 1,024."""
    return _parse(re.sub(r"(?i)i?b$", "", text), _BYTE_UNITS, "bytes such as 24G or 80GiB")


def shares(text: str) -> tuple[float, ...]:
    """0,5%,0.25 as shares of 1."""
    found = []
    for word in text.split(","):
        number = finite(word.strip().removesuffix("%")) / (100 if word.strip().endswith("%") else 1)
        if not 0 <= number < 1:
            raise argparse.ArgumentTypeError(f"{shown(word)} is no share such as 0.05 or 5%")
        found.append(number)
    return tuple(found)


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]{1,2})?)\s*([a-zA-Z]?)", text.strip())
    if not match or match[2].lower() not in units:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not understood, expected {expected}")
    from fractions import Fraction

    number = int(Fraction(re.sub("[_,]", "", match[1])[:200]) * units[match[2].lower()])
    if number < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is below 1, expected {expected}")
    return _of_64_bits(number, text)


def whole(text: str) -> int:
    """Parse what `int` parses, of at most 64 bits: what arrays and files hold."""
    try:
        return _of_64_bits(int(text), text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None


def finite(text: str) -> float:
    """Parse what `float` parses, but neither NaN nor infinite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number")
    return number


def positive(text: str) -> float:
    """Parse a number above 0 that 64 bits can count."""
    number = finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not above 0")
    return _of_64_bits(number, text)


def _of_64_bits(number: Number, text: str) -> Number:
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{shown(text)} is beyond 64 bits, which no size is")
    return number
