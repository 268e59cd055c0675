"""What a run chose when it began, for a resume whose recipe leaves that open again."""

from dataclasses import replace

from mypt.recipe import Recipe

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Keys of one choice: a recipe that gives one of them has made it.
_TOGETHER = (
    ("training.bf16", "training.fp16"),
    ("hardware.matmul_precision", "training.tf32"),
    ("hardware.attention",),
    ("training.use_liger_kernel",),
    ("training.torch_compile",),
    ("forgetting.eval_windows",),  # those of the baseline
)


def recall(recipe: Recipe, recorded: Recipe) -> tuple[Recipe, frozenset[str]]:
    """The recipe with what the run began with where it leaves that open, and the keys that this holds for."""
    recalled = []
    for keys in _TOGETHER:
        if all(_get(recipe, key) is None for key in keys):
            for key in keys:
                if (value := _get(recorded, key)) is not None:
                    recipe = with_values(recipe, key.partition(".")[0], **{key.partition(".")[2]: value})
                    recalled.append(key)
    size, before = recipe.training.get(BATCH[0]), recorded.training.get(BATCH[0])
    if recipe.data.tokens_per_step and before and size in (None, before) and BATCH[1] not in recipe.training:
        recipe = with_values(recipe, "training", **{BATCH[0]: before})
        recalled.append(f"training.{BATCH[0]}")
    return recipe, frozenset(recalled)


def with_values(recipe: Recipe, section: str, **values) -> Recipe:
    """The recipe with other values in one of its sections."""
    if section == "training":
        return replace(recipe, training=recipe.training | values)
    return replace(recipe, **{section: replace(getattr(recipe, section), **values)})


def _get(recipe: Recipe, key: str):
    section, _, name = key.partition(".")
    return recipe.training.get(name) if section == "training" else getattr(getattr(recipe, section), name)
