"""Copy a reproducible part of a dataset: whole documents, spread evenly over it, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mypt.errors import DataError
from mypt.folders import only_writer
from mypt.shards.format import Manifest, Split
from mypt.shards.open_dataset import open_dataset
from mypt.shards.publishing import fingerprints, made_before, own_tokenizer, publish, require_dataset_folder, staged
from mypt.shards.scan import Advance, checked_chunks, piece_lengths
from mypt.shards.writer import ShardWriter
from mypt.terminal import bytes_bar
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
        names, source_ends = _sources(manifest, directory)
        if len(names) < len(manifest.sources):
            say("its metadata does not say which documents are of which source; each keeps its share, uncounted")
        read = manifest.bytes * (1 + ("tokens" in asked))
        with bytes_bar("choosing", read, progress) as bar, staged(out) as staging:
            train = _choose_train(directory, manifest, asked, seed, bar.update, say)
            chosen = {"train": train, "val": _choose_val(manifest, len(train), val, seed)}
            save_tokenizer(tokenizer, staging)
            text, splits, counts = TextOf(tokenizer), {}, {}
            per_shard = manifest.settings.get("tokens_per_shard", 10_000_000)
            for split in manifest.splits:
                writer = ShardWriter(staging, split, manifest.dtype, per_shard)
                numbered = _numbered_pieces(directory, manifest, split, bar.update)
                splits[split], counts[split] = _write(
                    numbered, chosen[split], writer, text, manifest.eos_token_id, source_ends[split]
                )
            subset = replace(
                manifest,
                splits=splits,
                sources=_counted(names, counts),
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


def _choose_val(manifest: Manifest, chosen: int, val: str, seed: int) -> np.ndarray:
    """All documents of val, or the same share of them as the `chosen` ones are of train."""
    documents = manifest.splits["val"].documents if "val" in manifest.splits else 0
    share = chosen / manifest.splits["train"].documents
    kept = max(1, round(documents * share)) if val == "proportional" and documents else documents
    return choose(documents, kept, seed)


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
    lengths = np.zeros(manifest.splits["train"].documents, np.uint32)
    for _, tokens, first in _numbered_pieces(directory, manifest, "train", advance):
        lengths[first : first + len(tokens)] += tokens.astype(np.uint32)
    return lengths


def _numbered_pieces(directory: Path, manifest: Manifest, split: str, advance: Advance) -> Iterator[tuple]:
    """Chunks of ids, the lengths of the pieces of documents in them, and the ordinal of each one's first document."""
    eos, ordinal, expected, is_open = manifest.eos_token_id, 0, manifest.splits[split].documents, False
    for ids in checked_chunks(directory, manifest, split, advance):
        tokens = piece_lengths(ids, eos)
        if ordinal + len(tokens) > expected:
            raise DataError(
                f"{directory}: {split} has more documents than its metadata says; run mypt verify {directory}"
            )
        yield ids, tokens, ordinal
        is_open = ids[-1] != eos  # the last document continues in the next chunk
        ordinal += len(tokens) - is_open
    if ordinal + is_open != expected:
        raise DataError(
            f"{directory}: {split} has {ordinal + is_open:,} documents, its metadata says {expected:,}; run "
            f"mypt verify {directory}"
        )


def _write(
    numbered: Iterator[tuple], chosen: np.ndarray, writer: ShardWriter, text: TextOf, eos: int, source_ends: np.ndarray
) -> tuple[Split, np.ndarray]:
    """Write the chosen documents of `_numbered_pieces`.

    Returns their shards, and documents, bytes and tokens of each source, int64 (sources, 3).
    """
    counts, continued = np.zeros((len(source_ends), 3), np.int64), False
    for ids, tokens, first in numbered:
        ordinals = chosen[slice(*np.searchsorted(chosen, (first, first + len(tokens))))]
        taken = np.zeros(len(tokens), bool)
        taken[ordinals - first] = True
        if len(ordinals):
            taken_ids, taken_tokens = ids[np.repeat(taken, tokens)], tokens[taken]
            sizes, begun = text.sizes(taken_ids, taken_tokens), np.ones(len(ordinals), np.int64)
            begun[0] = not (continued and taken[0])
            writer.write(taken_ids, taken_tokens, sizes, continued=not begun[0])
            owners = np.searchsorted(source_ends, ordinals, side="right")
            np.add.at(counts, owners, np.column_stack((begun, sizes, taken_tokens)))
        continued = bool(ids[-1] != eos)
    return writer.close(), counts


def _sources(manifest: Manifest, directory: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of the sources, and for each split the ordinal after the last document of each, int64 (sources,).

    All is one source if the metadata does not say how many documents of each split are of each.
    """
    names = [source["name"] for source in manifest.sources]
    numbers = {
        split: [source.get("splits", {}).get(split, 0) for source in manifest.sources] for split in manifest.splits
    }
    if not names or any(sum(numbers[name]) != split.documents for name, split in manifest.splits.items()):
        names = names if len(names) == 1 else [str(directory)]
        numbers = {name: [split.documents] for name, split in manifest.splits.items()}
    return names, {split: np.cumsum(found, dtype=np.int64) for split, found in numbers.items()}


def _counted(names: list[str], counts: dict[str, np.ndarray]) -> list[dict]:
    """The metadata of the sources; `counts` as `_write` returns them, by split."""
    total = sum(counts.values()).tolist()
    return [
        {
            "name": name,
            **dict(zip(("documents", "bytes", "tokens"), total[index], strict=True)),
            "splits": {split: int(numbers[index, 0]) for split, numbers in counts.items()},
        }
        for index, name in enumerate(names)
    ]
