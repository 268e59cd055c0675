"""Encode the units of the input: documents to token ids on the disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from mypt.errors import DataError, TokenizerError
from mypt.preparation.prepare_run import PrepareRun
from mypt.preparation.prescan import mark_lines
from mypt.preparation.units import (
    ROW,
    EncodedText,
    EncodedUnit,
    EncodeJob,
    Piece,
    UnitResult,
    read_record,
    save_invalid,
    save_record,
)
from mypt.shards.format import DTYPES
from mypt.text.bad_records import SkippedRecords, stop
from mypt.text.clean import Cleaner
from mypt.text.dedup import text_hash
from mypt.text.plain import Document
from mypt.text.sources import Unit, digest, stamp
from mypt.tokenization.data_tokenizer import DataTokenizer
from mypt.tokenization.fast import Encoder, choose_engine
from mypt.tokenization.load import save_tokenizer, tokenizer_hash
from mypt.tokenization.statistics import describe_loss, measure_loss
from mypt.versions import version_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_BATCH_CHARACTERS = 1_000_000
_SAMPLE_CHARACTERS = 25_000  # of real text from each of four units: on them a fast encoder has to prove itself
_LOSS_CHARACTERS = 250_000  # from each of four units, if the tokenizer changes those: how much of the text it loses


def encode(run: PrepareRun, tokenizer: DataTokenizer | PreTrainedTokenizerFast, dtype: str) -> EncodedText:
    """Encode every unit that is not encoded yet. Keeps the tokenizer in the staging folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, run.staging)
    pieces = mark_lines(run) if run.settings.dedup == "line" else run.pieces
    backend, sample = tokenizer.backend_tokenizer, run.sample(_SAMPLE_CHARACTERS)
    job = EncodeJob(
        folder=run.folder,
        settings=run.settings,
        tokenizer=run.staging / "tokenizer.json",
        tokenizer_hash=tokenizer_hash(tokenizer),
        engine=choose_engine(backend, sample, run.say),
        dtype=dtype,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder, loss = load_encoder(job, backend), {}
    if measure_loss(backend, encoder, sample)["changed_texts"]:
        loss = measure_loss(backend, encoder, run.sample(_LOSS_CHARACTERS))
        run.say(f"on a sample of the text this tokenizer {describe_loss(loss)}")
    units = [
        EncodedUnit(piece.unit, result, _path(job, piece.number), dtype, piece)
        for piece, result in run.each("encoding", encode_unit, pieces, lambda piece: (job, piece))
    ]
    if dropped := sum(unit.result.counts.get("dropped_ids", 0) for unit in units):
        run.say(
            f"{dropped:,} special tokens written in the text were dropped, since this tokenizer has no other ids "
            f"for them (EOS is {tokenizer.eos_token!r}); choose a tokenizer whose EOS does not occur in text"
        )
    return EncodedText(job, units, job.engine, loss)


def encode_unit(job: EncodeJob, piece: Piece) -> UnitResult:
    """Encode a unit, unless that was done before with the same input and settings."""
    unit, before, skip = piece.unit, stamp(piece.unit), job.settings.on_error == "skip"
    content = [unit.to_dict(), before, job.settings.reading(), job.tokenizer_hash, job.dtype, piece.limit]
    key = xxhash.xxh3_128(json.dumps([version_of("mypt"), *content], sort_keys=True).encode())
    if piece.lines is not None:
        key.update(piece.lines.tobytes())
    path = _path(job, piece.number)
    record = path.with_suffix(".json")
    found = read_record(UnitResult, record, key.hexdigest())
    if found is not None and (skip or not found.skipped):
        return found
    record.unlink(missing_ok=True)
    input_digest, cleaner = digest(unit), job.settings.cleaner()
    faults = SkippedRecords(path.with_suffix(".skipped.jsonl")) if skip else None
    try:
        counted = write_unit(job, piece.number, unit, cleaner, piece.batches(cleaner, faults or stop))
    except TokenizerError as error:
        raise TokenizerError(f"{unit.name}: {error}") from None
    if stamp(unit) != before:
        raise DataError(f"{unit.name} changed while it was being prepared; run the same command again")
    skipped = faults.counts() if faults else {}
    return save_record(record, UnitResult(key=key.hexdigest(), digest=input_digest, skipped=skipped, **counted))


def write_unit(
    job: EncodeJob, number: int, unit: Unit, cleaner: Cleaner, batches: Iterable[list[Document]]
) -> dict[str, Any]:
    """Write the files of a unit but for its record; returns what was counted, as fields of `UnitResult`.

    `batches` are its documents, as `cleaner` leaves them.
    """
    path, writer = _path(job, number), BatchEncoder(job)
    special, before = writer.encoder.special, (writer.encoder.special.dropped, writer.encoder.special.unknown)
    tables, signed = [np.empty(0, ROW)], []
    with open(path.with_suffix(".ids"), "wb") as file:
        for documents in _large(batches):
            ids, rows = writer.encode(documents)
            file.write(ids.data)
            tables.append(rows)
            if job.settings.near_dedup is not None:
                from mypt.text.near_dedup import signatures

                # A document in parts is known by its last one.
                signed.append(signatures([text for text, ended in documents if ended]))
        file.flush()
        os.fsync(file.fileno())
    _save(path.with_suffix(".npy"), np.concatenate(tables))
    if signed:
        _save(path.with_suffix(".signatures.npy"), np.concatenate(signed))
    save_invalid(path, unit, cleaner)
    added = {"dropped_ids": special.dropped - before[0], "unknown_ids": special.unknown - before[1]}
    return {
        "documents_read": cleaner.counts["documents"],
        "counts": {name: cleaner.counts[name] for name in ("normalized", "invalid_utf8")}
        | {name: count for name, count in added.items() if count},
        "dropped": dict(cleaner.dropped),
        "dropped_lines": dict(cleaner.dropped_lines),
        "examples": cleaner.examples,
        "encode_seconds": writer.seconds,
    }


class BatchEncoder:
    """Encodes the documents of a unit batch by batch; a document may continue in the next one."""

    def __init__(self, job: EncodeJob) -> None:
        self.encoder = load_encoder(job)
        self.seconds = 0.0  # in the encoder
        self._eos, self._dtype = job.eos_token_id, DTYPES[job.dtype]
        self._open = np.empty(0, ROW)  # of the parts of a document that has not ended
        self._document: tuple | None = None  # its encoder and its digest

    def encode(self, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents, or parts of them.

        Returns:
            Their ids in the dtype of the job, (tokens,), with an EOS after each document; and the rows of the
            documents that end here, ROW (ended documents,).
        """
        texts, ended = zip(*documents, strict=True)
        data, ended = list(map(str.encode, texts)), np.array(ended)
        parts = np.empty(len(texts), ROW)
        parts["hash"] = np.fromiter(map(text_hash, data), np.uint64, len(data))
        parts["bytes"], parts["characters"] = list(map(len, data)), list(map(len, texts))
        is_part = ~ended  # of a longer document
        is_part[1:] |= ~ended[:-1]
        is_part[0] |= self._document is not None
        whole, began = np.flatnonzero(~is_part), time.perf_counter()
        ids, counts = self.encoder([texts[i] for i in whole.tolist()], parts["bytes"][whole])
        if len(whole) < len(texts):
            found = np.split(ids, np.cumsum(counts))[:-1]
            for i in np.flatnonzero(is_part).tolist():
                part_ids, parts["hash"][i] = self._part(texts[i], data[i], bool(ended[i]))
                found.insert(i, part_ids)
            ids, counts = np.concatenate(found), np.fromiter(map(len, found), np.int64, len(found))
        self.seconds += time.perf_counter() - began
        ids = np.insert(ids.astype(self._dtype), np.cumsum(counts)[ended], self._eos)
        parts["tokens"] = counts + ended
        last = len(self._open) + np.flatnonzero(ended)
        parts = np.concatenate([self._open, parts])
        rows = parts[last]  # whose hash is that of the whole
        for name in ("tokens", "bytes", "characters"):
            rows[name] = np.diff(np.cumsum(parts[name])[last], prepend=0)
        self._open = parts[last[-1] + 1 :] if len(last) else parts
        return ids, rows

    def _part(self, text: str, data: bytes, ended: bool) -> tuple[np.ndarray, int]:
        """The ids that are certain with this part, and the hash of the document so far."""
        encode, digest = self._document or (self.encoder.document(), xxhash.xxh3_64())
        digest.update(data)
        self._document = None if ended else (encode, digest)
        return encode(text, ended), digest.intdigest()


def _path(job: EncodeJob, number: int) -> Path:
    return job.folder / f"{number:05d}"


def _large(batches: Iterable[list[Document]]) -> Iterator[list[Document]]:
    """The same documents in batches of _BATCH_CHARACTERS or more."""
    held, characters = [], 0
    for batch in batches:
        held += batch
        characters += sum(len(text) for text, _ in batch)
        if characters >= _BATCH_CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


_ENCODERS: dict[tuple, Encoder] = {}  # of this process, the last one: loading a large vocabulary takes a second


def load_encoder(job: EncodeJob, backend: Tokenizer | None = None) -> Encoder:
    """The encoder of a preparation; `backend` is the tokenizer in `job.tokenizer`, if it is loaded already."""
    # The hash shows whether the path holds another tokenizer by now.
    key = (job.tokenizer, job.engine, job.eos_token_id, job.tokenizer_hash)
    if key not in _ENCODERS:
        _ENCODERS.clear()
        _ENCODERS[key] = Encoder(backend or job.tokenizer, job.engine, job.eos_token_id)
    return _ENCODERS[key]
