"""The choices that training will make on this machine, for a plan: the same rules, without torch and unmeasured."""

from dataclasses import replace

from mypt.planning.fit import fits
from mypt.planning.parameters import with_positions
from mypt.planning.step import Step
from mypt.recipe import Recipe
from mypt.training.hardware.batch import room, settle_batch
from mypt.training.hardware.choices import GIVEN, Choice, autocast_dtype, choose_attention, choose_dtype
from mypt.training.hardware.machine import Machine


def expected_choices(machine: Machine, settings: dict, recipe: Recipe | None = None) -> dict[str, Choice]:
    """By the names under which training prints them. settings: fields of `Step`; recipe: None for a preset.

    Compiling, Liger kernels and the precision of matrix products are settled where torch is.
    """
    weights = settings.get("weight_dtype", "float32")
    given = autocast_dtype(recipe.training) if recipe else None
    choices = {"dtype": Choice(given, GIVEN) if given else choose_dtype(machine, weights)}
    asked = recipe.hardware.attention if recipe else None
    if asked:
        choices["attention"] = Choice(asked, GIVEN)
    elif length := settings.get("block_size"):
        masked = bool(recipe and recipe.data.document_mask)
        choices["attention"] = choose_attention(machine, length, settings["compute_dtype"], masked)[0]
    return choices


def expected_batch(
    machine: Machine, settings: dict, recipe: Recipe, dimensions: dict | None, processes: int = 1
) -> tuple[dict, Choice | None]:
    """`settings` with the micro-batch and the passes of `data.tokens_per_step`, and the batch in words.

    Raises RecipeError as training does, for a global batch that cannot be divided so.
    """
    tokens = recipe.data.tokens_per_step
    if not tokens or "block_size" not in settings:
        return settings, None
    options = {"device": machine.device}
    if dimensions and machine.free:
        sizes = {"micro_batch_size": 1, "device": machine.device}
        model, step = with_positions(dimensions, settings["block_size"]), Step(**(sizes | settings))
        available = room(machine.free // (processes if machine.device == "cpu" else 1))
        options["fits"] = lambda size, passes: fits(
            model, replace(step, micro_batch_size=size, accumulation=passes), available
        )
    given = {name: settings.get(name) for name in ("micro_batch_size", "accumulation")}
    batch = settle_batch(tokens, settings["block_size"], processes, **given, **options)
    sizes = {"micro_batch_size": batch.micro_batch_size, "accumulation": batch.accumulation}
    return settings | sizes, Choice(batch.words, batch.reason)
