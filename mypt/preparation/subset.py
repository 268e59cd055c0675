"""A reproducible part of a dataset: whole documents, spread evenly over it, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.folders import only_writer
from mypt.shards.format import Manifest, Split
from mypt.shards.opening import open_dataset
from mypt.shards.publishing import fingerprints, made_before, own_tokenizer, publish, require_dataset_folder, staged
from mypt.shards.scan import Advance, checked_chunks, pieces, progress_bar
from mypt.shards.writer import ShardWriter
from mypt.text.dedup import mix
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.token_bytes import TextOf

SAMPLES, SEED = 10_000, 42


def subset_dataset(
    directory: str | Path,
    out: str | Path,
    *,
    samples: int | None = None,
    tokens: int | None = None,
    fraction: float | None = None,
    seed: int = SEED,
    val: str = "whole",
    say: Callable[[str], object] = lambda line: None,
    progress: bool = True,
) -> Manifest:
    """Write part of the dataset in `directory` to `out` and return its manifest.

    A sample is a document. At most one of `samples` (documents of train; 10,000), `tokens` (as many documents of train
    as come close to so many tokens from below) and `fraction` (of train's documents). `val` is kept "whole", or cut to
    the same share of its documents ("proportional"). The same data, size and seed give the same bytes.
    Raises DataError for damaged data, sizes out of range, or an `out` that holds something else.
    """
    directory, out = Path(directory), Path(out)
    asked = _asked(samples, tokens, fraction, val)
    manifest = open_dataset(directory)
    made = {"did": "subset", "of": str(directory), **asked, "val": val, "seed": seed}
    made["fingerprints"] = fingerprints(manifest)
    require_dataset_folder(out, "mypt subset")
    with only_writer(out):
        if previous := made_before(out, made):
            say(f"{out} already holds this subset")
            return previous
        tokenizer = own_tokenizer(directory, manifest)
        if not manifest.splits["train"].documents:
            raise DataError(f"{directory} has no document in its train split")
        if len(manifest.sources) > 1 and not _told_apart(manifest):
            say("its metadata does not say which documents are of which source; each keeps its share, uncounted")
        total = sum(split.tokens for split in manifest.splits.values()) * manifest.numpy_dtype.itemsize
        with progress_bar("choosing", total * (1 + ("tokens" in asked)), progress) as bar, staged(out) as staging:
            chosen = {"train": _choose_train(directory, manifest, asked, seed, bar.update, say)}
            documents = manifest.splits["val"].documents if "val" in manifest.splits else 0
            share = len(chosen["train"]) / manifest.splits["train"].documents
            kept = max(1, round(documents * share)) if val == "proportional" and documents else documents
            chosen["val"] = choose(documents, kept, seed)
            save_tokenizer(tokenizer, staging)
            text, splits, counts = TextOf(tokenizer), {}, {}
            for split in manifest.splits:
                writer = ShardWriter(
                    staging, split, manifest.dtype, manifest.settings.get("tokens_per_shard", 10_000_000)
                )
                taken = _taken(directory, manifest, split, chosen[split], bar.update)
                splits[split], counts[split] = _write(taken, writer, text, _source_ends(manifest, split))
            subset = Manifest(
                dtype=manifest.dtype,
                vocab_size=manifest.vocab_size,
                eos_token_id=manifest.eos_token_id,
                tokenizer_hash=manifest.tokenizer_hash,
                splits=splits,
                sources=_sources(manifest, directory, counts),
                settings=manifest.settings,
                report={"tokenizer": manifest.report.get("tokenizer")},
                history=[*manifest.history, made],
            )
        publish(out, subset)
    return subset


def choose(documents: int, count: int, seed: int) -> np.ndarray:
    """`count` of `documents` ordinals, int64 ascending: every one as likely, evenly spread.

    The stream of documents, begun at a random place and closed to a ring, is divided into `count` runs of equal length
    (give or take one), and of each run one document is drawn. So every source, which is a run of the stream itself,
    keeps its share to within two documents, and so does any other part of the data.
    """
    if count >= documents:
        return np.arange(documents)
    edges = np.arange(count + 1, dtype=np.int64) * documents // count
    draws = _uniform(seed, np.arange(count + 1, dtype=np.uint64))
    picked = edges[:-1] + (draws[:-1] * np.diff(edges)).astype(np.int64)
    return np.sort((picked + int(draws[-1] * documents)) % documents)


def _uniform(seed: int, index: np.ndarray) -> np.ndarray:
    """Keyed numbers in [0, 1), float64 (n,): SplitMix64 (Steele et al. 2014), the same on every machine and version."""
    with np.errstate(over="ignore"):
        mixed = (index + np.uint64(1) + (np.uint64(seed % 2**64) << np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (mix(mixed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _asked(samples: int | None, tokens: int | None, fraction: float | None, val: str) -> dict:
    sizes = {"samples": samples, "tokens": tokens, "fraction": fraction}
    asked = {name: size for name, size in sizes.items() if size is not None} or {"samples": SAMPLES}
    if len(asked) > 1:
        raise DataError(f"{' and '.join(asked)} were given; the size of a subset is one of samples, tokens, fraction")
    [(name, size)] = asked.items()
    if not (0 < size <= 1 if name == "fraction" else size >= 1):
        raise DataError(f"{name} is {size}; it must be {'above 0, at most 1' if name == 'fraction' else '1 or more'}")
    if val not in ("whole", "proportional"):
        raise DataError(f"val is {val!r}; it must be whole or proportional")
    return asked


def _choose_train(directory: Path, manifest: Manifest, asked: dict, seed: int, advance, say) -> np.ndarray:
    documents, available = manifest.splits["train"].documents, manifest.splits["train"].tokens
    if "tokens" in asked:
        if asked["tokens"] < available:
            return _closest(_lengths(directory, manifest, advance), asked["tokens"], seed)
        say(f"train has {available:,} tokens: all are taken")
        return np.arange(documents)
    count = asked["samples"] if "samples" in asked else max(1, round(documents * asked["fraction"]))
    if count >= documents and asked != {"fraction": 1}:
        say(f"train has {documents:,} documents: all are taken")
    return choose(documents, min(count, documents), seed)


def _closest(lengths: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    """The largest choice that a search by halving finds to have at most so many tokens."""
    low, high, best = 1, len(lengths), None
    while low <= high:
        middle = (low + high) // 2
        chosen = choose(len(lengths), middle, seed)
        if lengths[chosen].sum(dtype=np.int64) <= tokens:
            low, best = middle + 1, chosen
        else:
            high = middle - 1
    if best is None:
        raise DataError(f"no document was found to fit in {tokens:,} tokens; ask for more, or for --samples")
    return best


def _lengths(directory: Path, manifest: Manifest, advance: Advance) -> np.ndarray:
    """Tokens of each document of train, uint32 (documents,)."""
    lengths, ordinal = np.zeros(manifest.splits["train"].documents + 1, np.uint32), 0
    for _, tokens, first in _numbered_pieces(directory, manifest, "train", advance):
        lengths[first : first + len(tokens)] += tokens.astype(np.uint32)
        ordinal = first + len(tokens)
    return lengths[: max(1, ordinal)]


def _numbered_pieces(directory: Path, manifest: Manifest, split: str, advance: Advance) -> Iterator[tuple]:
    """Chunks of ids, the lengths of the pieces of documents in them, and the ordinal of each one's first document."""
    eos, ordinal, expected = manifest.eos_token_id, 0, manifest.splits[split].documents
    goes_on = False
    for ids in checked_chunks(directory, manifest, split, advance):
        tokens = pieces(ids, eos)
        if ordinal + len(tokens) > expected:
            raise DataError(
                f"{directory}: {split} has more documents than its metadata says; run mypt verify {directory}"
            )
        yield ids, tokens, ordinal
        goes_on = ids[-1] != eos  # what does not end goes on in the next chunk
        ordinal += len(tokens) - goes_on
    if ordinal + goes_on != expected:
        raise DataError(
            f"{directory}: {split} has {ordinal + goes_on:,} documents, its metadata says {expected:,}; run "
            f"mypt verify {directory}"
        )


def _taken(
    directory: Path, manifest: Manifest, split: str, chosen: np.ndarray, advance: Advance
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
    """The ids of the chosen documents, chunk by chunk: ids, tokens of each piece, its document's ordinal, and whether
    the first piece goes on with the last document."""
    goes_on = False
    for ids, tokens, first in _numbered_pieces(directory, manifest, split, advance):
        ordinals = chosen[slice(*np.searchsorted(chosen, (first, first + len(tokens))))]
        taken = np.zeros(len(tokens), bool)
        taken[ordinals - first] = True
        if len(ordinals):
            yield ids[np.repeat(taken, tokens)], tokens[taken], ordinals, bool(goes_on and taken[0])
        goes_on = bool(ids[-1] != manifest.eos_token_id)


def _write(taken: Iterator, writer: ShardWriter, text: TextOf, source_ends: np.ndarray) -> tuple[Split, np.ndarray]:
    """Write what is taken; returns its shards, and documents, bytes and tokens of each source, int64 (sources, 3)."""
    counts = np.zeros((len(source_ends), 3), np.int64)
    for ids, tokens, ordinals, goes_on in taken:
        sizes, begun = text.sizes(ids, tokens), np.ones(len(ordinals), np.int64)
        begun[0] = not goes_on
        writer.write(ids, tokens, sizes, goes_on=goes_on)
        owners = np.searchsorted(source_ends, ordinals, side="right")
        np.add.at(counts, owners, np.column_stack((begun, sizes, tokens)))
    return writer.close(), counts


def _source_ends(manifest: Manifest, split: str) -> np.ndarray:
    """The ordinal behind each source's last document, int64 (sources,); one source if they cannot be told apart."""
    numbers = [source.get("splits", {}).get(split, 0) for source in manifest.sources]
    documents = manifest.splits[split].documents
    return np.cumsum(numbers if _told_apart(manifest) else [documents], dtype=np.int64)


def _told_apart(manifest: Manifest) -> bool:
    """Whether the metadata says how many documents of each split are of each source."""
    return bool(manifest.sources) and all(
        sum(source.get("splits", {}).get(name, 0) for source in manifest.sources) == split.documents
        for name, split in manifest.splits.items()
    )


def _sources(manifest: Manifest, directory: Path, counts: dict[str, np.ndarray]) -> list[dict]:
    one_name = manifest.sources[0]["name"] if len(manifest.sources) == 1 else str(directory)
    names = [source["name"] for source in manifest.sources] if _told_apart(manifest) else [one_name]
    total = sum(counts.values())
    return [
        {
            "name": name,
            **dict(zip(("documents", "bytes", "tokens"), total[index].tolist(), strict=True)),
            "splits": {split: int(numbers[index, 0]) for split, numbers in counts.items()},
        }
        for index, name in enumerate(names)
    ]
