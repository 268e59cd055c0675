"""The recipe's sources as dataset directories of one tokenizer: text prepared first, everything checked."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path

from mypt.errors import DataError, RecipeError
from mypt.evaluation.forgetting import guarded_sets
from mypt.hardware.processes import say_once
from mypt.legacy.checkpoint import refuse_original
from mypt.recipe import Recipe
from mypt.remote.place import is_remote
from mypt.shards.format import Manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.publishing import own_tokenizer
from mypt.text.find_files import dataset_directory, holds_records
from mypt.text.hub_datasets import PREFIX, advice_for
from mypt.text.sources import own_validation
from mypt.tokenization.load import load_tokenizer, model_tokenizer, require_same_tokenizer
from mypt.tokenization.train import TRAINED
from mypt.training.data.text import (
    DATA_NAME,
    HEAD_NAME,
    Streamed,
    base_is_gone,
    prepare_eval,
    prepare_train,
    tokenizer_name,
)


@dataclass(frozen=True)
class RunData:
    """Where a run reads from: directories by weight and by evaluation set name, and their one tokenizer."""

    train: dict[str, float]  # 0: of a source in `replay` that is not drawn from yet
    eval: dict[str, str]
    manifests: dict[str, Manifest]  # of every directory in both
    eval_sources: dict[str, str]  # as a recipe names them: a text source, not the directory that it was prepared into
    tokenizer: object
    tokenizer_hash: str
    streamed: Streamed | None = None  # what is trained on instead of `train`, the directory of its first documents
    eval_splits: dict[str, str] = field(default_factory=dict)  # of the sets that are not their directory's val split
    own_validation: bool = False  # the evaluation set is the split that the training source brings along
    replay: dict[str, str] = field(default_factory=dict)  # directory in `train` of each guarded set


def resolve_data(recipe: Recipe) -> RunData:
    """Prepare what is not yet a dataset directory into the run folder, check that all share one tokenizer.

    Without `data.eval` the validation split that a hub dataset or a DatasetDict brings along is the evaluation set, or
    else the val split of every training source that has one, under the source's name. Raises DataError, RecipeError or
    TokenizerError.
    """
    section = recipe.data
    if recipe.model.init_from:
        refuse_original(recipe.model.init_from)  # before its tokenizer is used
    texts = text_sources(section.train)
    own = {} if section.eval else _own_sets(texts)
    directories, streamed = _train_directories(recipe, texts, hold_out=not own)
    first = next(iter(directories.values()))
    manifests = {directory: open_dataset(directory, section.dtype) for directory in directories.values()}
    eval_sources = section.eval or own or default_sets({s: manifests[d] for s, d in directories.items()})
    named, splits = {}, {}
    for name, source in eval_sources.items():
        named[name] = directories.get(source, source)
        if source not in directories and not is_dataset(source):
            named[name], splits[name] = prepare_eval(recipe, source, name, tokenizer=first), "train"
    train = {directories[source]: weight for source, weight in section.train.items()}
    replay = replay_sources(recipe, eval_sources, train)
    train |= {directory: 0.0 for directory in replay.values() if directory not in train}
    manifests |= {d: open_dataset(d, section.dtype) for d in [*named.values(), *train] if d not in manifests}
    for directory, manifest in manifests.items():
        require_same_tokenizer(first, manifests[first].tokenizer_hash, directory, manifest.tokenizer_hash)
    return RunData(
        train=train,
        eval=named,
        manifests=manifests,
        eval_sources=eval_sources,
        tokenizer=own_tokenizer(Path(first), manifests[first], load_tokenizer),
        tokenizer_hash=manifests[first].tokenizer_hash,
        streamed=streamed,
        eval_splits=splits,
        own_validation=bool(own),
        replay=replay,
    )


def text_sources(train: dict[str, float]) -> list[str]:
    """The training sources that are no dataset directories; refused where they cannot be trained on as they are."""
    if not train:
        raise RecipeError("data.train is missing: name a dataset directory, a text source or {source: weight}")
    texts = [source for source in train if not is_dataset(source)]
    if texts and len(train) > 1:
        raise DataError(
            f"{texts[0]} is a text source among several; prepare it first, with the tokenizer of the others: "
            f"mypt prepare --source {texts[0]} --out data/NAME --tokenizer DIRECTORY"
        )
    return texts


def _train_directories(recipe: Recipe, texts: list[str], hold_out: bool) -> tuple[dict[str, str], Streamed | None]:
    """{source: directory}, and what is streamed if the only source is; texts: the sources that are no directories."""
    section = recipe.data
    directories, streamed = {source: source for source in section.train}, None
    for source in texts:
        require_one_tokenizer(recipe, source)
        _announce_tokenizer(recipe)
        directories[source], streamed = prepare_train(recipe, source, hold_out)
    if section.stride and not streamed:
        raise RecipeError("data.stride is for streamed sources (docs/streaming.md); leave it out")
    if section.max_train_examples and not texts:
        raise RecipeError("data.max_train_examples counts documents of text; make a smaller directory: mypt subset")
    return directories, streamed


def require_one_tokenizer(recipe: Recipe, text: str) -> None:
    """Refuse at once, and not after the text is prepared, a tokenizer that no evaluation set can share."""
    own = Path(recipe.training["output_dir"], DATA_NAME)
    others = [s for s in recipe.data.eval.values() if s != text and is_dataset(s) and Path(s) != own]
    if others and tokenizer_name(recipe) in TRAINED:
        raise DataError(
            f"{text} would get a tokenizer made for it, and the evaluation set {others[0]} has one already; set "
            f"tokenizer.name: {others[0]}"
        )


def _announce_tokenizer(recipe: Recipe) -> None:
    """One line where the tokenizer is the model's because the recipe names none; refuse a model that has none."""
    base = recipe.model.init_from
    if not base or recipe.tokenizer.name or any(base_is_gone(recipe, name) for name in (DATA_NAME, HEAD_NAME)):
        return
    if model_tokenizer(base) is None:
        raise RecipeError(f"model.init_from {base} holds no tokenizer; name the one that it was trained with in "
                          "tokenizer.name")  # fmt: skip
    say_once(f"tokenizer: the one of model.init_from {base}; set tokenizer.name to use another")


def _own_sets(texts: list[str]) -> dict[str, str]:
    """The validation split that a text source brings along, by the source's name."""
    sets = {source_name(source): split for source in texts if (split := own_validation(source))}
    for source in sets.values():
        say_once(f"evaluation: {source}, the dataset's own validation split; set data.eval to use another")
    return sets


def default_sets(sources: dict[str, Manifest]) -> dict[str, str]:
    """The training sources with a val split, by name."""
    watched = [source for source, manifest in sources.items() if (val := manifest.splits.get("val")) and val.tokens]
    sets = {source_name(source): source for source in watched}
    if len(sets) < len(watched):
        raise RecipeError(f"two sources of data.train end in the same name ({', '.join(watched)}); name data.eval")
    return sets


def replay_sources(recipe: Recipe, sets: dict[str, str], train: Iterable[str]) -> dict[str, str]:
    """The dataset directory whose train split is replayed for each guarded set; empty where nothing is.

    These are the sources in `forgetting.guard`; where it names none, `action: raise_replay` takes the directories of
    the sets themselves.

    Args:
        sets: {name: source} of the evaluation sets.
        train: Training sources; one that is a replay source, too, keeps its spelling.

    Raises:
        RecipeError: There is none for a set, or the stream's shares cannot change.
    """
    section, known = recipe.forgetting, {Path(source).resolve(): source for source in train}
    raises = section.action == "raise_replay"
    if isinstance(section.guard, dict):
        found = dict(section.guard)
    elif raises:
        target = section.target or next(iter(sets), None)
        found = {name: sets[name] for name in guarded_sets(sets, target, section.guard)}
    else:
        return {}
    cure = "prepare text with `mypt prepare` and name the directory in forgetting.guard: {NAME: DIR}"
    for name, source in found.items():
        if not is_dataset(source) or "train" not in open_dataset(source, recipe.data.dtype).splits:
            raise RecipeError(f"no text to replay for {name}: {source} is no directory with a train split; {cure}")
    if streamed := [s for s in recipe.data.train if recipe.data.streaming and not is_dataset(s)]:
        raise RecipeError(
            f"data.train {streamed[0]} is streamed, and other sources cannot be mixed in; prepare it first: mypt "
            f"prepare --source {streamed[0]} --out data/NAME --tokenizer {next(iter(found.values()), 'DIR')}"
        )
    if raises and (workers := recipe.training.get("dataloader_num_workers")):
        raise RecipeError(
            f"forgetting.action raise_replay changes the shares of the sources, and {workers} DataLoader workers read "
            "ahead of it; give --training.dataloader_num_workers=0, or another action"
        )
    return {name: known.get(Path(source).resolve(), source) for name, source in found.items()}


def source_name(source: str) -> str:
    """The name of a source's evaluation set where none is given.

    data/general -> general, notes/a.txt -> a, hf://org/name:config@revision#split -> name.
    """
    path = Path(re.split("[:@#]", source.removeprefix(PREFIX))[0] if source.startswith(PREFIX) else source)
    return path.name if path.is_dir() or source.startswith(PREFIX) else path.stem


def is_dataset(source: str) -> bool:
    """Whether it is a directory of shards. Raises DataError for a path where nothing is."""
    if is_remote(source):
        return False  # of datasets there is a copy here (`mypt.training.data.fetched`)
    if not (Path(source).exists() or source.startswith(PREFIX) or has_magic(source) or "#" in source):
        advice = f"name a text source or a directory made by `mypt prepare --out {source}`"
        raise DataError(f"data source {source} does not exist; {advice_for(source, advice)}")
    return holds_shards(source)


def holds_shards(source: str) -> bool:
    """Whether it is a directory of shards that is here."""
    return Path(source).is_dir() and dataset_directory(source) is None and not holds_records(Path(source))
