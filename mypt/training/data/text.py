"""Text sources of a run as dataset directories in its folder: whole ones, or the first documents of a streamed one."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mypt.errors import DataError, RecipeError
from mypt.hardware.processes import is_main_process, on_main, say_once
from mypt.preparation.prepare import prepare_dataset
from mypt.recipe import DataSection, Recipe
from mypt.shards.format import METADATA_NAME, Manifest, read_manifest
from mypt.streams.size import SIZE_NAME, STREAMED_KINDS, Size, count_epoch, fingerprint, read_size, write_size
from mypt.text.sources import FEWEST_FOR_HASH, Unit, document_count, find_units
from mypt.tokenization.load import load_tokenizer, tokenizer_hash

DATA_NAME, HEAD_NAME, EVAL_NAME = "data", "head", "eval"  # in the run folder


@dataclass(frozen=True)
class Streamed:
    """A source that is cleaned, tokenised and packed while it is trained on."""

    units: list[Unit]
    held_out: float  # share of the documents that is left for evaluation
    expected: Size  # of an epoch of what is trained on


def prepare_train(recipe: Recipe, source: str, hold_out: bool) -> tuple[str, Streamed | None]:
    """Prepare all of a text source, or the head of one to stream. Raises RecipeError, and as `prepare_dataset` does.

    hold_out: leave `data.val_fraction` of it for evaluation, if that is asked for.
    """
    section = recipe.data
    val_fraction = section.val_fraction if hold_out else 0.0
    units = find_units([source], text_column=section.text_column)
    if section.streaming and units[0].kind in STREAMED_KINDS:
        return _prepare_head(recipe, source, units, val_fraction)
    options = {"val_fraction": val_fraction, "val_split": section.val_split}
    return prepare(recipe, source, DATA_NAME, max_documents=section.max_train_examples, **options), None


def prepare_eval(recipe: Recipe, source: str, name: str, tokenizer: str) -> str:
    """The first `max_eval_examples` documents of a source, all of them in the train split."""
    limit = recipe.data.max_eval_examples
    return prepare(recipe, source, f"{EVAL_NAME}/{name}", tokenizer, max_documents=limit, val_fraction=0.0)


def prepare(recipe: Recipe, source: str, name: str, tokenizer: str | None = None, **options) -> str:
    """Text as the directory OUT/name, made by the main process, with a given tokenizer or the recipe's."""
    directory = Path(recipe.training["output_dir"]) / name
    # A base model that is gone by the time of a resume has left its tokenizer with the text.
    own = {"tokenizer": str(directory)} if base_is_gone(recipe, name) else {}
    made = {"tokenizer": tokenizer} if tokenizer else tokenizer_options(recipe) | own
    make = partial(prepare_dataset, [source], directory, text_column=recipe.data.text_column, **made, **options)
    on_main(make)  # first: all processes end with the words of its refusal
    if not is_main_process() and not (directory / METADATA_NAME).exists():
        make()
    return str(directory)


def tokenizer_options(recipe: Recipe) -> dict:
    """Arguments of `prepare_dataset` for the tokenizer of the recipe's text."""
    section = recipe.tokenizer
    return {
        "tokenizer": tokenizer_name(recipe),
        "vocab_size": section.vocab_size,
        "min_vocab_size": section.min_vocab_size,
        "max_vocab_size": section.max_vocab_size,
        "tokenizer_train_examples": section.train_examples,
        "retrain": section.retrain,
    }


def tokenizer_name(recipe: Recipe) -> str:
    """The tokenizer of the recipe's text: the one it names, else that of the model it starts from, else a new BPE."""
    return recipe.tokenizer.name or recipe.model.init_from or "bpe"


def base_is_gone(recipe: Recipe, name: str) -> bool:
    """Whether text takes the tokenizer of a model that is not here any more, and OUT/name was prepared with it."""
    prepared = Path(recipe.training["output_dir"], name, METADATA_NAME).is_file()
    return prepared and tokenizer_name(recipe) == recipe.model.init_from and not Path(recipe.model.init_from).is_dir()


def length_follows_from_data(recipe: Recipe) -> bool:
    return not recipe.training.get("max_steps", 0) > 0


def _prepare_head(recipe: Recipe, source: str, units: list[Unit], held_out: float) -> tuple[str, Streamed]:
    """The first documents: they give the tokenizer, the evaluation set, and an idea of what the rest is like."""
    section = recipe.data
    _require_streamable(recipe)
    if section.eval and source not in section.eval.values():
        held_out = 0.0
    examples = max(recipe.tokenizer.train_examples, math.ceil(section.max_eval_examples / held_out) if held_out else 0)
    begun = Path(recipe.training["output_dir"], HEAD_NAME, METADATA_NAME).exists()
    try:
        # By hash alone: so the stream knows the documents that it must leave out.
        head = prepare(recipe, source, HEAD_NAME, max_documents=examples, val_fraction=held_out, hash_only=True)
    except DataError as error:
        if not begun:
            raise
        raise DataError(
            f"{source} or its settings are not what this run began with ({error}); restore them (a hub dataset: name "
            "its @revision), or choose another training.output_dir"
        ) from None
    manifest = read_manifest(head)
    documents = manifest.report["documents"]
    if held_out and documents < FEWEST_FOR_HASH:  # the head's val is its tail then, which the stream does not leave out
        raise DataError(
            f"{source} has {documents} documents, and from {FEWEST_FOR_HASH} on some can be held out of a stream for "
            "evaluation; name data.eval, or set data.streaming: false"
        )
    expected = _expected(units, manifest, examples, section)
    # A large dataset of the hub would be downloaded twice; its metadata has the number of documents.
    large = manifest.report["documents_read"] >= examples
    if length_follows_from_data(recipe) and not (units[0].kind == "hub" and large and expected.documents):
        expected = _counted(recipe, units, head, held_out)
    return head, Streamed(units, held_out, expected)


def _require_streamable(recipe: Recipe) -> None:
    for key, needless in (("curriculum", None), ("order", "full")):
        if getattr(recipe.data, key) != needless:
            raise RecipeError(f"data.{key} needs prepared data: leave it out, or set data.streaming: false")


def _expected(units: list[Unit], head: Manifest, examples: int, section: DataSection) -> Size:
    """The size of an epoch, if the whole source is like its head; not exact, as the head has no duplicates."""
    read, train, most = head.report["documents_read"], head.splits["train"], section.max_train_examples
    documents = read if read < examples else document_count(units)
    if most is not None:
        documents = min(documents or most, most)
    return Size(documents * train.documents / read, train.tokens / train.documents)


def _counted(recipe: Recipe, units: list[Unit], head: str, held_out: float) -> Size:
    """The size of an epoch by `count_epoch`, kept in the run folder: the main process counts once."""
    path = Path(recipe.training["output_dir"], SIZE_NAME)
    tokenizer = load_tokenizer(head)
    settings = {"val_fraction": held_out, "max_examples": recipe.data.max_train_examples}
    counted = {"data": fingerprint(units), "tokenizer": tokenizer_hash(tokenizer), **settings}

    def count() -> Size:
        size = read_size(path, **counted)
        if size is None:
            say_once(f"counting the tokens of {units[0].source}: the length of the run follows from them")
            size = count_epoch(units, tokenizer, **settings)
            write_size(path, size, **counted)
        return size

    return on_main(count) or count()
