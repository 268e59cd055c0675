"""Choices that a recipe may leave to the machine, each with its reason; those that a plan expects."""

from dataclasses import replace

from mypt.hardware.batch import divide_batch, room
from mypt.hardware.machine import Machine
from mypt.planning.fit import fits
from mypt.planning.optimizer import Choice
from mypt.planning.parameters import with_positions
from mypt.planning.step import Step
from mypt.recipe import Recipe

# The longest sequences for which plain products beat SDPA on a CPU, by what they are computed in.
EAGER_UP_TO = {"bfloat16": 256, "float16": 256, "float32": 128}
STEPS_WORTH_COMPILING = {"cpu": 3_000, "gpu": 1_000}  # the GPU's was not measured
GIVEN = "as the recipe says"


def autocast_dtype(training: dict) -> str | None:
    """That of the keys `bf16` and `fp16`, "float32" for bf16: false alone; None where they leave it open."""
    if training.get("fp16"):
        return "float16"
    if training.get("bf16") is not None:
        return "bfloat16" if training["bf16"] else "float32"
    return None


def choose_dtype(machine: Machine, weights: str = "float32") -> Choice:
    """The dtype of matrix products under autocast, "float32" for none; weights: the dtype that the model is held in."""
    if machine.dtype == "float16" and weights != "float32":
        return Choice("float32", f"float16 needs float32 weights, and model.dtype is {weights}")
    return Choice(machine.dtype, machine.why)


def choose_attention(
    machine: Machine, length: int, compute: str, document_mask: bool = False, flash: bool = False
) -> list[Choice]:
    """Implementations in order of preference: a model or a machine may lack one. length: tokens per sequence.

    flash: whether the package flash_attn is installed.
    """
    sdpa, eager = Choice("sdpa", "torch's fused kernels"), Choice("eager", "plain products, which every model has")
    if machine.device == "cpu":
        limit = EAGER_UP_TO[compute]
        words = f"on a CPU in {compute}, up to {limit} tokens"
        if length <= limit:
            return [Choice("eager", f"sequences of {length}: {words}, plain products are faster than SDPA"), sdpa]
        return [Choice("sdpa", f"sequences of {length}: faster than plain products, which win {words}"), eager]
    if document_mask:
        return [Choice("flex_attention", "it skips what document masks hide"), sdpa, eager]
    if flash and compute != "float32":
        return [Choice("flash_attention_2", "flash_attn is installed"), sdpa, eager]
    return [sdpa, eager]


def choose_compile(
    machine: Machine, steps: int, *, curriculum: bool, special: str | None, obstacle: str | None
) -> Choice:
    """special: something with which it was never tried, such as adapters; obstacle: why it cannot work at all."""
    if obstacle:
        return Choice(False, obstacle)
    if curriculum:
        return Choice(False, "data.curriculum changes the lengths, and each would be compiled anew")
    if special:
        return Choice(False, f"not tried together with {special}")
    enough = STEPS_WORTH_COMPILING[machine.device]
    if steps < enough:
        return Choice(False, f"{steps:,} steps, and it pays from about {enough:,}")
    return Choice(True, f"{steps:,} steps are worth the seconds of compiling a layer")


def choose_liger(machine: Machine, model_type: str, known: frozenset[str] | None) -> Choice:
    """known: model types that the installed liger-kernel patches, None without it."""
    if machine.device == "cpu":
        return Choice(False, "its kernels are for GPUs")
    if known is None:
        return Choice(False, "liger-kernel is not installed")
    if model_type not in known:
        return Choice(False, f"liger-kernel has none for models of type {model_type}")
    return Choice(True, f"liger-kernel has them for {model_type}")


def expected_choices(machine: Machine, settings: dict, recipe: Recipe | None = None) -> dict[str, Choice]:
    """By the names under which training prints them. settings: fields of `Step`; recipe: None for a preset.

    Compiling, Liger kernels and the precision of matrix products are chosen in training, with torch.
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
    batch = divide_batch(tokens, settings["block_size"], processes, **given, **options)
    sizes = {"micro_batch_size": batch.micro_batch_size, "accumulation": batch.accumulation}
    return settings | sizes, Choice(batch.words, batch.reason)
