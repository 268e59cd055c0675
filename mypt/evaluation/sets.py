"""The evaluation sets of each model: a dataset directory, or a text that the model's own tokenizer encodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from mypt.errors import DataError, MyPTError, TokenizerError
from mypt.shards.format import Manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.reader import check_files
from mypt.text.clean import Cleaner
from mypt.text.sources import find_units, read_documents
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import (
    lacks_tokenizer,
    load_tokenizer,
    model_tokenizer,
    require_model_tokenizer,
    tokenizer_hash,
)
from mypt.tokenization.token_bytes import TextOf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mypt.streams.eval_windows import EvalWindows
    from mypt.streams.rolling_windows import RollingWindows

# What `--data NAME=...` names: a dataset directory, several of one text joined by commas, or a file; in Python also
# the texts themselves.
Source = str | Sequence[str]


@dataclass(frozen=True)
class EvaluationSet:
    """The targets of one set for the models of one tokenizer, and what is known of the text that they come from.

    Attributes:
        windows: What the models get.
        tokenizer: The one of the ids; None for a dataset directory that holds none.
        directory, manifest: Of a dataset directory; None for a text.
        split: val or train.
        rolling: Whether the windows are `RollingWindows`.
    """

    windows: EvalWindows | RollingWindows
    tokenizer: PreTrainedTokenizerFast | None
    directory: Path | None = None
    manifest: Manifest | None = None
    split: str = "val"
    rolling: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes with any token, as `Manifest.fingerprint`."""
        return self.windows.reader.fingerprint

    @cached_property
    def ids(self) -> np.ndarray:
        """All ids of the split, (tokens,), in the dtype of the shards."""
        reader = self.windows.reader
        return reader.gather(np.array([0]), len(reader))[0]

    @cached_property
    def ends(self) -> np.ndarray:
        """Place of every EOS among the ids, int64 (documents,); a last document may have none."""
        return np.flatnonzero(self.ids == self.windows.reader.eos_token_id)

    @property
    def firsts(self) -> np.ndarray:
        """Place of the first target of each window, int64 (n,)."""
        return self.windows.firsts if self.rolling else self.windows.starts + 1

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each target among the ids, int64 (targets,)."""
        return np.repeat(self.firsts, self.windows.lengths) + self._offsets

    @property
    def contexts(self) -> np.ndarray:
        """Tokens that each target is predicted from, the prefix token included; int64 (targets,), 1 to block_size."""
        reach = np.repeat(self.windows.reach, self.windows.lengths) if self.rolling else 0
        return self._offsets + reach + 1

    @cached_property
    def _offsets(self) -> np.ndarray:
        lengths = self.windows.lengths
        return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    @property
    def documents_of_windows(self) -> np.ndarray:
        """Number of the document in which the targets of each window begin, int64 (n,)."""
        return np.searchsorted(self.ends, self.firsts)

    @property
    def documents_of_targets(self) -> np.ndarray:
        """Number of the document of each target, its EOS included, int64 (targets,)."""
        return np.searchsorted(self.ends, self.places)

    @cached_property
    def bytes_of_ids(self) -> np.ndarray | None:
        """UTF-8 bytes of text of each id of the split, int64 (tokens,); None where a tokenizer does not tell them."""
        text = self.tokenizer and TextOf(self.tokenizer)
        return text.lengths[self.ids] if text and text.lengths is not None else None

    @cached_property
    def documents(self) -> list[tuple[int, str]]:
        """UTF-8 bytes and hash of the text of each document.

        Raises TokenizerError for a dataset directory without a tokenizer.
        """
        if self.tokenizer is None:
            raise TokenizerError(f"{self.directory} holds no tokenizer, so its text cannot be compared with another")
        text = TextOf(self.tokenizer)
        parts = np.split(self.ids, self.ends + 1)
        texts = [text(part) for part in (parts if len(parts[-1]) else parts[:-1])]
        return [(len(content), xxhash.xxh3_128_hexdigest(content)) for content in texts]


def directories(source: Source) -> list[str]:
    """The dataset directories that a source names; none if it is a text."""
    if not isinstance(source, str) or Path(source).is_file():
        return []
    return [source] if Path(source).is_dir() else source.split(",")


def require_source(name: str, source: Source, split: str, models: list[str]) -> None:
    """Check what can be checked without torch. Raises MyPTError, as `open_set` does."""
    for directory in directories(source):
        check_files(Path(directory), open_dataset(directory), split)
    if not directories(source):
        if split != "val":
            raise MyPTError(f"--split {split} is of dataset directories, and the set {name} is a text; leave it out")
        if bare := next(filter(lacks_tokenizer, models), None):
            raise TokenizerError(f"model {bare} holds no tokenizer to encode {name} with; name a dataset directory")
        if isinstance(source, str):
            find_units([source])


def require_parts(kinds: list[str], data: dict[str, Source], split: str) -> None:
    """Raise DataError if the losses of a set cannot be divided as asked."""
    if "source" not in kinds:
        return
    for name, source in data.items():
        if not directories(source):
            raise DataError(f"--by source needs dataset directories, and the set {name} is a text of one source")
        for directory in directories(source):
            source_ends(directory, open_dataset(directory), split)


def source_ends(directory: str, manifest: Manifest, split: str) -> tuple[list[str], np.ndarray]:
    """Names of the sources, and the number of documents of the split up to the end of each, int64 (sources,)."""
    counts = [source.get("splits", {}).get(split) for source in manifest.sources]
    if not counts or None in counts or sum(counts) != manifest.splits[split].documents:
        raise DataError(
            f"the metadata of {directory} does not say which documents of {split} came of which source; prepare it "
            "again for --by source"
        )
    return [source["name"] for source in manifest.sources], np.cumsum(counts)


def open_set(
    name: str,
    source: Source,
    model: str,
    vocab_size: int,
    *,
    block_size: int,
    split: str = "val",
    document_mask: bool = False,
    definition: str = "windows",
) -> EvaluationSet:
    """The evaluation set of one model.

    Args:
        name: What messages call the set.
        source: A dataset directory of the model's tokenizer, several of which one is, or a text.
        vocab_size: Ids that the model knows.
        definition: One of `mypt.checkpoints.evaluations.DEFINITIONS`.

    Raises:
        TokenizerError: No directory is of the model's tokenizer, or its ids are not the model's.
        DataError: There is no text.
    """
    from mypt.streams.eval_windows import EvalWindows
    from mypt.streams.rolling_windows import RollingWindows

    tokenizer, given = model_tokenizer(model), directories(source)
    if given:
        directory, manifest = _directory_of(name, given, model, vocab_size, tokenizer)
        windows = EvalWindows(directory, split, block_size=block_size, document_mask=document_mask, manifest=manifest)
        if tokenizer is None and not lacks_tokenizer(directory):
            tokenizer = load_tokenizer(directory)
        found = {"directory": directory, "manifest": manifest, "split": split}
    else:
        texts = list(read_texts(source) if isinstance(source, str) else source)
        encoded = zip(encode_documents(tokenizer, texts), (len(text.encode()) for text in texts), strict=True)
        options = {"block_size": block_size, "document_mask": document_mask}
        windows, found = EvalWindows.from_encoded(encoded, tokenizer.eos_token_id, **options), {}
        if windows.reader.largest_id >= vocab_size:
            raise TokenizerError(
                f"the tokenizer of model {model} gives the id {windows.reader.largest_id}, the model knows "
                f"{vocab_size} ids; they do not belong together"
            )
    if definition == "rolling":
        prefix = windows.reader.eos_token_id
        if tokenizer is not None and tokenizer.bos_token_id is not None and tokenizer.bos_token_id < vocab_size:
            prefix = tokenizer.bos_token_id
        windows = RollingWindows(windows.reader, block_size=block_size, prefix_token_id=prefix)
        found["rolling"] = True
    return EvaluationSet(windows, tokenizer, **found)


def _directory_of(
    name: str, given: list[str], model: str, vocab_size: int, tokenizer: PreTrainedTokenizerFast | None
) -> tuple[Path, Manifest]:
    """The directory that the model's tokenizer encoded."""
    manifests = {directory: open_dataset(directory) for directory in given}
    wanted = tokenizer and tokenizer_hash(tokenizer)
    fitting = [directory for directory, manifest in manifests.items() if manifest.tokenizer_hash == wanted]
    if len(given) > 1 and not fitting:
        raise TokenizerError(
            f"none of {', '.join(given)} has the tokenizer of model {model}; add the same text prepared with "
            f"`mypt prepare --tokenizer {model}`"
        )
    directory = (fitting or given)[0]
    manifest = manifests[directory]
    require_model_tokenizer(model, vocab_size, f"the data of {name}", manifest.tokenizer_hash, manifest.vocab_size)
    return Path(directory), manifest


def require_same_text(name: str, first: EvaluationSet, other: EvaluationSet) -> None:
    """Raise DataError unless two sets are the same documents, compared by their bytes, whatever the tokenizers."""
    if first.directory is None and other.directory is None:  # both are encoded of one text here
        return
    pairs = list(zip(first.documents, other.documents, strict=False))
    places = (f"{each.directory} ({each.split})" for each in (first, other))
    differs = next((number for number, (one, two) in enumerate(pairs, 1) if one != two), None)
    if differs is not None or len(first.documents) != len(other.documents):
        what = (
            f"document {differs} of {len(pairs)}"
            if differs is not None
            else f"{len(first.documents)} and {len(other.documents)} documents"
        )
        raise DataError(
            f"the set {name} is not the same text in {' and '.join(places)}: {what} differ; prepare both from one text "
            "with the same settings, or give the text itself as NAME=FILE"
        )


def read_texts(path: str) -> Iterator[str]:
    """The documents of a text file or of records, as they are: bytes that are not UTF-8 become U+FFFD."""
    documents = chain.from_iterable(read_documents(unit) for unit in find_units([path]))
    parts: list[str] = []
    for text, ended in Cleaner(normalize=False, filter=None)(documents):
        parts.append(text)
        if ended:
            yield "".join(parts)
            parts = []
    if parts:
        yield "".join(parts)
