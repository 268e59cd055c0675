"""Prepare text into a dataset directory: find units, get the tokenizer, encode, assign, write, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import DataError, worded
from mypt.folders import only_writer
from mypt.preparation.append import append_shards, appended, only_appender
from mypt.preparation.assignment import SplitAssignment, assign, require_splits
from mypt.preparation.encoding import encode
from mypt.preparation.overlap import held_documents
from mypt.preparation.prepare_run import PrepareRun
from mypt.preparation.report import (
    SKIPPED_NAME,
    count,
    describe_invalid,
    examples,
    invalid_files,
    require_documents,
    run_info,
    write_report,
    write_skipped,
)
from mypt.preparation.train_tokenizer import make_tokenizer
from mypt.preparation.units import EncodedText
from mypt.preparation.write_splits import write_splits
from mypt.shards.format import Manifest, dtype_for, read_manifest
from mypt.shards.publishing import LAUNCH, STAGING, own_tokenizer, previous_manifest, publish, require_dataset_folder
from mypt.shards.settings import PrepareSettings
from mypt.terminal import say
from mypt.text.sources import Unit, digest, find_units, is_same_text
from mypt.tokenization.data_tokenizer import load_data_tokenizer
from mypt.tokenization.load import largest_id, tokenizer_hash
from mypt.tokenization.train import TRAINED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare_dataset(
    sources: str | Path | Iterable[str | Path],
    out: str | Path,
    tokenizer: str | Path = "bpe",
    *,
    retrain: bool = False,
    workers: int = 1,
    progress: bool = True,
    hash_only: bool = False,
    **settings: Any,
) -> Manifest:
    """Turn text into the dataset directory `out` (docs/shard_format.md) and return its manifest.

    The same input and settings give the same bytes for any number of workers. A killed call continues where it was
    when it is repeated. A directory that already holds the same is returned at once unless `retrain`.

    Args:
        sources: What `find_units` takes: files, globs, HF dataset directories, hf:// names.
        out: The directory; new, empty, or a dataset of the same text and settings.
        tokenizer: bpe, char, gpt2, a directory with a tokenizer or a hub id.
        retrain: Whether to make everything again, the tokenizer too.
        workers: Processes that read and encode.
        progress: Whether to print notes and progress bars to standard error.
        hash_only: Whether val_split hash is not corrected by tails of sources (docs/prepare.md).
        **settings: Fields of `PrepareSettings`.

    Returns:
        The manifest. Its `report` also has `notes` and `run_info`, which are not written into the metadata.

    Raises:
        DataError: For unusable sources, settings, splits or a full disk; what `out` held is then untouched.
        TokenizerError: For the tokenizer.
    """
    name, notes = str(tokenizer), []
    say = partial(_say, notes, progress)
    loaded = None if name in (*TRAINED, "gpt2") else load_data_tokenizer(name, say)
    chosen = PrepareSettings.of(f"xxh3-128:{tokenizer_hash(loaded)}" if loaded else name, **settings)
    out = Path(out)
    require_dataset_folder(out, "mypt prepare")
    run = PrepareRun(out / STAGING, chosen, _find(sources, chosen, say), workers, say, progress)
    with run.disk_errors(), only_writer(out):
        if (run.folder / LAUNCH).is_file():
            raise DataError(
                f"{out} is being prepared by ranks (docs/datatrove.md); finish that, or choose another --out"
            )
        publish(out)  # what a killed call had ready
        previous = previous_manifest(out, chosen, partial(_holds, run))
        if previous and not retrain:
            _require_same_faults(out, previous, chosen)
            say(f"{out} is already prepared from the same text with the same settings")
            shutil.rmtree(run.staging, ignore_errors=True)  # of a call that was killed when all was done
            return previous
        loaded = loaded or (make_tokenizer(run, retrain) if name in TRAINED else load_data_tokenizer(name))
        if chosen.val_split == "tail" and not chosen.normalize:
            say("val is the tail of the text, which is kept as it is (--normalize changes it)")
        encoded = encode(run, loaded, dtype_for(largest_id(loaded)))
        require_documents(encoded)
        assignment = assign(run, encoded, hash_only=hash_only)
        manifest, info = write_dataset(run, encoded, assignment, loaded, name)
        if not manifest.report.get("skipped"):
            (out / SKIPPED_NAME).unlink(missing_ok=True)
        publish(out, manifest)
    return replace(manifest, report=manifest.report | {"notes": notes, **info})


def append_text(
    directory: str | Path,
    sources: str | Path | Iterable[str | Path],
    *,
    text_column: str = "text",
    max_documents: int | None = None,
    on_error: str = "stop",
    workers: int = 1,
    progress: bool = True,
) -> Manifest:
    """Prepare more text with the tokenizer and the settings of the dataset `directory`, and add it as new shards.

    Documents that the directory already holds are dropped if it was made so. A killed call continues where it was when
    it is repeated; at any moment the directory is as it was, or complete. Raises as `prepare_dataset` does.
    """
    directory, say = Path(directory), partial(_say, [], progress)
    with only_appender(directory):
        manifest = read_manifest(directory)
        tokenizer = own_tokenizer(directory, manifest)
        settings = _settings_again(manifest, text_column, max_documents, on_error)
        run = PrepareRun(directory / STAGING, settings, _find(sources, settings, say), workers, say, progress)
        if _holds_text(manifest, run):
            say(f"{directory} already holds this text")
            shutil.rmtree(run.staging, ignore_errors=True)  # of a call that was killed when all was done
            return manifest
        with run.disk_errors():
            encoded = encode(run, tokenizer, manifest.dtype)
            require_documents(encoded)
            held = held_documents(directory, manifest, run.scratch()) if settings.dedup else None
            assignment = assign(run, encoded, held=held, held_texts=_cut_before(manifest), present=manifest.tokens)
            if not assignment.documents:
                say(f"{directory} already holds every document of this text")
                shutil.rmtree(run.staging)
                return manifest
            splits, added = write_splits(run, encoded, assignment)
            report = count(encoded, assignment, splits, run.scratch())
            for line in describe_invalid(invalid_files(assignment.invalid()), report["invalid_utf8"]):
                run.say(line)
            if write_skipped(run, encoded, before=directory / SKIPPED_NAME):
                os.replace(run.staging / SKIPPED_NAME, directory / SKIPPED_NAME)
            new = replace(manifest, splits=splits, sources=added)
            entry = {"did": "append", "text": added, "read": _reading(settings), "report": report}
            manifest = append_shards(directory, run.staging, new, entry)
        shutil.rmtree(run.staging)
    return manifest


def write_dataset(
    run: PrepareRun,
    encoded: EncodedText,
    assignment: SplitAssignment,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
) -> tuple[Manifest, dict[str, Any]]:
    """Write shards and report to the staging directory; returns its metadata, and `run_info`.

    `name` is the tokenizer as it was given. Raises DataError if a split is empty.
    """
    require_splits(assignment)
    splits, sources = write_splits(run, encoded, assignment)
    manifest = Manifest(
        dtype=encoded.job.dtype,
        vocab_size=largest_id(tokenizer) + 1,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_hash=encoded.job.tokenizer_hash,
        splits=splits,
        sources=sources,
        settings=run.settings.deciding(),
        report=count(encoded, assignment, splits, run.scratch(), tokenizer=name),
    )
    report, invalid = manifest.report, invalid_files(assignment.invalid())
    for line in describe_invalid(invalid, report["invalid_utf8"]):
        run.say(line)
    if report["contaminated"]:
        run.say(f"{report['contaminated']:,} documents are in train and in val: leave out --no-dedup or split by hash")
    write_skipped(run, encoded)
    info = run_info(run, encoded)
    write_report(run.staging, manifest, examples(encoded, assignment, tokenizer), invalid, info)
    return manifest, info


def _find(
    sources: str | Path | Iterable[str | Path], settings: PrepareSettings, say: Callable[[str], object]
) -> list[Unit]:
    return find_units(
        [sources] if isinstance(sources, str | Path) else sources,
        document=settings.document,
        keep_whole=settings.val_split == "tail",
        text_column=settings.text_column,
        on_error=settings.on_error,
        say=say,
    )


def _say(notes: list[str], aloud: bool, line: str) -> None:
    line = worded(line)
    notes.append(line)
    if aloud:
        say(line, error=True)


def _require_same_faults(out: Path, previous: Manifest, settings: PrepareSettings) -> None:
    """Raise DataError if records were skipped when `out` was made, and none may be skipped now."""
    if settings.on_error == "stop" and (skipped := previous.report.get("skipped")):
        raise DataError(
            f"{out} was prepared with --on-error skip, and {sum(skipped.values()):,} records or files were "
            f"skipped ({out / SKIPPED_NAME}); give --on-error skip again, or choose another --out"
        )


def _holds(run: PrepareRun, recorded: list[dict], digest_of: Callable[[Unit], str] = digest) -> bool:
    """Whether the recorded digests are those of the sources; with max_documents of as many first units as were read."""
    wanted, partly = [source.get("xxh3_128") for source in recorded], run.settings.max_documents is not None
    by_source: dict[str, list[Unit]] = {}
    for unit in run.units:
        by_source.setdefault(unit.source, []).append(unit)
    groups = list(by_source.values())
    if None in wanted or len(groups) < len(wanted) or (not partly and len(groups) != len(wanted)):
        return False
    return all(
        is_same_text(group, expected, partly, digest_of) for group, expected in zip(groups, wanted, strict=False)
    )


def _holds_text(manifest: Manifest, run: PrepareRun) -> bool:
    """Whether a dataset was made of the text of `run`, or had it appended, read in the same way."""
    read = _reading(run.settings)
    texts = [entry["text"] for entry in appended(manifest) if "text" in entry and entry.get("read") == read]
    made_of_text = manifest.settings and not any(entry["did"] == "subset" for entry in manifest.history)
    if made_of_text and {name: manifest.settings.get(name) for name in read} == read:
        texts.append(manifest.sources[: len({unit.source for unit in run.units})])
    digest_of = cache(digest)  # a text is read once, however many there are
    return any(_holds(run, text, digest_of) for text in texts)


def _reading(settings: PrepareSettings) -> dict[str, Any]:
    """The settings that decide which part of a source is read."""
    return {"text_column": settings.text_column, "max_documents": settings.max_documents}


def _settings_again(manifest: Manifest, text_column: str, max_documents: int | None, on_error: str) -> PrepareSettings:
    """The settings that made a dataset, but with its tokenizer; the defaults where it knows none."""
    kept = {field.name for field in fields(PrepareSettings)} - {"tokenizer", "vocab_size"}
    given = {name: value for name, value in manifest.settings.items() if name in kept}
    if not manifest.splits.get("val") or not manifest.splits["val"].shards:
        given["val_fraction"] = 0.0  # it has no val split and gets none
    given |= {"text_column": text_column, "max_documents": max_documents, "on_error": on_error}
    return PrepareSettings.of(f"xxh3-128:{manifest.tokenizer_hash}", **given)


def _cut_before(manifest: Manifest) -> list[int]:
    """The hashes of the texts that are in a dataset in two parts."""
    reports = [manifest.report, *(entry.get("report", {}) for entry in manifest.history)]
    return [int(value, 16) for report in reports for value in report.get("val", {}).get("cut", [])]
