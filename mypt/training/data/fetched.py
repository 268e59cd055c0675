"""Datasets of a recipe that lie in object stores: their copies on this machine take their places while it runs."""

import dataclasses
from collections.abc import Callable
from glob import has_magic

from mypt.recipe import Recipe
from mypt.remote.cache import use_cache
from mypt.remote.place import is_remote, require_no_secret


def fetched(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """The recipe with copies in place of the datasets in object stores, and {copy: URI}; text stays as it is named.

    Raises the errors of `local_dataset`.
    """
    copies: dict[str, str] = {}

    def replaced(source: str) -> str:
        if not is_remote(source):
            return source
        from mypt.storage.datasets import local_dataset  # 20 ms that a plan of local data does not take

        require_no_secret(source)
        if has_magic(source) or (copy := local_dataset(source)) is None:
            return source
        copies[str(copy)] = source
        return str(copy)

    use_cache(recipe.data.cache_dir, recipe.data.cache_limit)
    return _with_sources(recipe, replaced), copies


def as_given(recipe: Recipe, copies: dict[str, str]) -> Recipe:
    """The recipe with the URIs again in place of the copies, as it is saved."""
    return _with_sources(recipe, lambda source: copies.get(source, source))


def _with_sources(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    guard = recipe.forgetting.guard
    data = dataclasses.replace(
        recipe.data,
        train={change(source): weight for source, weight in recipe.data.train.items()},
        eval={name: change(source) for name, source in recipe.data.eval.items()},
    )
    if isinstance(guard, dict):
        guard = {name: change(source) for name, source in guard.items()}
    name = recipe.tokenizer.name
    return dataclasses.replace(
        recipe,
        data=data,
        tokenizer=dataclasses.replace(recipe.tokenizer, name=change(name) if name else name),
        forgetting=dataclasses.replace(recipe.forgetting, guard=guard),
    )
