"""The data of a sweep: text prepared once, then a subset of every source, both kept for all trials and later sweeps.

They lie in folders named after their content and settings, and are never written again.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import xxhash

from mypt.errors import DataError, FolderInUse
from mypt.preparation.prepare import prepare_dataset
from mypt.preparation.subset import subset_dataset
from mypt.recipe import Recipe
from mypt.shards.format import Manifest
from mypt.shards.open_dataset import open_dataset
from mypt.streams.size import fingerprint
from mypt.terminal import say
from mypt.text.sources import document_count, find_units, own_validation
from mypt.training.data.run_data import (
    default_sets,
    is_dataset,
    require_one_tokenizer,
    source_name,
    text_sources,
)
from mypt.training.data.text import EVAL_NAME, tokenizer_options


@dataclass(frozen=True)
class SweepData:
    """Dataset directories of a sweep.

    Attributes:
        full, train: {directory: weight} of all data and of the subset; the same where nothing was limited.
        eval: {name: source}, as `data.eval` of a trial has it.
        eval_text: {name: directory} of those sets that are text, prepared as `OUT/eval/NAME`.
        samples, full_samples: Documents of train in the subset and in all.
        identity: Hashes of the subset's and the evaluation sets' content, which every process of a study must share.
    """

    full: dict[str, float]
    train: dict[str, float]
    eval: dict[str, str]
    eval_text: dict[str, str]
    samples: int
    full_samples: int
    identity: list[str]


def prepare_data(
    recipe: Recipe, cache: Path, *, samples: int | None, seed: int, tell: Callable[[str], object] = say
) -> SweepData:
    """Prepare the recipe's text and its subset in `cache`, or find them there; prints what is limited.

    The subset holds `samples` documents (None: all, and nothing is limited); of several sources each keeps its share,
    so that all are seen as often as in the full run. Waits for another process that prepares the same. Raises as
    `prepare_dataset` and `subset_dataset`.
    """
    section = recipe.data
    texts = text_sources(section.train)
    directories = {source: source for source in section.train}
    for source in texts:
        require_one_tokenizer(recipe, source)
        directories[source] = str(_prepared_text(recipe, source, cache, samples, tell))
    manifests = {source: open_dataset(directory, section.dtype) for source, directory in directories.items()}
    counts = {source: manifest.splits["train"].documents for source, manifest in manifests.items()}
    total = sum(counts.values())
    subset = dict(directories)
    if samples is not None and total > samples:
        tell(f"Limiting dataset from {total} to {samples} samples")
        for source, directory in directories.items():
            kept = max(1, round(counts[source] * samples / total))
            subset[source] = str(_subset(directory, manifests[source], cache, kept, seed, tell))
    elif samples is not None:
        tell(f"the dataset has {total} samples, and a sweep takes up to {samples}: all of it is used")
    sets = section.eval or _default_sets(texts, manifests)
    if not sets:
        raise DataError("a sweep compares runs by an evaluation set: name data.eval, or set data.val_fraction above 0")
    first = next(iter(subset.values()))
    sets = {name: subset.get(source, source) for name, source in sets.items()}
    eval_text = {
        name: str(_prepared_eval(recipe, source, first, cache, tell))
        for name, source in sets.items()
        if not is_dataset(source)
    }
    chosen = {source: open_dataset(directory, section.dtype) for source, directory in subset.items()}
    evaluated = [
        (eval_text.get(name, source), "train" if name in eval_text else "val") for name, source in sets.items()
    ]
    return SweepData(
        full={directories[source]: weight for source, weight in section.train.items()},
        train={subset[source]: weight for source, weight in section.train.items()},
        eval=sets,
        eval_text=eval_text,
        samples=sum(manifest.splits["train"].documents for manifest in chosen.values()),
        full_samples=total,
        identity=[manifest.fingerprint("train") for manifest in chosen.values()]
        + [open_dataset(directory, section.dtype).fingerprint(split) for directory, split in evaluated],
    )


def place_eval_text(data: SweepData, run: Path) -> None:
    """Copy the prepared text of evaluation sets into a run folder, where `mypt train` finds it and prepares nothing."""
    for name, directory in data.eval_text.items():
        target = run / EVAL_NAME / name
        if not target.exists():
            temporary = target.with_name(f".{name}.copy")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(directory, temporary)
            temporary.rename(target)


def _prepared_text(recipe: Recipe, source: str, cache: Path, samples: int | None, tell) -> Path:
    """All of a text; of a dataset of the hub that is streamed, about as many first documents as are needed."""
    section = recipe.data
    units = find_units([source], text_column=section.text_column)
    held_out = 0.0 if not section.eval and own_validation(source) else section.val_fraction
    most = section.max_train_examples
    if samples is not None and section.streaming and units[0].kind == "hub":
        known = document_count(units)
        most = min(most or samples, ceil(samples / (1 - held_out)))
        tell(f"{source}: its first {most} of {known or 'an unknown number of'} samples are downloaded for the sweep")
    settings = tokenizer_options(recipe) | {"val_fraction": held_out, "val_split": section.val_split}
    settings |= {"max_documents": most, "text_column": section.text_column}
    place = cache / f"{source_name(source)}-{_key(fingerprint(units), settings)}"
    return _made(place, tell, partial(prepare_dataset, [source], place, **settings | {"retrain": False}))


def _prepared_eval(recipe: Recipe, source: str, tokenizer: str, cache: Path, tell) -> Path:
    """The first documents of an evaluation set's text, with the arguments of `mypt.training.data.text.prepare_eval`."""
    section = recipe.data
    units = find_units([source], text_column=section.text_column)
    settings = {"max_documents": section.max_eval_examples, "val_fraction": 0.0, "text_column": section.text_column}
    of = open_dataset(tokenizer, section.dtype).tokenizer_hash
    place = cache / f"{source_name(source)}-{EVAL_NAME}-{_key(fingerprint(units), settings, of)}"
    return _made(place, tell, partial(prepare_dataset, [source], place, tokenizer=tokenizer, **settings))


def _subset(directory: str, manifest: Manifest, cache: Path, samples: int, seed: int, tell) -> Path:
    key = _key(manifest.fingerprint("train"), samples, seed, [*map(manifest.fingerprint, sorted(manifest.splits))])
    place = cache / f"{Path(directory).name}-{samples}-{key}"
    return _made(place, tell, partial(subset_dataset, directory, place, samples=samples, seed=seed))


def _made(place: Path, tell: Callable[[str], object], make: Callable[[], object]) -> Path:
    """Make a folder of the cache, or wait until the process that makes it has ended."""
    told = False
    while True:
        try:
            make()
            return place
        except FolderInUse:
            if not told:
                tell(f"{place} is being made by another process: waiting for it")
            told = True
            time.sleep(0.5)


def _default_sets(texts: list[str], manifests: dict[str, Manifest]) -> dict[str, str]:
    """As `mypt.training.data.run_data.resolve_data` finds them."""
    own = {source_name(source): split for source in texts if (split := own_validation(source))}
    return own or default_sets(manifests)


def _key(*parts: object) -> str:
    return xxhash.xxh3_64_hexdigest(repr(parts).encode())
