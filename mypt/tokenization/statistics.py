"""Inspect a tokenizer, measure it on a text, and count what it loses of the text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mypt.text.plain import batches
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.fast import Encoder, choose_engine
from mypt.tokenization.load import largest_id, tokenizer_hash
from mypt.tokenization.token_bytes import token_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_LONGEST = 10
_BATCH_CHARACTERS = 1_000_000
_ROLES = ("bos", "eos", "unk", "pad")


def inspect_tokenizer(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Kind, number of ids, merges, special tokens with their roles, hash and the longest tokens; JSON-able."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, spelled = content["model"], token_bytes(tokenizer)
    special = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}
    roles = {token: [role for role in _ROLES if getattr(tokenizer, f"{role}_token") == token] for token in special}
    longest = []
    if spelled is not None:
        ids = sorted(set(range(len(spelled))) - set(special.values()), key=lambda id: (-len(spelled[id]), id))
        longest = [
            {"id": id, "bytes": len(spelled[id]), "text": spelled[id].decode(errors="replace")} for id in ids[:_LONGEST]
        ]
    return {
        "kind": _kind(content, lossless=spelled is not None),
        "ids": largest_id(tokenizer) + 1,
        "merges": len(model.get("merges") or ()),
        "special_tokens": [{"text": text, "id": id, "roles": roles[text]} for text, id in special.items()],
        "hash": tokenizer_hash(tokenizer),
        "longest_tokens": longest,
    }


def measure(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> dict[str, Any]:
    """How many bytes, tokens and bytes per token `texts` have, and how many of the ids occur in them; JSON-able.

    `loss` is what `compare` gives for the first million characters or so.
    """
    texts = iter(texts)
    sample = list(islice(texts, 64))
    engine = choose_engine(tokenizer.backend_tokenizer, sample, say=lambda line: None)
    encoder = Encoder(tokenizer.backend_tokenizer, engine, tokenizer.eos_token_id)
    uses = np.zeros(largest_id(tokenizer) + 1, dtype=np.int64)
    text_bytes, loss = 0, None
    for batch in batches(chain(sample, texts), _BATCH_CHARACTERS):
        ids, counts = encoder(batch)
        loss = loss or compare(tokenizer.backend_tokenizer, ids, counts, batch)
        uses += np.bincount(ids, minlength=len(uses))
        text_bytes += sum(len(text.encode()) for text in batch)
    tokens = int(uses.sum())
    return {
        "bytes": text_bytes,
        "tokens": tokens,
        "bytes_per_token": text_bytes / tokens if tokens else None,
        "ids_used": int(np.count_nonzero(uses)),
        "engine": engine,
        "dropped_ids": encoder.special.dropped,
        "unknown_ids": encoder.special.unknown,
        "loss": loss,
    }


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[dict[str, Any]]:
    """The id and the text of each token of `text`; a token that holds a part of a character shows U+FFFD."""
    ids = encode_documents(tokenizer, [text])[0]
    return [
        {"id": id, "text": tokenizer.backend_tokenizer.decode([id], skip_special_tokens=False)} for id in ids.tolist()
    ]


def loss_of(tokenizer: PreTrainedTokenizerFast, text: str) -> dict[str, Any]:
    """`compare` for one text that is encoded and decoded, and the decoded text, `decoded`."""
    backend = tokenizer.backend_tokenizer
    encoder = Encoder(backend, eos_token_id=tokenizer.eos_token_id)
    decoded = backend.decode(encoder([text])[0].tolist(), skip_special_tokens=True)
    return measure_loss(backend, encoder, [text]) | {"decoded": decoded}


def _kind(content: dict[str, Any], lossless: bool) -> str:
    model = content["model"]
    if not lossless:
        return model["type"]
    if model.get("byte_fallback"):
        return "characters, and bytes for any other" if not model["merges"] else "BPE with byte fallback"
    return "byte-level BPE"


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
    decoded = [backend.decode(part.tolist(), skip_special_tokens=True) for part in parts]
    differing = [pair for pair in zip(texts, decoded, strict=True) if pair[0] != pair[1]]
    lost = sum((Counter(text) - Counter(other)).total() for text, other in differing)
    characters = sum(map(len, texts))
    return {
        "texts": len(texts),
        "characters": characters,
        "changed_texts": len(differing),
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
