"""A preparation whose units are made elsewhere: each rank of a distributed job makes one, and one task joins them.

`start` (where the tokenizer can be had), `write_rank` (in each rank) and `finish` (when all ranks are done) share
OUT/.preparing/units: launch.json and tokenizer/, an empty file N.ranks (of how many ranks the job is), and the files of
finished units. A rank works in a folder of its own there, so a kill leaves a unit whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice, tee
from pathlib import Path
from typing import Any, Literal

import xxhash

from mypt.errors import DataError, TokenizerError
from mypt.files import replace_text
from mypt.folders import only_writer
from mypt.json_files import Count, read_json
from mypt.preparation.assignment import assign
from mypt.preparation.encoding import write_unit
from mypt.preparation.prepare import write_dataset
from mypt.preparation.prepare_run import PrepareRun, few
from mypt.preparation.report import require_documents
from mypt.preparation.units import EncodedText, EncodedUnit, EncodeJob, UnitResult, files_are_whole, save_record
from mypt.shards.format import METADATA_NAME, Manifest, dtype_for, read_manifest
from mypt.shards.publishing import LAUNCH, STAGING, UNITS, previous_manifest, publish, require_dataset_folder
from mypt.shards.settings import PrepareSettings
from mypt.terminal import say_error
from mypt.text.dedup import text_hash
from mypt.text.plain import Document, cut_text
from mypt.text.sources import Unit
from mypt.tokenization.data_tokenizer import load_data_tokenizer
from mypt.tokenization.fast import choose_engine
from mypt.tokenization.load import largest_id, save_tokenizer, tokenizer_hash
from mypt.tokenization.train import TRAINED

_ENGINES: dict[str, str] = {}  # the encoder for each tokenizer (by hash): every process chooses once
_NAMED = 10  # ranks in a message
_TOGETHER = 16  # documents that are hashed at once
_NOT_OURS = {
    "text_column": "the reader of the documents knows where their text is",
    "max_documents": "limit the reader of the documents",
    "vocab_size": "the tokenizer is made before",
    "on_error": "the reader of the documents meets the errors",
}


@dataclass(frozen=True)
class Launch:
    """The settings that all ranks share: the contents of launch.json."""

    source: str
    tokenizer: str  # as it was given
    tokenizer_hash: str
    dtype: Literal["uint16", "uint32"]
    eos_token_id: Count
    settings: PrepareSettings

    @classmethod
    def read(cls, folder: Path) -> Launch:
        return read_json(folder / LAUNCH, cls, DataError, f"remove {folder.parent} and start again")

    def job(self, folder: Path, engine: str = "tokenizers") -> EncodeJob:
        tokenizer = folder / "tokenizer" / "tokenizer.json"
        return EncodeJob(folder, self.settings, tokenizer, self.tokenizer_hash, engine, self.dtype, self.eos_token_id)

    def key(self, rank: int, ranks: int) -> str:
        """A hash of all that decides a unit, except the documents that the rank is given."""
        content = [self.source, self.tokenizer_hash, self.dtype, self.settings.reading(), rank, ranks]
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


class RankUnit(EncodedUnit):
    """The unit of a rank: its text is gone, and is decoded from its tokens."""

    def parts(self, row: int, job: EncodeJob) -> Iterator[Document]:
        """Raises DataError if the tokenizer does not give back the very text that it encoded."""
        from tokenizers import Tokenizer

        table = self.rows
        end = int(table["tokens"][: row + 1].sum())
        ids = self.ids[end - int(table["tokens"][row]) : end - 1]
        text = Tokenizer.from_file(str(job.tokenizer)).decode(ids.tolist(), skip_special_tokens=False)
        if text_hash(text.encode()) != table["hash"][row]:
            raise DataError(
                f"val begins inside document {row} of {self.unit.name}, which this tokenizer cannot give back for the "
                "cut; use val_split hash, or val_fraction 0"
            )
        return cut_text(text, "file")


def start(out: str | Path, tokenizer: str | Path, source: str, **settings: Any) -> None:
    """Lay down the tokenizer and the settings for all ranks; nothing happens if `out` is finished with the same.

    `tokenizer` is gpt2, a directory or a hub id; `source` is the name of the text in the metadata; `settings` are
    the fields of `PrepareSettings`. Raises DataError for settings that are out of range or need the whole text and for
    an `out` that holds something else, and TokenizerError for the tokenizer.
    """
    name, out = str(tokenizer), Path(out)
    if name in TRAINED:
        raise TokenizerError(
            f"tokenizer {name} is made from the whole text, which no rank sees; make it of a part of it with "
            "`mypt tokenizer`, and give that directory"
        )
    for setting in _NOT_OURS.keys() & settings.keys():
        raise DataError(f"{setting} is not for ranks: {_NOT_OURS[setting]}; leave it out")
    loaded = load_data_tokenizer(name)
    known = tokenizer_hash(loaded)
    chosen = PrepareSettings.of(name if name == "gpt2" else f"xxh3-128:{known}", **settings)
    if chosen.dedup == "line":
        raise DataError("dedup line needs the whole text before it is encoded, which no rank sees; use dedup document")
    require_dataset_folder(out, "datatrove's MyPTWriter")
    with only_writer(out):
        folder = out / STAGING / UNITS
        launch = Launch(source, name, known, dtype_for(largest_id(loaded)), loaded.eos_token_id, chosen)
        launched = (folder / LAUNCH).is_file()
        if not launched:
            publish(out)  # what a killed `mypt prepare` had ready
        if (out / METADATA_NAME).is_file():
            if previous_manifest(out, chosen, lambda sources: [found["name"] for found in sources] == [source]):
                return
            raise DataError(f"{out} is damaged, files are missing; remove it to make it again, or choose another one")
        if launched and Launch.read(folder) == launch:
            return  # ranks may be at work
        if not launched:
            shutil.rmtree(out / STAGING, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(loaded, folder / "tokenizer")
        replace_text(folder / LAUNCH, json.dumps(asdict(launch)))


def write_rank(out: str | Path, rank: int, ranks: int, texts: Iterable[str]) -> UnitResult:
    """Clean, hash and encode the documents of one rank of `ranks`; what an earlier attempt left is replaced.

    Raises DataError if `start` was not called for `out`, or `out` is finished.
    """
    from tokenizers import Tokenizer

    out, folder = Path(out), Path(out) / STAGING / UNITS
    launch, name = _launch(out), f"{rank:05d}"
    (folder / f"{ranks}.ranks").touch()
    for left in folder.glob(f"{name}.*.rank"):
        shutil.rmtree(left, ignore_errors=True)
    own = Path(tempfile.mkdtemp(".rank", f"{name}.", folder))
    cleaner, seen = launch.settings.cleaner(), xxhash.xxh3_128(b"rank")
    documents = cleaner(_documents(texts, launch.settings.document or "file", seen))
    if launch.tokenizer_hash not in _ENGINES:
        sample, documents = tee(documents)
        backend = Tokenizer.from_file(str(launch.job(folder).tokenizer))
        _ENGINES[launch.tokenizer_hash] = choose_engine(backend, (text for text, _ in sample), say_error)
        del sample  # which would keep all documents
    job = replace(launch.job(folder, _ENGINES[launch.tokenizer_hash]), folder=own)
    batches = iter(lambda: list(islice(documents, _TOGETHER)), [])
    counted = write_unit(job, rank, _unit(launch, rank), cleaner, batches)
    result = UnitResult(key=launch.key(rank, ranks), digest=seen.hexdigest(), **counted)
    result = save_record(own / f"{name}.json", result)
    (folder / f"{name}.json").unlink(missing_ok=True)
    for suffix in ("ids", "signatures.npy", "invalid.npy", "npy", "json"):  # the record last
        if (own / f"{name}.{suffix}").is_file():
            os.replace(own / f"{name}.{suffix}", folder / f"{name}.{suffix}")
        else:  # of an attempt before this one
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    own.rmdir()
    return result


def finish(out: str | Path, say: Callable[[str], object] | None = None) -> Manifest:
    """Join the units of all ranks into the dataset directory `out`, in the order of the ranks; return its manifest.

    A killed call is repeated; if `out` is finished, it is left as it is. Raises DataError if a rank is missing (all are
    named), if ranks disagree, and as `prepare_dataset` does for splits and a full disk.
    """
    out, say = Path(out), say or say_error
    with only_writer(out):
        publish(out)  # what a killed call had ready
        staging, folder = out / STAGING, out / STAGING / UNITS
        if (out / METADATA_NAME).is_file():
            shutil.rmtree(staging, ignore_errors=True)
            say(f"{out} is finished")
            return read_manifest(out)
        launch = _launch(out)
        units = [
            RankUnit(_unit(launch, rank), result, folder / f"{rank:05d}", launch.dtype)
            for rank, result in enumerate(_results(folder, launch))
        ]
        run = PrepareRun(staging, launch.settings, [unit.unit for unit in units], 1, say, progress=False)
        with run.disk_errors():
            tokenizer = load_data_tokenizer(folder / "tokenizer")
            save_tokenizer(tokenizer, staging)
            encoded = EncodedText(launch.job(folder), units, engine="as each rank chose")
            require_documents(encoded)
            assignment = assign(run, encoded)
            manifest, info = write_dataset(run, encoded, assignment, tokenizer, launch.tokenizer)
            publish(out, manifest)
    return replace(manifest, report=manifest.report | info)


def _unit(launch: Launch, rank: int) -> Unit:
    return Unit(launch.source, "rank", (f"rank {rank}",))


def _launch(out: Path) -> Launch:
    if (out / METADATA_NAME).is_file():
        raise DataError(f"{out} is finished; remove it to make it again, or choose another one")
    if not (out / STAGING / UNITS / LAUNCH).is_file():
        raise DataError(f"{out} is not being prepared by ranks; start it first, or choose another one")
    return Launch.read(out / STAGING / UNITS)


def _results(folder: Path, launch: Launch) -> list[UnitResult]:
    """Read the record of each rank, in order. Raises DataError unless all are there and made alike."""
    sizes = sorted(int(path.stem) for path in folder.glob("*.ranks"))
    if len(sizes) != 1:
        tasks = " and ".join(map(str, sizes))
        raise DataError(
            f"{folder.parent} holds units of {tasks} ranks; remove it and run all ranks again, as one number of them"
            if sizes
            else f"no rank has been run for {folder.parent.parent}; run them before they are joined"
        )
    found = []
    problems = {"not finished": [], "made with other settings or another tokenizer": [], "damaged": []}
    missing, other, damaged = problems.values()
    for rank in range(sizes[0]):
        record = folder / f"{rank:05d}.json"
        if not record.is_file():
            missing.append(rank)
            continue
        found.append(read_json(record, UnitResult, DataError, f"run rank {rank} again"))
        if found[-1].key != launch.key(rank, sizes[0]):
            other.append(rank)
        elif not files_are_whole(folder, found[-1].files):
            damaged.append(rank)
    for what, ranks in problems.items():
        if ranks:
            raise DataError(
                f"{len(ranks)} of {sizes[0]} ranks are {what}: {few(ranks, _NAMED)}; run them again (datatrove leaves "
                "out what its logging_dir counts as completed; skip_completed=False runs all)"
            )
    return found


def _documents(texts: Iterable[str], document: str, seen: xxhash.xxh3_128) -> Iterator[Document]:
    for text in texts:
        seen.update(f"{len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
        yield from cut_text(text, document)
