"""Text to a dataset directory: survey the text, get the tokenizer, write the shards, publish them in one step."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mypt.errors import DataError, MyPTError
from mypt.shards.encoding import divide, encode_parts
from mypt.shards.format import DTYPES, SPLITS, Manifest, Split, dtype_for
from mypt.shards.settings import PrepareSettings
from mypt.shards.staging import STAGING, previous_manifest, publish, write_error
from mypt.shards.survey import Reading, Survey, choose_units, survey
from mypt.shards.writer import ShardWriter
from mypt.text.sources import SourceFile, find_files, fingerprint
from mypt.tokenization.bpe import TextSample, train_bpe_tokenizer
from mypt.tokenization.char import build_char_tokenizer
from mypt.tokenization.load import largest_id, load_tokenizer, save_tokenizer, tokenizer_hash
from mypt.tokenization.vocab_size import choose_vocab_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TRAINING_KEY = "mypt_training"  # in tokenizer_config.json: the settings and the text that made the tokenizer

Say = Callable[[str], object]


def prepare_dataset(
    sources: str | Path | Iterable[str | Path],
    out: str | Path,
    tokenizer: str | Path = "bpe",
    *,
    vocab_size: int | str = "auto",
    min_vocab_size: int = 5000,
    max_vocab_size: int = 50_000,
    tokenizer_train_examples: int = 10_000,
    retrain: bool = False,
    text_column: str = "text",
    tokens_per_shard: int = 10_000_000,
    val_fraction: float = 0.1,
    val_split: str = "hash",
    document: str | None = None,
    normalize: bool | None = None,
    filter: bool = True,
    dedup: bool = True,
    lowercase: bool = False,
    max_documents: int | None = None,
    seed: int = 42,
    progress: bool = True,
) -> Manifest:
    """Turn text files into the dataset directory `out` (docs/shard_format.md) and return its manifest.

    `sources` are paths and globs; `tokenizer` is bpe, char, gpt2, a directory with a tokenizer or a hub id. `val_split`
    hash sends a document to val by the hash of its text; tail cuts off the last `val_fraction` of the characters.
    `document` is file, block (blank lines between) or line; None takes files, and blocks for text files above 1 MB
    unless `val_split` is tail. `normalize=None` means True, but False for tail, which keeps the text as it is.
    `seed` picks the examples that train a BPE. The same input and settings give the same bytes.

    A directory that already holds the same is returned at once unless `retrain`. The returned `report` also has
    `notes`, `seconds` and `mb_per_second` (10^6 bytes of text), which are not written.
    Raises DataError for unusable sources, settings, splits or a full disk, and TokenizerError for the tokenizer;
    what `out` held is then untouched.
    """
    started = time.perf_counter()
    name, loaded = str(tokenizer), None
    if name not in ("bpe", "char", "gpt2"):
        loaded = load_tokenizer(name)
    settings = PrepareSettings(
        tokenizer=f"xxh3-128:{tokenizer_hash(loaded)}" if loaded else name,
        vocab_size=vocab_size,
        min_vocab_size=min_vocab_size,
        max_vocab_size=max_vocab_size,
        tokenizer_train_examples=tokenizer_train_examples,
        seed=seed,
        text_column=text_column,
        document=document,
        normalize=val_split != "tail" if normalize is None else normalize,
        filter=filter,
        dedup=dedup,
        lowercase=lowercase,
        max_documents=max_documents,
        tokens_per_shard=tokens_per_shard,
        val_fraction=val_fraction,
        val_split=val_split,
    )
    settings.check()
    files = find_files([sources] if isinstance(sources, str | Path) else sources)
    prints = {source: fingerprint(group) for source, group in groupby(files, key=lambda file: file.source)}
    out, notes = Path(out), []

    def say(line: str) -> None:
        notes.append(line)
        if progress:
            print(line, file=sys.stderr)

    previous = previous_manifest(out, settings, list(prints.values()))
    if previous and not retrain:
        say(f"{out} is already prepared from the same text with the same settings")
        return previous
    key = settings.training_key(list(prints.values()))
    if settings.tokenizer == "bpe" and not retrain:
        loaded = _trained_before(out, key, say)
    reading = _reading(files, settings, say)
    seen, loaded = _survey(reading, settings, loaded, key, say, progress)
    manifest = _write_staged(out, reading, settings, seen, loaded, prints, say, progress)
    manifest.report["tokenizer"] = name
    try:
        publish(out, manifest)
    except OSError as error:
        raise write_error(error, out, needed=1e6) from None
    seconds = time.perf_counter() - started
    manifest.report |= {"notes": notes, "seconds": seconds, "mb_per_second": seen.bytes / 1e6 / seconds}
    return manifest


def _trained_before(out: Path, key: str, say: Say) -> PreTrainedTokenizerFast | None:
    """The tokenizer that an unfinished run with equal settings and text left behind."""
    for directory in (out / STAGING, out):
        if (directory / "tokenizer.json").is_file():
            with suppress(MyPTError):
                tokenizer = load_tokenizer(directory)
                if tokenizer.init_kwargs.get(_TRAINING_KEY) == key:
                    say(f"using the tokenizer in {directory}, trained with the same settings (--retrain: train again)")
                    return tokenizer
    return None


def _reading(files: list[SourceFile], settings: PrepareSettings, say: Say) -> Reading:
    units = choose_units(files, settings.document, keep_whole=settings.val_split == "tail")
    large = sum(unit == "block" for unit in units.values())
    if settings.document is None and large:
        say(f"{large} of {len(files)} files above 1 MB: a document there is a block between blank lines (--document)")
    if settings.val_split == "tail" and not settings.normalize:
        say("val is the tail of the text, which is kept as it is (--normalize changes it)")
    return Reading(
        files,
        units,
        settings.text_column,
        normalize=settings.normalize,
        lowercase=settings.lowercase,
        filter=settings.filter,
        max_documents=settings.max_documents,
    )


def _survey(
    reading: Reading,
    settings: PrepareSettings,
    tokenizer: PreTrainedTokenizerFast | None,
    key: str,
    say: Say,
    progress: bool,
) -> tuple[Survey, PreTrainedTokenizerFast]:
    """The first pass, and the tokenizer: the one given, or one made from what the pass saw."""
    sample, characters = TextSample(settings.tokenizer_train_examples, settings.seed), set()
    observe = {"bpe": sample.add, "char": characters.update}.get(
        "" if tokenizer else settings.tokenizer, lambda text: None
    )
    with _bar("reading", None, progress) as bar:
        seen = survey(reading, settings.dedup, observe, bar.update)
    if tokenizer is None and settings.tokenizer == "bpe":
        size = settings.vocab_size
        if size == "auto":
            size, reasons = choose_vocab_size(seen.bytes, settings.min_vocab_size, settings.max_vocab_size)
            say(f"vocabulary of {size:,} ids: {'; '.join(reasons)}")
        tokenizer = train_bpe_tokenizer(sample, size)
        tokenizer.init_kwargs[_TRAINING_KEY] = key
        say(f"trained a byte-level BPE of {len(tokenizer):,} ids on {len(sample):,} examples")
    elif tokenizer is None and settings.tokenizer == "char":
        tokenizer = build_char_tokenizer(characters)
        say(f"{len(characters):,} characters; with the 256 bytes and EOS a vocabulary of {len(tokenizer):,} ids")
    return seen, tokenizer or load_tokenizer(settings.tokenizer)


def _write_staged(
    out: Path,
    reading: Reading,
    settings: PrepareSettings,
    seen: Survey,
    tokenizer: PreTrainedTokenizerFast,
    prints: dict[str, str],
    say: Say,
    progress: bool,
) -> Manifest:
    """The second pass: everything but the metadata, in the staging directory."""
    is_val, parts = divide(reading, settings, seen, say)
    sources = {
        name: {"name": name, "documents": 0, "bytes": 0, "tokens": 0, "xxh3_128": prints[name]} for name in prints
    }
    dtype = dtype_for(largest_id(tokenizer))
    staging = out / STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_tokenizer(tokenizer, staging)
        with _bar("tokenising", seen.bytes, progress) as bar:
            writers = {split: ShardWriter(staging, split, dtype, settings.tokens_per_shard) for split in SPLITS}
            splits = encode_parts(parts, tokenizer, writers, sources, bar.update)
        _require_text(splits, settings)
    except (OSError, MyPTError) as error:
        for split in SPLITS:
            shutil.rmtree(staging / split, ignore_errors=True)
        if isinstance(error, MyPTError):
            raise
        done, tokens = (sum(source[count] for source in sources.values()) for count in ("bytes", "tokens"))
        needed = DTYPES[dtype].itemsize * (tokens * seen.bytes / done if done else seen.bytes)
        raise write_error(error, out, needed) from None
    return Manifest(
        dtype=dtype,
        vocab_size=largest_id(tokenizer) + 1,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_hash=tokenizer_hash(tokenizer),
        splits=splits,
        sources=list(sources.values()),
        settings=settings.deciding(),
        report=_report(seen, is_val, splits, say),
    )


def _report(seen: Survey, is_val: np.ndarray, splits: dict[str, Split], say: Say) -> dict:
    """What was read, kept, dropped and changed; is_val: bool (documents,)."""
    kept = seen.hashes[seen.keep & is_val], seen.hashes[seen.keep & ~is_val]
    tokens, text_bytes = sum(s.tokens for s in splits.values()), sum(s.bytes for s in splits.values())
    report = {
        "documents": int(seen.keep.sum()),
        "bytes": text_bytes,
        "tokens": tokens,
        "bytes_per_token": text_bytes / tokens,
        "documents_read": seen.cleaner.counts["documents"],
        "duplicates": int((~seen.keep).sum()),
        "dropped": dict(sorted(seen.cleaner.dropped.items())),
        "invalid_utf8": seen.cleaner.counts["invalid_utf8"],
        "normalized": seen.cleaner.counts["normalized"],
        "contaminated": len(np.intersect1d(*kept)),
    }
    if report["invalid_utf8"]:
        say(f"{report['invalid_utf8']:,} bytes were not UTF-8 and became U+FFFD; if that is many, convert the files")
    if report["contaminated"]:
        say(f"{report['contaminated']:,} documents are in train and in val: leave out --no-dedup or split by hash")
    return report


def _require_text(splits: dict[str, Split], settings: PrepareSettings) -> None:
    documents = sum(split.documents for split in splits.values())
    for name, split in splits.items():
        if not split.tokens and (name == "train" or settings.val_fraction):
            raise DataError(
                f"the {name} split of {documents} documents is empty with --val-fraction {settings.val_fraction:g}; "
                f"change it (0: no val split), give more text, or use --val-split tail"
            )


def _bar(what: str, total: int | None, progress: bool):
    from tqdm import tqdm

    disable = None if progress else True  # None: only on a terminal
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=disable, leave=False)
