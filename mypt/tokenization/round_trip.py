"""Whether a tokenizer gives a text back, and how much of it is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def measure_loss(
    backend: Tokenizer, encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]], texts: Sequence[str]
) -> dict[str, Any]:
    """Encode and decode `texts`, and `compare`; `encode` gives their ids, flat, and how many each has."""
    return compare(backend, *encode(texts), texts)


def compare(backend: Tokenizer, ids: np.ndarray, counts: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
    """Decode ids, and compare with the texts that they were made from.

    Args:
        backend: The tokenizer that decodes. Its unknown token decodes to nothing.
        ids: Of all texts, uint32 (tokens,).
        counts: How many each text has, int64 (len(texts),).
        texts: The texts.

    Returns:
        For JSON: the number of `texts` and of `characters`, `changed_texts` (they come back different), and
        `lost_characters` (their share: `lost`): those of a text that its decoded text has fewer of, in any order.
    """
    parts = np.split(ids, np.cumsum(counts)[:-1]) if len(texts) else []
    changed, lost = 0, 0
    for text, part in zip(texts, parts, strict=True):
        decoded = backend.decode(part.tolist(), skip_special_tokens=True)
        if decoded != text:
            changed += 1
            lost += (Counter(text) - Counter(decoded)).total()
    characters = sum(map(len, texts))
    return {
        "texts": len(texts),
        "characters": characters,
        "changed_texts": changed,
        "lost_characters": lost,
        "lost": lost / max(1, characters),
    }


def describe_loss(loss: dict[str, Any]) -> str:
    """One line: "gives all of 1,000 characters back", or "loses 0.9% of characters (9 of 1,000)"."""
    if not loss["changed_texts"]:
        return f"gives all of {loss['characters']:,} characters back"
    if not loss["lost_characters"]:
        return f"moves or adds characters in {loss['changed_texts']:,} of {loss['texts']:,} texts"
    share = f"{loss['lost']:.1%}" if loss["lost"] >= 0.001 else "less than 0.1%"
    return (
        f"loses {share} of characters ({loss['lost_characters']:,} of {loss['characters']:,}); "
        f"{loss['changed_texts']:,} of {loss['texts']:,} texts change"
    )
