"""The recipe's sources as dataset directories of one tokenizer: text prepared first, everything checked."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from mypt.errors import DataError, RecipeError
from mypt.recipe import Recipe
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.shards.prepare import prepare_dataset
from mypt.tokenization.load import load_tokenizer, require_same_tokenizer


@dataclass
class RunData:
    """Where a run reads from: directories by weight and by evaluation set name, and their one tokenizer."""

    train: dict[str, float]
    eval: dict[str, str]
    eval_sources: dict[str, str]  # as a recipe names them: a text file, not the directory that it was prepared into
    tokenizer: object
    tokenizer_hash: str


def resolve_data(recipe: Recipe) -> RunData:
    """Prepare a text source into OUT/data, find the evaluation sets, check that all share one tokenizer.

    Without `data.eval` the val split of every training source that has one is an evaluation set, under the
    directory's name. Raises DataError, RecipeError or TokenizerError.
    """
    if not recipe.data.train:
        raise RecipeError("data.train is missing: name a dataset directory, a text file or {source: weight}")
    prepared = _prepare_text(recipe)
    train = {prepared.get(source, source): weight for source, weight in recipe.data.train.items()}
    named = {name: prepared.get(source, source) for name, source in recipe.data.eval.items()}
    directories = dict.fromkeys([*train, *named.values()])
    manifests = {directory: read_manifest(directory) for directory in directories}
    if not recipe.data.eval:
        watched = [d for d in train if manifests[d].splits.get("val") and manifests[d].splits["val"].tokens]
        named = {_default_name(directory, prepared): directory for directory in watched}
        if len(named) < len(watched):
            raise RecipeError(f"two sources of data.train end in the same name ({', '.join(watched)}); name data.eval")
    first = next(iter(manifests))
    for directory, manifest in manifests.items():
        require_same_tokenizer(first, manifests[first].tokenizer_hash, directory, manifest.tokenizer_hash)
    texts = {directory: text for text, directory in prepared.items()}
    eval_sources = {name: texts.get(directory, directory) for name, directory in named.items()}
    return RunData(train, named, eval_sources, load_tokenizer(first), manifests[first].tokenizer_hash)


def _default_name(directory: str, prepared: dict[str, str]) -> str:
    text = next((source for source, target in prepared.items() if target == directory), None)
    return Path(text).stem if text else Path(directory).name


def _prepare_text(recipe: Recipe) -> dict[str, str]:
    """Prepare the recipe's text file, if it has one, into OUT/data: {file: directory}."""
    sources = dict.fromkeys([*recipe.data.train, *recipe.data.eval.values()])
    texts = [source for source in sources if not Path(source).is_dir()]
    if not texts:
        return {}
    for source in texts:
        if source.startswith("hf://"):
            raise DataError(f"data source {source}: hub datasets cannot be read yet; save it as jsonl or parquet files "
                            "and run mypt prepare on them")  # fmt: skip
        if not Path(source).is_file():
            raise DataError(
                f"data source {source} does not exist; name a text file or a directory made by "
                f"`mypt prepare --out {source}`"
            )
    out = Path(recipe.training["output_dir"]) / "data"
    if any(source not in (texts[0], str(out)) for source in sources):
        raise DataError(
            f"{texts[0]} is a text file among several sources; prepare it first, with the tokenizer of the others: "
            f"mypt prepare --source {texts[0]} --out data/NAME --tokenizer DIRECTORY"
        )
    with PartialState().main_process_first():
        if PartialState().is_main_process or not (out / METADATA_NAME).exists():
            prepare_dataset(
                [texts[0]],
                out,
                tokenizer=recipe.tokenizer.name,
                vocab_size=recipe.tokenizer.vocab_size,
                min_vocab_size=recipe.tokenizer.min_vocab_size,
                max_vocab_size=recipe.tokenizer.max_vocab_size,
                tokenizer_train_examples=recipe.tokenizer.train_examples,
                retrain=recipe.tokenizer.retrain,
                text_column=recipe.data.text_column,
                val_fraction=recipe.data.val_fraction,
                val_split=recipe.data.val_split,
            )
    return {texts[0]: str(out)}
