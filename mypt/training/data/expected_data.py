"""The data of a run as a plan knows it, before it is prepared: sizes, vocabulary, text that sets share."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mypt.checkpoints.lineage import Lineage, describe_start, recognized, start_lineage, tokens_seen
from mypt.errors import DataError
from mypt.planning.verdict import DataSource
from mypt.preparation.contamination import find_contamination
from mypt.recipe import DataSection, Recipe
from mypt.shards.format import METADATA_NAME
from mypt.shards.open_dataset import open_dataset
from mypt.shards.reader import check_files
from mypt.streams.size import BYTES_PER_TOKEN, SIZE_NAME, STREAMED_KINDS, fingerprint, guess_tokens, read_size
from mypt.text.sources import find_units, own_validation
from mypt.training.data.run_data import holds_shards, source_name
from mypt.training.data.text import DATA_NAME, HEAD_NAME


@dataclass(frozen=True)
class ExpectedData:
    """The data of a run, as far as it is known.

    Attributes:
        sources: Sizes of the training data, None unless all are known.
        sets: Tokens of each evaluation set, None where they are not known.
        vocabulary: Ids of the data's tokenizer, None where they are not known.
        prepared: Tokens that lie, or will, in OUT/data.
        text: Bytes of text that the run prepares, or counts, before it trains.
        notes: What had to be assumed or left out.
    """

    sources: list[DataSource] | None
    sets: dict[str, int | None]
    vocabulary: int | None
    prepared: int
    text: int
    notes: list[str]


class _Source(NamedTuple):
    """One source: its size, None where it is not known; tokens of its own val split; those of it in OUT/data."""

    size: DataSource | None
    own_set: int | None = None
    prepared: int = 0
    vocabulary: int | None = None
    note: str | None = None


def expected_data(recipe: Recipe) -> ExpectedData:
    """Raises DataError for a directory of shards that is damaged."""
    start = start_lineage(recipe.model.init_from)
    read = {name: _read_source(name, weight, recipe, start) for name, weight in recipe.data.train.items()}
    vocabulary = next((one.vocabulary for one in reversed(read.values()) if one.vocabulary), None)
    if not vocabulary and not recipe.model.init_from:
        vocabulary = _expected_vocabulary(recipe)
        is_assumed = vocabulary is None and "vocab_size" not in recipe.model.config
    else:
        is_assumed = False
    words = "the vocabulary is not known before the text is prepared: the preset's is assumed"
    notes = [describe_start(start), *(one.note for one in read.values()), words if is_assumed else None]
    sizes = [one.size for one in read.values() if one.size]
    sources = sizes if sizes and len(sizes) == len(read) else None
    own_sets = {source_name(name): one.own_set for name, one in read.items() if one.own_set is not None}
    return ExpectedData(
        sources=sources,
        sets={name: _set_tokens(source, recipe) for name, source in recipe.data.eval.items()} or own_sets,
        vocabulary=vocabulary,
        prepared=sum(one.prepared for one in read.values()),
        text=BYTES_PER_TOKEN * sum(source.tokens for source in sources or [] if source.estimated),
        notes=[note for note in notes if note],
    )


def _read_source(name: str, weight: float, recipe: Recipe, start: Lineage) -> _Source:
    directory, prepared = Path(name), Path(recipe.training.get("output_dir", ""), DATA_NAME)
    if directory.is_file() and (prepared / METADATA_NAME).is_file():
        directory = prepared
    if not (directory.is_dir() and (directory == prepared or holds_shards(name))):
        return _read_text(name, weight, recipe, start)
    manifest = open_dataset(directory, recipe.data.dtype)
    check_files(directory, manifest, "train")
    data = manifest.fingerprint("train")
    before = tokens_seen(recognized(start, {data: partial(manifest.shards_of, "train")}), name, [data])
    own_set = None
    if not recipe.data.eval and (val := manifest.splits.get("val")) and val.tokens:
        check_files(directory, manifest, "val")
        own_set = val.tokens
    return _Source(
        DataSource(name, manifest.splits["train"].tokens, weight, seen_before=before),
        own_set,
        sum(split.tokens for split in manifest.splits.values()) if directory == prepared else 0,
        manifest.vocab_size,
    )


def _read_text(name: str, weight: float, recipe: Recipe, start: Lineage) -> _Source:
    """A text source as a run has counted it, else an estimate, or a note where there is none."""
    section = recipe.data
    counted = Path(recipe.training.get("output_dir", ""), SIZE_NAME)
    try:
        units = find_units([name], text_column=section.text_column)
        streamed = section.streaming and units[0].kind in STREAMED_KINDS
        most = section.max_train_examples
        if streamed and (size := read_size(counted, data=fingerprint(units), max_examples=most)):
            return _text_source(name, weight, section, start, size.tokens, estimated=not size.exact)
        held_out = _held_out(name, recipe, streamed)
        if units[0].kind == "text":
            read = sum(Path(path).stat().st_size for path in {path for unit in units for path in unit.paths})
            tokens = int(read / BYTES_PER_TOKEN * (1 - held_out))
        else:
            tokens = guess_tokens(units, held_out, most)
    except DataError as error:
        return _Source(None, note=f"the size of {name} is not known: {error}")
    if not tokens:
        words = f"the size of {name} is not known before it is read; `mypt train` counts its tokens"
        return _Source(None, note=words)
    tokens, state = max(1, tokens), "streamed and not counted" if streamed else "not prepared"
    return _text_source(name, weight, section, start, tokens, estimated=True)._replace(
        prepared=0 if streamed else round(tokens / (1 - held_out)),
        note=f"{name} is {state} yet: its tokens are estimated at {BYTES_PER_TOKEN} bytes each",
    )


def _text_source(
    name: str, weight: float, section: DataSection, start: Lineage, tokens: int, *, estimated: bool
) -> _Source:
    """With the val split that is held out of the text."""
    size = DataSource(name, tokens, weight, estimated=estimated, seen_before=tokens_seen(start, name, []))
    share = section.val_fraction
    return _Source(size, round(tokens * share / (1 - share)) if share else None)


def _expected_vocabulary(recipe: Recipe) -> int | None:
    """Vocabulary of a text that is not prepared, as far as the recipe gives it; None for the preset's."""
    size, head = recipe.tokenizer.vocab_size, Path(recipe.training.get("output_dir", ""), HEAD_NAME)
    if (head / METADATA_NAME).is_file():  # of streamed text, in the run folder
        return open_dataset(head).vocab_size
    return size if recipe.tokenizer.name in (None, "bpe") and isinstance(size, int) else None


def _set_tokens(name: str, recipe: Recipe) -> int | None:
    """Tokens of an evaluation set; None if it is text."""
    if not holds_shards(name):
        return None
    manifest = open_dataset(name, recipe.data.dtype)
    check_files(Path(name), manifest, "val")
    return manifest.splits["val"].tokens if "val" in manifest.splits else None


def _held_out(name: str, recipe: Recipe, streamed: bool) -> float:
    """The share of a text source that training leaves for evaluation."""
    sets = recipe.data.eval
    if (streamed and name not in sets.values()) if sets else own_validation(name):
        return 0.0
    return recipe.data.val_fraction


def shared_text(recipe: Recipe) -> dict[str, str]:
    """Evaluation sets whose text is in the training data, with the share in words, of those that are directories."""
    train = [name for name in recipe.data.train if holds_shards(name)]
    sets = {name: (source, "val") for name, source in recipe.data.eval.items() if holds_shards(source)}
    directories = {*train, *(directory for directory, _ in sets.values())} if train and sets else ()
    manifests = {directory: open_dataset(directory, recipe.data.dtype) for directory in directories}
    return {found.name: str(found) for found in find_contamination(sets, train, manifests)} if manifests else {}
