"""Text to a dataset directory: find the units, get the tokenizer, encode, resolve, write the shards, publish them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import DataError, worded
from mypt.folders import only_writer
from mypt.preparation.append import append_shards, appended, only_appender
from mypt.preparation.assignment import Resolution, require_text
from mypt.preparation.overlap import held_documents
from mypt.preparation.pipeline import TRAINED, Pipeline, holds_sources
from mypt.preparation.report import SKIPPED_NAME, count, describe_invalid, examples, invalid_files, write_report
from mypt.preparation.units import Work
from mypt.shards.format import Manifest, Split, dtype_for, read_manifest
from mypt.shards.publishing import (
    LAUNCH,
    STAGING,
    own_tokenizer,
    previous_manifest,
    publish,
    require_dataset_folder,
    write_error,
)
from mypt.shards.settings import PrepareSettings
from mypt.terminal import say
from mypt.text.sources import Unit, digest, find_units
from mypt.tokenization.data_tokenizer import load_data_tokenizer
from mypt.tokenization.load import largest_id, tokenizer_hash

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

    `sources` are what `find_units` takes: files, globs, HF dataset directories, hf:// names; `tokenizer` is bpe, char,
    gpt2, a directory with a tokenizer or a hub id; `settings` are the fields of `PrepareSettings`, by name.
    `hash_only`: val_split hash is not corrected by tails of sources (docs/prepare.md).

    The same input and settings give the same bytes for any number of `workers` (processes). A killed call goes on where
    it was when it is repeated. A directory that already holds the same is returned at once unless `retrain`. The
    returned `report` also has `notes` and how it went (`Pipeline.facts`), which are not written into the metadata.
    Raises DataError for unusable sources, settings, splits or a full disk, and TokenizerError for the tokenizer;
    what `out` held is then untouched.
    """
    name, notes = str(tokenizer), []
    say = partial(_say, notes, progress)
    loaded = None if name in (*TRAINED, "gpt2") else load_data_tokenizer(name, say)
    chosen = PrepareSettings.of(f"xxh3-128:{tokenizer_hash(loaded)}" if loaded else name, **settings)
    out = Path(out)
    require_dataset_folder(out, "mypt prepare")
    units = _find(sources, chosen, say)
    pipeline = Pipeline(out / STAGING, chosen, units, workers, say, progress)
    partly = chosen.max_documents is not None
    with disk_errors(out, pipeline), only_writer(out):
        if (pipeline.folder / LAUNCH).is_file():
            raise DataError(
                f"{out} is being prepared by ranks (docs/datatrove.md); finish that, or choose another --out"
            )
        publish(out)  # what a killed call had ready
        previous = previous_manifest(out, chosen, partial(holds_sources, units=units, partly=partly))
        if previous and not retrain:
            if chosen.on_error == "stop" and (skipped := previous.report.get("skipped")):
                raise DataError(
                    f"{out} was prepared with --on-error skip, and {sum(skipped.values()):,} records or files were "
                    f"skipped ({out / SKIPPED_NAME}); give --on-error skip again, or choose another --out"
                )
            say(f"{out} is already prepared from the same text with the same settings")
            shutil.rmtree(pipeline.staging, ignore_errors=True)  # of a call that was killed when all was done
            return previous
        loaded = loaded or (pipeline.make_tokenizer(retrain) if name in TRAINED else load_data_tokenizer(name))
        if chosen.val_split == "tail" and not chosen.normalize:
            say("val is the tail of the text, which is kept as it is (--normalize changes it)")
        work = pipeline.encode(loaded, dtype_for(largest_id(loaded)))
        manifest, run = join_units(pipeline, work, loaded, name, hash_only)
        if not manifest.report.get("skipped"):
            (out / SKIPPED_NAME).unlink(missing_ok=True)
        publish(out, manifest)
    manifest.report |= {"notes": notes, **run}
    return manifest


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

    Documents that the directory holds already are dropped if it was made so. A killed call goes on where it was; at any
    moment the directory is as it was or as it shall be. Raises as `prepare_dataset` does.
    """
    directory, say = Path(directory), partial(_say, [], progress)
    with only_appender(directory):
        manifest = read_manifest(directory)
        tokenizer = own_tokenizer(directory, manifest)
        settings = _settings_again(manifest, text_column, max_documents, on_error)
        units = _find(sources, settings, say)
        if _holds_text(manifest, units, settings):
            say(f"{directory} already holds this text")
            shutil.rmtree(directory / STAGING, ignore_errors=True)  # of a call that was killed when all was done
            return manifest
        pipeline = Pipeline(directory / STAGING, settings, units, workers, say, progress)
        with disk_errors(directory, pipeline):
            work = pipeline.encode(tokenizer, manifest.dtype)
            resolution = pipeline.resolve()
            resolution.drop_texts(_cut_before(manifest))
            if settings.dedup:
                scratch = pipeline.scratch()
                resolution.drop_held(held_documents(directory, manifest, scratch), work.dtype, scratch)
            if not any(resolution.kept(unit).any() for unit in resolution.units):
                say(f"{directory} already holds every document of this text")
                shutil.rmtree(pipeline.staging)
                return manifest
            replaced = pipeline.divide(resolution, present=sum(split.tokens for split in manifest.splits.values()))
            splits, added = pipeline.write(work, resolution)
            report = counted(pipeline, resolution, splits)
            report |= {"val": replaced} if replaced else {}
            _say_invalid(pipeline, resolution, report)
            if pipeline.write_skipped(before=directory / SKIPPED_NAME):
                os.replace(pipeline.staging / SKIPPED_NAME, directory / SKIPPED_NAME)
            new = replace(manifest, splits=splits, sources=added)
            entry = {"did": "append", "text": added, "read": _reading(settings), "report": report}
            manifest = append_shards(directory, pipeline.staging, new, entry)
        shutil.rmtree(pipeline.staging)
    return manifest


def _cut_before(manifest: Manifest) -> list[int]:
    """The hashes of the texts that are in a dataset in two parts."""
    reports = [manifest.report, *(entry.get("report", {}) for entry in manifest.history)]
    return [int(value, 16) for report in reports for value in report.get("val", {}).get("cut", [])]


def _settings_again(manifest: Manifest, text_column: str, max_documents: int | None, on_error: str) -> PrepareSettings:
    """The settings that made a dataset, but with its tokenizer; the defaults where it knows none."""
    kept = {field.name for field in fields(PrepareSettings)} - {"tokenizer", "vocab_size"}
    given = {name: value for name, value in manifest.settings.items() if name in kept}
    if not manifest.splits.get("val") or not manifest.splits["val"].shards:
        given["val_fraction"] = 0.0  # it has no val split and gets none
    given |= {"text_column": text_column, "max_documents": max_documents, "on_error": on_error}
    return PrepareSettings.of(f"xxh3-128:{manifest.tokenizer_hash}", **given)


def _reading(settings: PrepareSettings) -> dict[str, Any]:
    """What decides which part of a source is read."""
    return {"text_column": settings.text_column, "max_documents": settings.max_documents}


def _holds_text(manifest: Manifest, units: list[Unit], settings: PrepareSettings) -> bool:
    """Whether a dataset was made of these units, or had them appended, read in the same way."""
    texts = [(entry["text"], entry.get("read")) for entry in appended(manifest) if "text" in entry]
    if manifest.settings and not any(entry["did"] == "subset" for entry in manifest.history):
        first = manifest.sources[: len({unit.source for unit in units})]
        texts.append((first, {name: manifest.settings.get(name) for name in _reading(settings)}))
    partly, digest_of = settings.max_documents is not None, cache(digest)  # a text is read once, however many there are
    return any(read == _reading(settings) and holds_sources(text, units, partly, digest_of) for text, read in texts)


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


@contextmanager
def disk_errors(out: Path, pipeline: Pipeline) -> Iterator[None]:
    """Turn an OSError into a line for the user, which says what of `pipeline` is kept."""
    try:
        yield
    except OSError as error:
        raise write_error(error, out, pipeline.space()) from None


def counted(pipeline: Pipeline, resolution: Resolution, splits: dict[str, Split]) -> dict[str, Any]:
    """The counts of a preparation, and what its tokenizer loses if it does not give a sample of the text back."""
    report = count(pipeline.finished, resolution, splits, pipeline.scratch())
    return report | ({"loss": pipeline.loss} if pipeline.loss else {})


def join_units(
    pipeline: Pipeline, work: Work, tokenizer: PreTrainedTokenizerFast, name: str, hash_only: bool = False
) -> tuple[Manifest, dict]:
    """Shards and report of the finished units, in the staging directory; returns its metadata, and how it went."""
    resolution = pipeline.resolve()
    replaced = pipeline.divide(resolution, hash_only=hash_only)
    require_text(resolution)
    splits, sources = pipeline.write(work, resolution)
    manifest = Manifest(
        dtype=work.dtype,
        vocab_size=largest_id(tokenizer) + 1,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_hash=work.tokenizer_hash,
        splits=splits,
        sources=sources,
        settings=pipeline.settings.deciding(),
        report=counted(pipeline, resolution, splits) | {"tokenizer": name},
    )
    report = manifest.report
    report |= {"val": replaced} if replaced else {}
    invalid = _say_invalid(pipeline, resolution, report)
    if report["contaminated"]:
        pipeline.say(
            f"{report['contaminated']:,} documents are in train and in val: leave out --no-dedup or split by hash"
        )
    pipeline.write_skipped()
    run = pipeline.facts()
    write_report(pipeline.staging, manifest, examples(pipeline.finished, resolution, work, tokenizer), invalid, run)
    return manifest, run


def _say_invalid(pipeline: Pipeline, resolution: Resolution, report: dict) -> list[dict]:
    """Print and return the files that hold bytes that were not UTF-8."""
    files = invalid_files(pipeline.pieces, resolution)
    if files:
        for line in describe_invalid(files, report["invalid_utf8"]):
            pipeline.say(line)
    return files
