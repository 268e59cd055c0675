"""Stream datasets of the Hugging Face hub shard by shard; login is the hub library's own (`hf auth login`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mypt import hub_errors
from mypt.errors import DataError, chain
from mypt.text.tables import require_text, strings

if TYPE_CHECKING:
    from datasets import IterableDataset

PREFIX = "hf://"
_NAME = re.compile(r"hf://(?P<name>[^:@#]+)(:(?P<config>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?")
_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".yaml", ".bin")

_ROWS = 1000  # read at a time


class _Place(NamedTuple):
    """A dataset of the hub, one split of it, at one revision."""

    name: str
    config: str | None
    revision: str | None
    split: str

    @classmethod
    def parse(cls, source: str) -> _Place:
        match = _NAME.fullmatch(source)
        if not match:
            raise DataError(f"source {source!r} is not of the form hf://NAME[:CONFIG][@REVISION][#SPLIT]")
        return cls(match["name"].strip("/"), match["config"], match["revision"], match["split"] or "train")

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.name}{config}{revision}#{self.split}"


def resolve(source: str) -> tuple[str, int]:
    """The source with its revision fixed to a commit and its split named, and the number of its shards.

    Raises DataError if there is no such dataset, configuration, revision or split, if it may not be read, and if the
    hub can't be reached.
    """
    from huggingface_hub import HfApi

    place = _Place.parse(source)
    try:
        commit = HfApi().dataset_info(place.name, revision=place.revision).sha
        resolved = str(place._replace(revision=commit))
        return resolved, _open(resolved).num_shards
    except Exception as error:
        raise _explained(place, error) from None


def documents(place: str) -> int:
    """The number of documents of a resolved dataset that the hub reports for its split; 0 if it reports none."""
    return getattr((_open(place).info.splits or {}).get(_Place.parse(place).split), "num_examples", 0)


def splits(source: str) -> tuple[list[str], str]:
    """The names of all splits of a dataset, and the one that `source` names. Raises DataError as `resolve` does."""
    from datasets import get_dataset_split_names

    place = _Place.parse(source)
    try:
        names = get_dataset_split_names(f"hf://datasets/{place.name}", place.config, revision=place.revision)
    except Exception as error:
        raise _explained(place, error) from None
    return names, place.split


def advice_for(source: str, advice: str) -> str:
    """`advice` about a source that does not exist, and `hf://` where the name could be one of the hub.

    A name like owner/dataset is one, unless there is a folder `owner`: then the path was mistyped.
    """
    name = re.split("[:@#]", source)[0]
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or Path(name).suffix in _SUFFIXES:
        return advice
    if "/" not in name:
        return f"{advice}; a dataset of the hub is {PREFIX}{source}"
    return advice if Path(name).parent.exists() else f"did you mean {PREFIX}{source}, a dataset of the hub?"


def texts(place: str, shard: int, column: str) -> Iterator[list[str]]:
    """The texts of one shard of a resolved dataset, in lists. The libraries retry lost connections."""
    try:
        dataset = _open(place)
        for table in dataset.shard(dataset.num_shards, shard).with_format("arrow").iter(_ROWS):
            require_text(table.schema, column, place)
            yield strings(table.column(column))
    except DataError:
        raise
    except Exception as error:
        raise _explained(_Place.parse(place), error) from None


@lru_cache(maxsize=16)
def _open(place: str) -> IterableDataset:
    import datasets

    name, config, revision, split = _Place.parse(place)
    # Spelled like this, a local directory of the same name is not taken for it.
    return datasets.load_dataset(f"hf://datasets/{name}", config, split=split, revision=revision, streaming=True)


def _explained(place: _Place, error: BaseException) -> DataError:
    """An error of the hub or the datasets library in one line, with what to do."""
    from huggingface_hub import errors

    page = f"{hub_errors.endpoint()}/datasets/{place.name}"
    reason, text = hub_errors.reason(error), " ".join(map(str, chain(error)))
    if hub_errors.has(error, errors.GatedRepoError) or "is a gated dataset" in text:
        return DataError(f"{place} is gated: ask for access on {page}, then run `hf auth login`")
    if hub_errors.has(error, errors.RevisionNotFoundError):
        return DataError(f"{place}: there is no revision {place.revision!r}; see {page}/tree/main")
    if hub_errors.has(error, errors.RepositoryNotFoundError) or hub_errors.statuses(error) & {401, 403}:
        return DataError(f"{place}: no such dataset that you may read; check the name, or run `hf auth login` ({page})")
    if found := re.search(r"Available splits: \[(.*?)\]", text):
        return DataError(f"{place}: no split {place.split!r}; add one of: {_listed(found[1], '#')}")
    if found := re.search(r"(?:Available|available configs): \[(.*?)\]", text):
        return DataError(f"{place}: choose a configuration, one of: {_listed(found[1], ':')}")
    if hub_errors.connection_lost(error):
        return DataError(f"{place}: the hub at {hub_errors.endpoint()} can't be reached ({reason}); try again")
    return DataError(f"{place} can't be read ({reason}); see {page}")


def _listed(names: str, mark: str) -> str:
    return ", ".join(mark + name.strip(" '\"") for name in names.split(","))
