"""Find the faults of a recipe that can be known without torch, whose import takes seconds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mypt.checkpoints.complete import checkpoints, what_is_missing
from mypt.checkpoints.lineage import find_lineage
from mypt.checkpoints.load import require_model
from mypt.errors import RecipeError, recipe_wording
from mypt.evaluation.forgetting import require_sets
from mypt.models.presets import preset_dimensions
from mypt.recipe import AUTO, RESOLVED_NAME, ModelSection, Recipe, load_recipe, model_fault
from mypt.shards.format import Manifest
from mypt.shards.open_dataset import open_dataset
from mypt.shards.reader import check_files
from mypt.streams.windows import window_count
from mypt.tokenization.load import require_same_tokenizer
from mypt.training import run_folder
from mypt.training.data.fetched import fetched
from mypt.training.data.run_data import default_sets, is_dataset, replay_sources, text_sources
from mypt.training.launch import SIZES

WORKERS_PER_CPU = 16  # a worker that waits for a disk or the hub needs no core; more than this only take memory


@contextmanager
def accepted(recipe: Recipe, resume: bool | str) -> Iterator[None]:
    """Refuse what `check` refuses, and hold the run folder; of several processes the main one holds it later.

    Raises as `check`, and FolderInUse.
    """
    check(recipe, resume)
    launched = any(name in os.environ for name in SIZES)
    give_back = None if launched else run_folder.hold(output_dir(recipe))
    try:
        yield
    finally:
        if give_back:
            give_back()


@recipe_wording()
def check(recipe: Recipe, resume: bool | str) -> None:
    """Raise what `mypt.training.build.build_trainer` would raise after its imports, by the same functions.

    resume: as there. Everything that needs the model or the hardware is left to it.
    """
    run = output_dir(recipe)
    run_folder.require_run(run)
    if isinstance(resume, str):
        run_folder.chosen_checkpoint(run, Path(resume), what_is_missing)  # its files are read later, once
    elif checkpoints(run) and not resume and _is_recorded(recipe, run):
        raise run_folder.holds_checkpoints(run)
    require_workers(recipe)
    recipe, _ = fetched(recipe)
    _check_model(recipe.model, is_resumed=bool(resume and (checkpoints(run) or recipe.upload)))
    _check_data(recipe)


def output_dir(recipe: Recipe) -> Path:
    """Where the run goes. Raises RecipeError if the recipe does not name it."""
    if not recipe.training.get("output_dir"):
        raise RecipeError("training.output_dir is missing: name the run folder, for example runs/first")
    return Path(recipe.training["output_dir"])


def require_workers(recipe: Recipe) -> None:
    """Raise RecipeError for more DataLoader workers than this machine can use; a recipe may be of a larger one."""
    workers, cpus = recipe.training.get("dataloader_num_workers") or 0, os.cpu_count() or 1
    if workers > (most := WORKERS_PER_CPU * cpus):
        raise RecipeError(
            f"training.dataloader_num_workers is {workers:,}, and this machine has {cpus} CPUs, which {most:,} workers "
            f"at most can use; give --training.dataloader_num_workers={cpus}"
        )


def preset(section: ModelSection) -> dict:
    """Dimensions of the preset that the section names. Raises RecipeError if there is none."""
    try:
        return preset_dimensions(section.preset)
    except ValueError as error:
        raise RecipeError(f"model.preset: {error}") from None


def default_block_size(section: ModelSection) -> int | None:
    """The preset's context length; None for an existing model, whose config decides."""
    if section.init_from:
        return None
    return section.config.get("max_position_embeddings") or preset(section)["max_position_embeddings"]


def _check_model(section: ModelSection, is_resumed: bool) -> None:
    if section.init_from:
        if not is_resumed:  # whose checkpoint may be all that the run needs
            require_model(section.init_from)
            find_lineage(section.init_from)
        return
    preset(section)
    try:
        preset_dimensions(section.preset, **section.config)
    except (TypeError, ValueError) as error:
        raise model_fault(error) from None


def _is_recorded(recipe: Recipe, run: Path) -> bool:
    """Whether a run folder records a run of this recipe: of the same model, data, seed and block size, as written."""
    if not (run / run_folder.ENVIRONMENT_NAME).is_file() or not (run / RESOLVED_NAME).is_file():
        return False
    recorded = load_recipe(run)
    known = recorded.data

    def facts(one: Recipe) -> tuple:
        seed = one.training.get("seed", 42)
        optimizer = recorded.optimizer.name if one.optimizer.name == AUTO else one.optimizer.name
        return (one.model, one.lora, one.data.train, one.data.order, one.data.curriculum, one.data.document_mask,
                one.data.block_size or known.block_size, optimizer,
                seed, one.training.get("data_seed", seed))  # fmt: skip

    return facts(recipe) == facts(recorded)


def _check_data(recipe: Recipe) -> None:
    section, block_size = recipe.data, recipe.data.block_size or default_block_size(recipe.model)
    texts = text_sources(section.train)
    prepared = [name for name in dict.fromkeys([*section.train, *section.eval.values()]) if is_dataset(name)]
    manifests: dict[str, Manifest] = {name: open_dataset(name, section.dtype) for name in prepared}
    for name, manifest in manifests.items():
        if not texts:
            require_same_tokenizer(prepared[0], manifests[prepared[0]].tokenizer_hash, name, manifest.tokenizer_hash)
        if name in section.train:
            check_files(Path(name), manifest, "train")
            if block_size:
                window_count(manifest.splits["train"].tokens, block_size)
        if name in section.eval.values():
            check_files(Path(name), manifest, "val")
    names = section.eval or ({} if texts else default_sets({name: manifests[name] for name in section.train}))
    if names:
        require_sets(names, recipe.forgetting.target, recipe.forgetting.guard)
        for source in replay_sources(recipe, names, section.train).values():
            check_files(Path(source), open_dataset(source, section.dtype), "train")
