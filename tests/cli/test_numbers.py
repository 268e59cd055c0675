"""Numbers as people write them on a command line."""

import pytest

from mypt.cli.numbers import byte_count, count


@pytest.mark.parametrize(
    ("text", "number"),
    [("500_000_000", 500_000_000), ("5e8", 500_000_000), ("1.2B", 1_200_000_000), ("500M", 500_000_000),
     ("128k", 128_000), ("1,000", 1_000), ("7", 7)],
)  # fmt: skip
def test_counts_as_people_write_them(text, number):
    assert count(text) == number


def test_bytes_as_people_write_them():
    assert [byte_count(text) for text in ("24G", "24GiB", "1.5g", "1024")] == [24 * 2**30, 24 * 2**30, 3 * 2**29, 1024]
