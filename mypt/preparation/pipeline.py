"""The stages of a preparation over the units of the input; each stage keeps what is finished in the staging folder."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from mypt.errors import DataError
from mypt.files import replace_text
from mypt.preparation.assignment import Resolution, resolve
from mypt.preparation.divide import divide
from mypt.preparation.encoding import finish_unit, load_encoder
from mypt.preparation.prescan import Survey, Surveyed, line_hashes, survey_unit
from mypt.preparation.report import SKIPPED_NAME, describe_invalid, invalid_files, total
from mypt.preparation.units import Finished, Piece, Work, rows
from mypt.preparation.workers import run_in_order
from mypt.preparation.write_splits import write_shards
from mypt.shards.format import SPLITS, Split
from mypt.shards.publishing import UNITS
from mypt.shards.settings import PrepareSettings
from mypt.shards.writer import ShardWriter
from mypt.terminal import progress_bar
from mypt.text.dedup import first_occurrences
from mypt.text.sources import Unit, digest, stamp
from mypt.tokenization.data_tokenizer import AnyTokenizer, DataTokenizer, read_data_tokenizer
from mypt.tokenization.fast import Encoder, choose_engine
from mypt.tokenization.load import save_tokenizer, tokenizer_hash
from mypt.tokenization.measure import describe_loss, measure_loss
from mypt.tokenization.train import TRAINED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SAMPLE_CHARACTERS = 25_000  # of real text from each of four units: on them a fast encoder has to prove itself
_LOSS_CHARACTERS = 250_000  # from each of four units, if the tokenizer changes those: how much of the text it loses


@dataclass
class Pipeline:
    """One preparation: `staging` holds what is finished, `units` is the input in order."""

    staging: Path
    settings: PrepareSettings
    units: list[Unit]
    workers: int
    say: Callable[[str], object]
    progress: bool
    pieces: list[Piece] = field(init=False)
    finished: list[Finished] = field(init=False, default_factory=list)
    engine: str = field(init=False, default="")
    loss: dict[str, Any] = field(init=False, default_factory=dict)  # `measure_loss`; empty if a sample lost nothing
    started: float = field(init=False, default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise DataError(f"workers is {self.workers}; it must be 1 or more (left out: one for each core)")
        self.pieces = [Piece(number, unit) for number, unit in enumerate(self.units)]

    @property
    def folder(self) -> Path:
        """Of the finished units."""
        return self.staging / UNITS

    def make_tokenizer(self, retrain: bool) -> DataTokenizer:
        """Make a tokenizer of a kind in TRAINED, unless a killed run has done so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record, key = self.folder / "tokenizer.key", self._corpus()
        kept = not retrain and record.is_file() and record.read_bytes() == key.encode()
        if kept and (tokenizer := read_data_tokenizer(self.staging)):
            self.say(f"using the tokenizer in {self.staging}, made from the same text (--retrain: make it again)")
            return tokenizer
        record.unlink(missing_ok=True)
        tokenizer = self._trained()
        save_tokenizer(tokenizer, self.staging)
        replace_text(record, key)
        return tokenizer

    def encode(self, tokenizer: AnyTokenizer, dtype: str) -> Work:
        """Encode every unit that is not finished yet. Keeps the tokenizer in the staging folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(tokenizer, self.staging)
        if self.settings.dedup == "line":
            self._mark_lines()
        sample = self._sample(_SAMPLE_CHARACTERS)
        self.engine = choose_engine(tokenizer.backend_tokenizer, sample, self.say)
        work = Work(
            folder=self.folder,
            settings=self.settings,
            tokenizer=self.staging / "tokenizer.json",
            tokenizer_hash=tokenizer_hash(tokenizer),
            engine=self.engine,
            dtype=dtype,
            eos_token_id=tokenizer.eos_token_id,
        )
        encoder = load_encoder(work, tokenizer.backend_tokenizer)
        self._measure_loss(tokenizer.backend_tokenizer, encoder, sample)
        done = list(self._each("encoding", finish_unit, lambda piece: (work, piece)))
        self.pieces, self.finished = [piece for piece, _ in done], [result for _, result in done]
        if dropped := sum(unit.counts.get("dropped_ids", 0) for unit in self.finished):
            self.say(
                f"{dropped:,} special tokens written in the text were dropped, since this tokenizer has no other ids "
                f"for them (EOS is {tokenizer.eos_token!r}); choose a tokenizer whose EOS does not occur in text"
            )
        return work

    def resolve(self) -> Resolution:
        """Which documents came before."""
        resolution = resolve(self.folder, len(self.pieces), self.settings, self.scratch())
        if not resolution.starts[-1]:
            found = [(n, why) for f in self.finished for why, n in (*f.dropped.items(), *f.skipped.items())]
            reasons = ", ".join(f"{n} {why}" for n, why in found) or "no document"
            files = describe_invalid(invalid_files(self.pieces, resolution), 0)[1:]
            raise DataError(
                "\n".join(
                    [f"the sources hold no text ({reasons}); give other files, or --no-filter to keep it", *files]
                )
            )
        return resolution

    def divide(self, resolution: Resolution, *, present: int = 0, hash_only: bool = False) -> dict | None:
        """Train and val of what is left, as `mypt.preparation.divide.divide` does it."""
        units = [piece.unit for piece in self.pieces]
        sources = [unit.source for unit in units]
        # How documents are dealt to ranks says nothing of the text.
        files = [u.paths[0] if len(u.paths) == 1 and u.kind != "rank" else u.source for u in units]
        return divide(resolution, sources, files, self.scratch(), self.say, present=present, hash_only=hash_only)

    def write(self, work: Work, resolution: Resolution) -> tuple[dict[str, Split], list[dict]]:
        """Shards in the staging folder; the splits, and name, counts and digest of each source."""
        for split in SPLITS:
            shutil.rmtree(self.staging / split, ignore_errors=True)
        writers = {
            split: ShardWriter(self.staging, split, work.dtype, self.settings.tokens_per_shard) for split in SPLITS
        }
        tokens = sum(int(rows(self.folder, piece.number)["tokens"].sum()) for piece in self.pieces)
        with self._bar("writing shards", tokens, "tokens") as bar:
            splits, counts = write_shards(work, resolution, self.pieces, writers, bar.update)
        digests = source_digests(self.units, [unit.digest for unit in self.finished])
        sources = []
        for name, found in counts.items():
            by_split = {split: found.pop(split) for split in SPLITS}  # documents
            sources.append({"name": name, **found, "splits": by_split, "xxh3_128": digests[name]})
        return splits, sources

    def write_skipped(self, before: Path | None = None) -> dict[str, int]:
        """`skipped.jsonl` in the staging folder, unless nothing was skipped: first the lines of the file `before`, then
        the new ones in the order of the input. Returns the number of new ones by reason.
        """
        (self.staging / SKIPPED_NAME).unlink(missing_ok=True)  # of a call that was killed
        lines = _lines(before) if before and before.is_file() else {}
        for piece, unit in zip(self.pieces, self.finished, strict=True):
            if unit.skipped:
                lines |= _lines(self.folder / f"{piece.number:05d}.skipped.jsonl")
        if skipped := total(unit.skipped for unit in self.finished):
            replace_text(self.staging / SKIPPED_NAME, "".join(f"{line}\n" for line in lines))
            found = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
            self.say(f"skipped what cannot be read ({found}); all of it is listed in {SKIPPED_NAME}")
        return skipped

    def scratch(self) -> Path:
        """An empty folder for files that nobody needs after a kill."""
        path = self.staging / UNITS / "scratch"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def facts(self) -> dict:
        """How it went: seconds, 10^6 bytes of text a second, the encoder, and the most memory of a process in MB."""
        seconds = time.perf_counter() - self.started
        text_bytes = sum(int(rows(self.folder, piece.number)["bytes"].sum()) for piece in self.pieces)
        encode_seconds = sum(unit.encode_seconds for unit in self.finished)
        return {
            "seconds": seconds,
            "mb_per_second": text_bytes / 1e6 / seconds,
            "engine": self.engine,
            "encode_mb_per_second": text_bytes / 1e6 / max(encode_seconds, 1e-9),
            "workers": min(self.workers, len(self.pieces)),
            "units": len(self.pieces),
            "peak_memory_mb": _peak_memory(),
        }

    def space(self) -> str:
        """What is kept of an unfinished preparation, and about how much more room the whole needs."""
        sizes = [path.stat().st_size for path in self.folder.glob("*.ids") if path.with_suffix(".json").is_file()]
        if not sizes:
            return "nothing was finished yet"
        needed = 2 * sum(sizes) * len(self.units) / len(sizes) - sum(sizes)  # the units, then the shards
        finished = f"{len(sizes)} of {len(self.units)} units are finished and kept"
        return f"{finished}, about {needed / 1e6:,.1f} MB more are needed"

    def _trained(self) -> DataTokenizer:
        kind = TRAINED[self.settings.tokenizer]
        collected, text_bytes = kind.collect(self.settings, 2**64), 0
        for piece, found in self._survey(lambda: collected.below):
            collected.merge((self.folder / f"{piece.number:05d}.sample").read_bytes())
            text_bytes += found.bytes
        return DataTokenizer.made(kind.make(collected, text_bytes, self.settings, self.say))

    def _survey(self, below: Callable[[], int] = lambda: 2**64) -> Iterator[tuple[Piece, Surveyed]]:
        survey = Survey(self.folder, self.settings, self._corpus())
        return self._each("reading", survey_unit, lambda piece: (survey, piece, below()))

    def _mark_lines(self) -> None:
        """Find the lines that came before, in the whole text, and give each piece its share of the verdict."""
        found = list(self._survey())
        keep = first_occurrences(line_hashes(self.folder, [piece for piece, _ in found]), self.scratch())
        start, pieces = 0, []
        for piece, surveyed in found:
            pieces.append(replace(piece, lines=np.packbits(keep[start : start + surveyed.lines])))
            start += surveyed.lines
        self.pieces = pieces

    def _each(self, what: str, function: Callable, call: Callable[[Piece], tuple]) -> Iterator[tuple[Piece, Any]]:
        """Each piece with function(*call(piece)), in order; of `max_documents` only those that are needed."""
        left = self.settings.max_documents
        with self._bar(what, len(self.pieces), "units") as bar:
            if left is None:
                results = run_in_order(function, map(call, self.pieces), min(self.workers, len(self.pieces)))
                for piece, result in zip(self.pieces, results, strict=True):
                    bar.update()
                    yield piece, result
                return
            for piece in self.pieces:
                if left == 0:
                    return
                piece = replace(piece, limit=left)
                result = function(*call(piece))
                left -= result.documents_read
                bar.update()
                yield piece, result

    def _corpus(self) -> str:
        """Changes with any unit and with any setting that decides a tokenizer."""
        content = [self.settings.training(), [[unit.to_dict(), stamp(unit)] for unit in self.units]]
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    def _measure_loss(self, backend: Tokenizer, encoder: Encoder, sample: list[str]) -> None:
        """Set `loss`, from ten times the sample if the sample is changed by encoding and decoding; say what is lost."""
        if measure_loss(backend, encoder, sample)["changed_texts"]:
            self.loss = measure_loss(backend, encoder, self._sample(_LOSS_CHARACTERS))
            self.say(f"on a sample of the text this tokenizer {describe_loss(self.loss)}")

    def _sample(self, characters: int) -> list[str]:
        """The beginnings of up to four units, spread over the input, `characters` from each."""
        texts = []
        for number in sorted({len(self.units) * part // 4 for part in range(4)}):
            left = characters
            for text, _ in Piece(number, self.units[number]).documents(self.settings.cleaner(), self.settings.on_fault):
                texts.append(text[:left])
                left -= len(text)
                if left <= 0:
                    break
        return texts

    def _bar(self, what: str, total: int, unit: str):
        return progress_bar(shown=self.progress, desc=what, total=total, unit=f" {unit}", unit_scale=True)


def _lines(path: Path) -> dict[str, None]:
    with open(path, encoding="utf-8", newline="\n") as file:
        return dict.fromkeys(line.rstrip("\n") for line in file)


def _peak_memory() -> int | None:
    """The most memory of this process or of an ended worker, in 10^6 bytes; None where the system keeps no count."""
    try:
        import resource
    except ImportError:
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak * (1024 if sys.platform == "linux" else 1) / 1e6)


def source_digests(units: list[Unit], digests: list[str]) -> dict[str, str]:
    """xxh3-128 of each source, from those of its units: renaming or touching a file does not change it."""
    totals: dict[str, xxhash.xxh3_128] = {}
    for unit, unit_digest in zip(units, digests, strict=False):  # with max_documents the last units are not read
        totals.setdefault(unit.source, xxhash.xxh3_128()).update(unit_digest.encode())
    return {source: total.hexdigest() for source, total in totals.items()}


def holds_sources(
    recorded: list[dict], units: list[Unit], partly: bool, digest_of: Callable[[Unit], str] = digest
) -> bool:
    """Whether the recorded digests are those of `units`; `partly`: of as many of their first units as were read."""
    wanted = [source.get("xxh3_128") for source in recorded]
    by_source: dict[str, list[Unit]] = {}
    for unit in units:
        by_source.setdefault(unit.source, []).append(unit)
    groups = list(by_source.values())
    if None in wanted or (not partly and len(groups) != len(wanted)):
        return False
    for group, expected in zip(groups, wanted, strict=False):
        total, found = xxhash.xxh3_128(), None
        for unit in group:
            total.update(digest_of(unit).encode())
            found = total.hexdigest()
            if partly and found == expected:
                break
        if found != expected:
            return False
    return len(groups) >= len(wanted)
