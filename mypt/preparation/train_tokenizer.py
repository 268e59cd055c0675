"""Make a tokenizer of text: for a preparation, or alone in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from mypt.errors import TokenizerError
from mypt.files import replace_text
from mypt.folders import only_writer, require_own
from mypt.json_files import find_json
from mypt.preparation.prepare_run import PrepareRun
from mypt.preparation.prescan import prescan
from mypt.shards.format import METADATA_NAME
from mypt.shards.publishing import STAGING, UNITS
from mypt.shards.settings import PrepareSettings
from mypt.text.sources import find_units, stamp
from mypt.tokenization.data_tokenizer import DataTokenizer, read_data_tokenizer
from mypt.tokenization.load import save_tokenizer
from mypt.tokenization.train import TRAINED

TRAINING_NAME = "tokenizer_training.json"  # beside tokenizer.json: what it was made of, and the reasons for its size


def make_tokenizer(run: PrepareRun, retrain: bool) -> DataTokenizer:
    """Make a tokenizer of a kind in TRAINED, unless a killed run has done so."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record, key = run.folder / "tokenizer.key", run.corpus()
    kept = not retrain and record.is_file() and record.read_bytes() == key.encode()
    if kept and (tokenizer := read_data_tokenizer(run.staging)):
        run.say(f"using the tokenizer in {run.staging}, made from the same text (--retrain: make it again)")
        return tokenizer
    record.unlink(missing_ok=True)
    kind = TRAINED[run.settings.tokenizer]
    collected = kind.collect(run.settings, 2**64)
    text_bytes = sum(found.bytes for _, found in prescan(run, collected))
    tokenizer = DataTokenizer.made(kind.make(collected, text_bytes, run.settings, run.say))
    save_tokenizer(tokenizer, run.staging)
    replace_text(record, key)
    return tokenizer


def train_tokenizer(
    sources: Iterable[str | Path],
    out: str | Path,
    tokenizer: str = "bpe",
    *,
    retrain: bool = False,
    workers: int = 1,
    progress: bool = True,
    say: Callable[[str], object] = lambda line: None,
    **settings: Any,
) -> Path:
    """Make a tokenizer of `sources`, of a kind in TRAINED, and write it to the directory `out`, which is returned.

    `settings` are fields of PrepareSettings: vocab_size, min_vocab_size, max_vocab_size, tokenizer_train_examples,
    seed, text_column, lowercase, max_documents. A tokenizer that was made of the same sources with the same settings
    is left as it is unless `retrain`; a killed call continues when it is repeated. `say` gets the reasons for the size.
    Raises TokenizerError for another kind, or if `out` holds anything else, and DataError for the sources and the
    settings.
    """
    if tokenizer not in TRAINED:
        raise TokenizerError(f"a tokenizer {tokenizer!r} is not made of text; choose one of: {', '.join(TRAINED)}")
    out, chosen = Path(out), PrepareSettings.of(tokenizer, **settings)
    units = find_units(sources, text_column=chosen.text_column, on_error=chosen.on_error)
    made_of = {
        "settings": chosen.training(),
        "sources": list(dict.fromkeys(unit.source for unit in units)),
        "text": xxhash.xxh3_128_hexdigest(json.dumps([[unit.to_dict(), stamp(unit)] for unit in units]).encode()),
    }
    _require_tokenizer_folder(out)
    notes: list[str] = []
    run = PrepareRun(out / STAGING, chosen, units, workers, notes.append, progress)
    with only_writer(out):
        if _already_made(out, made_of, retrain):
            shutil.rmtree(run.staging, ignore_errors=True)  # of a call that was killed when all was done
            say(f"{out} already holds the tokenizer of this text with these settings (--retrain: make it again)")
            return out
        make_tokenizer(run, retrain=True)  # also one that a killed call made: its notes went with that call
        (out / TRAINING_NAME).unlink(missing_ok=True)
        for path in run.staging.glob("tokenizer*.json"):
            os.replace(path, out / path.name)
        replace_text(out / TRAINING_NAME, json.dumps(made_of | {"notes": notes}, indent=1, ensure_ascii=False))
        shutil.rmtree(run.staging)
    return out


class TrainingRecord(TypedDict):
    """The record of `train_tokenizer` about a tokenizer that it made."""

    settings: dict[str, Any]
    sources: list[str]
    text: str  # a hash of what the sources hold
    notes: list[str]


def training_record(directory: Path) -> TrainingRecord | None:
    """Read the record beside the tokenizer in `directory`; None without one. Raises TokenizerError if it is damaged."""
    return find_json(directory / TRAINING_NAME, TrainingRecord, TokenizerError, "restore it, or --retrain")


def _require_tokenizer_folder(out: Path) -> None:
    if (out / METADATA_NAME).exists():
        raise TokenizerError(f"{out} is a dataset, whose tokenizer belongs to its tokens; choose another --out")

    def is_own(folder: Path) -> bool:
        if (folder / TRAINING_NAME).is_file():
            return True
        return (folder / STAGING).is_dir() and not any((folder / STAGING / UNITS).glob("*.ids"))  # of `mypt prepare`

    require_own(out, is_own, "mypt tokenizer", TokenizerError)


def _already_made(out: Path, made_of: dict[str, Any], retrain: bool) -> bool:
    """Raises TokenizerError if `out` holds another tokenizer. One without its record is not finished."""
    if retrain or not (out / "tokenizer.json").is_file() or not (previous := training_record(out)):
        return False
    if {name: previous.get(name) for name in made_of} == made_of:
        return True
    differing = [
        f"{name} {previous['settings'].get(name)} -> {value}"
        for name, value in made_of["settings"].items()
        if previous["settings"].get(name) != value
    ]
    reason = "; ".join(differing) or "other text"
    raise TokenizerError(f"{out} holds another tokenizer ({reason}); choose another --out, or --retrain to replace it")
