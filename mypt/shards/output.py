"""A new dataset directory made of another one: written aside, published in one step, known again when asked twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mypt.errors import DataError, TokenizerError
from mypt.shards.format import METADATA_NAME, Manifest, read_manifest
from mypt.shards.staging import STAGING, UNITS, publish
from mypt.tokenization.data_tokenizer import load_data_tokenizer
from mypt.tokenization.load import largest_id, tokenizer_hash


def made_before(out: Path, made: dict) -> Manifest | None:
    """The manifest of what `out` holds if it was made as `made` says, its last entry of history; None if it is new.

    To be called while `out` is held. Raises DataError if it holds anything else.
    """
    publish(out)  # what a killed call had ready
    if (out / METADATA_NAME).exists():
        manifest = read_manifest(out)
        if manifest.history and _essence(manifest.history[-1]) == _essence(made):
            return manifest
        raise DataError(f"{out} already holds another dataset; choose another --out or remove it")
    if (out / STAGING / UNITS).is_dir():
        raise DataError(f"{out} holds an unfinished preparation; repeat that command, or choose another --out")
    return None


def _essence(entry: dict) -> dict:
    return {name: value for name, value in entry.items() if name != "of"}  # a directory may be called otherwise now


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder inside `out` to write in; it is removed again if that fails."""
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def own_tokenizer(directory: Path, manifest: Manifest, load: Callable[[Path], Any] = load_data_tokenizer):
    """The tokenizer in a dataset directory, as `load` gives it.

    Raises TokenizerError if it is not the one that the metadata describes.
    """
    tokenizer = load(directory)
    pairs = {
        "hash": (tokenizer_hash(tokenizer), manifest.tokenizer_hash),
        "vocabulary": (largest_id(tokenizer) + 1, manifest.vocab_size),
        "EOS id": (tokenizer.eos_token_id, manifest.eos_token_id),
    }
    differences = [
        f"its {name} is {there}, the metadata says {said}" for name, (there, said) in pairs.items() if there != said
    ]
    if differences:
        raise TokenizerError(f"{directory}: tokenizer.json is another one: {'; '.join(differences)}; restore it")
    return tokenizer


def fingerprints(manifest: Manifest) -> dict[str, str]:
    return {name: manifest.fingerprint(name) for name, split in manifest.splits.items() if split.shards}
