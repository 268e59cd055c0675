"""Resolve what a recipe leaves to the machine: decided, or reused from the run's first start."""

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from transformers import PreTrainedModel

from mypt.errors import MyPTError, RecipeError
from mypt.formatting import gibibytes
from mypt.hardware.batch import divide_batch, room
from mypt.hardware.choices import GIVEN, autocast_dtype, choose_attention, choose_compile, choose_dtype, choose_liger
from mypt.hardware.machine import Machine, machine_of
from mypt.hardware.main_memory import main_memory
from mypt.hardware.processes import agreed
from mypt.planning.evaluation_budget import MOST_WINDOWS
from mypt.planning.fit import fits, knobs
from mypt.planning.memory import training_memory
from mypt.planning.optimizer import Choice
from mypt.planning.parameters import adapted, dimensions_of
from mypt.planning.step import MICRO_BATCH, Step
from mypt.recipe import RESOLVED_NAME, Recipe, load_recipe
from mypt.training.model.attention import choose_working_attention
from mypt.training.model.compiled import obstacle
from mypt.training.model.precision import choose_precision
from mypt.training.recipe_settings import memory_settings
from mypt.training.request import require_workers

REUSED = "as when the run began"
IDS = 16  # bytes of a token in a batch: an input and a target of int64
LEAST = 0.5  # measured steps needed 0.6 to 1.2 times the estimate (docs/estimate.md)


@dataclass(frozen=True)
class Hardware:
    """The machine of a run, and what was chosen for it.

    Attributes:
        machine: The device, with the least free memory that any process has.
        reused: Keys of the recipe whose values come from the run's folder.
        dimensions, step: Input of the memory model; None for a model that it does not know.
        matmul_precision: Precision of float32 products while the run trains.
        lines: One line for each choice, with its reason.
        recorded: The recipe in the run's folder.
    """

    machine: Machine
    reused: frozenset[str]
    dimensions: dict | None = None
    step: Step | None = None
    matmul_precision: str = "highest"
    lines: tuple[str, ...] = ()
    recorded: Recipe | None = None

    def why(self, key: str) -> str:
        return REUSED if key in self.reused else GIVEN


def resolve_hardware(recipe: Recipe, model: PreTrainedModel, run: Path | None) -> tuple[Recipe, Hardware]:
    """The recipe with every choice that the machine decides, but compiling, which depends on the number of steps.

    Sets the model's attention implementation.

    Args:
        run: The folder of a run that is resumed; None for a new one.

    Raises:
        RecipeError: A given or reused value cannot work here.
    """
    recorded, reused = None, frozenset()
    if run and (run / RESOLVED_NAME).is_file():
        recorded = load_recipe(run)
        recipe, reused = reuse_saved_choices(recipe, recorded)
    require_workers(recipe)
    base = getattr(model, "get_base_model", lambda: model)()  # of adapters
    hardware = Hardware(_shared_machine(base), reused, _dimensions(recipe, base), recorded=recorded)
    lines = []
    for name, choose in _CHOICES.items():
        recipe, choice = choose(recipe, hardware, base)
        if choice:
            lines.append(f"{name}: {choice.value} ({choice.reason})")
    step = _step(recipe, hardware, passes_per_step(recipe)) if hardware.dimensions else None
    _require_memory(recipe, hardware.machine, hardware.dimensions, step)
    return recipe, replace(hardware, step=step, matmul_precision=recipe.hardware.matmul_precision, lines=tuple(lines))


def resolve_compile(recipe: Recipe, hardware: Hardware, model: PreTrainedModel, steps: int) -> tuple[bool, str]:
    """`training.torch_compile` and a line with the reason. Raises RecipeError for a given one that cannot work."""
    given, why = recipe.training.get("torch_compile"), hardware.why("training.torch_compile")
    in_the_way = agreed(obstacle(model, hardware.machine.device))
    if given and in_the_way:
        raise RecipeError(f"training.torch_compile ({why}): {in_the_way}; give --training.torch_compile=false")
    if given is not None:
        choice = Choice(given, why)
    else:
        kind = PartialState().device.type
        special = {"adapters": recipe.lora, "document masks": recipe.data.document_mask,
                   "sharded weights": is_sharded(), f"the device {kind}": kind not in ("cpu", "cuda")}  # fmt: skip
        choice = choose_compile(
            hardware.machine,
            steps,
            curriculum=bool(recipe.data.curriculum),
            special=next((name for name, there in special.items() if there), None),
            obstacle=in_the_way,
        )
    return choice.value, f"compile: {'on' if choice.value else 'off'} ({choice.reason})"


def passes_per_step(recipe: Recipe) -> int:
    """`training.gradient_accumulation_steps`, which follows where the global batch is given."""
    given, tokens = recipe.training, recipe.data.tokens_per_step
    if not tokens:
        return given.get(BATCH[1], 1)
    processes = PartialState().num_processes
    return divide_batch(tokens, recipe.data.block_size, processes, micro_batch_size=given[BATCH[0]]).accumulation


def _require_memory(recipe: Recipe, machine: Machine, dimensions: dict | None, step: Step | None) -> None:
    """Refuse sizes that no mistake of an estimate explains: the system would end the process without a word."""
    section, given = recipe.data, recipe.training
    size, passes = given.get(BATCH[0], MICRO_BATCH), passes_per_step(recipe)
    waiting = given.get("dataloader_num_workers", 0) * (given.get("dataloader_prefetch_factor") or 2)
    ids = IDS * size * (passes + waiting) * section.block_size
    memory, _ = main_memory()
    if memory and ids > memory:
        raise RecipeError(
            f"training.{BATCH[0]} {size:,} x data.block_size {section.block_size:,} x {passes:,} passes: the ids of a "
            f"step alone are {gibibytes(ids)} GiB, and this machine has {gibibytes(memory)} GiB of memory; lower "
            f"training.{BATCH[0]}, training.{BATCH[1]} or training.dataloader_prefetch_factor"
        )
    windows, most = given.get("per_device_eval_batch_size", MICRO_BATCH), recipe.forgetting.eval_windows
    if most != "all":
        windows = min(windows, most or MOST_WINDOWS)  # None: chosen later
    logits = 4 * windows * section.block_size * dimensions["vocab_size"] if dimensions else 0
    if machine.memory and logits > machine.memory:
        raise RecipeError(
            f"training.per_device_eval_batch_size {windows:,}: the logits of an evaluation's batch alone are "
            f"{gibibytes(logits)} GiB, and {machine.name} has {gibibytes(machine.memory)} GiB; lower it"
        )
    if step and machine.memory and LEAST * (needed := training_memory(dimensions, step)["total"]) > machine.memory:
        helps = ", or ".join(knobs(dimensions, step, room(machine.memory)))
        raise RecipeError(
            f"a step needs about {gibibytes(needed)} GiB by the estimate, and {machine.name} has "
            f"{gibibytes(machine.memory)} GiB: {helps}"
        )


def _shared_machine(model: PreTrainedModel) -> Machine:
    """This process's device, with the least free memory that any process has; on a CPU they share it.

    Free is what was free before the model was loaded, as for a plan: the memory model counts the weights.
    """
    state = PartialState()
    machine = machine_of(state.device)
    free = machine.free
    if free and machine.device == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        free += sum(parameter.nbytes for parameter in model.parameters())
    frees = [size for size in (gather_object([free]) if state.num_processes > 1 else [free]) if size]
    return replace(machine, free=min(frees, default=None))


def _dimensions(recipe: Recipe, model: PreTrainedModel) -> dict | None:
    """None for a model that the memory model does not know, or not by the names of its LoRA targets (`c_attn`)."""
    try:
        dimensions = dimensions_of(model.config.to_dict())
        if recipe.lora:
            adapted(dimensions, recipe.lora.target_modules)
        return dimensions
    except MyPTError:
        return None


def is_sharded() -> bool:
    """Whether the processes share the weights: FSDP2 or DeepSpeed."""
    kinds = (DistributedType.FSDP, DistributedType.DEEPSPEED)
    return PartialState().distributed_type in kinds or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _compute(recipe: Recipe) -> str:
    """The dtype of matrix products: autocast's, or else that of the weights."""
    autocast = autocast_dtype(recipe.training)
    return autocast if autocast not in (None, "float32") else recipe.model.dtype or "float32"


def _dtype(recipe: Recipe, hardware: Hardware, model: PreTrainedModel) -> tuple[Recipe, Choice]:
    machine, given, weights = hardware.machine, recipe.training, recipe.model.dtype or "float32"
    if given.get("fp16") and given.get("bf16"):
        raise RecipeError("training.fp16 and training.bf16 are both true: keep one of them")
    if given.get("fp16") and weights != "float32":
        raise RecipeError(f"training.fp16 needs float32 weights, and model.dtype is {weights}: leave one of them out")
    if given.get("fp16") and machine.device == "cpu":
        raise RecipeError(
            f"training.fp16 ({hardware.why('training.fp16')}) needs a GPU, and this run is on a CPU; give "
            f"--training.fp16=false --training.bf16={str(machine.dtype == 'bfloat16').lower()}"
        )
    choice = choose_dtype(machine, weights)
    if given.get("fp16") or given.get("bf16") is not None:
        key = "training.fp16" if given.get("fp16") else "training.bf16"
        emulated = given.get("bf16") and machine.dtype != "bfloat16"
        hint = f"; but {machine.why}, so that it is slow: --training.bf16=false" if emulated else ""
        choice = Choice(autocast_dtype(given), f"{hardware.why(key)}{hint}")
    elif given.get("fp16") is False and choice.value == "float16":
        choice = Choice("float32", f"training.fp16 is false, and {machine.why}")
    words = "no autocast" if choice.value == "float32" else f"{choice.value} autocast"
    chosen = {"bf16": choice.value == "bfloat16"} | ({"fp16": True} if choice.value == "float16" else {})
    return with_values(recipe, "training", **chosen), choice._replace(value=f"{words} of {weights} weights")


def _precision(recipe: Recipe, hardware: Hardware, model: PreTrainedModel) -> tuple[Recipe, Choice]:
    given, tf32 = recipe.hardware.matmul_precision, recipe.training.get("tf32")
    measured = given is None or (given == "medium" and "hardware.matmul_precision" in hardware.reused)
    choice = agreed(choose_precision(model, hardware.machine, _compute(recipe)) if measured and tf32 is None else None)
    if tf32 is not None:
        by_tf32 = "high" if tf32 else "highest"
        if given not in (None, by_tf32):
            raise RecipeError(f"hardware.matmul_precision {given} and training.tf32 {tf32}: keep one of them")
        choice = Choice(by_tf32, f"training.tf32 is {str(tf32).lower()}")
    elif given:
        why = hardware.why("hardware.matmul_precision")
        if choice and choice.value != given:
            why += f"; but {choice.reason}: --hardware.matmul_precision={choice.value}"
        choice = Choice(given, why)
    return with_values(recipe, "hardware", matmul_precision=choice.value), choice


def _attention(recipe: Recipe, hardware: Hardware, model: PreTrainedModel) -> tuple[Recipe, Choice]:
    section, compute, given = recipe.data, _compute(recipe), recipe.hardware.attention
    if given:
        candidates = [Choice(given, hardware.why("hardware.attention"))]
    else:
        flash = importlib.util.find_spec("flash_attn") is not None
        candidates = choose_attention(hardware.machine, section.block_size, compute, section.document_mask, flash)
        if is_sharded():  # a whole model may not fit where one would be tried
            candidates = [choice for choice in candidates if choice.value in ("sdpa", "eager")]
    own = choose_working_attention(model, candidates, compute, section.document_mask, automatic=not given)
    choice = agreed(own)
    if choice.value != own.value:
        model.set_attn_implementation(choice.value)
    return with_values(recipe, "hardware", attention=choice.value), choice


def _liger(recipe: Recipe, hardware: Hardware, model: PreTrainedModel) -> tuple[Recipe, Choice]:
    given, known = recipe.training.get("use_liger_kernel"), None
    if importlib.util.find_spec("liger_kernel") and hardware.machine.device == "gpu":
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        known = frozenset(MODEL_TYPE_TO_APPLY_LIGER_FN)
    choice = choose_liger(hardware.machine, model.config.model_type, known)
    if given and not choice.value:  # HF would leave the model as it is without a word
        why = hardware.why("training.use_liger_kernel")
        raise RecipeError(f"training.use_liger_kernel ({why}): {choice.reason}; give --training.use_liger_kernel=false")
    if given is not None:
        choice = Choice(given, hardware.why("training.use_liger_kernel"))
    recipe = with_values(recipe, "training", use_liger_kernel=choice.value)
    return recipe, choice._replace(value="on" if choice.value else "off")


def _batch(recipe: Recipe, hardware: Hardware, model: PreTrainedModel) -> tuple[Recipe, Choice | None]:
    """The micro-batch of the global batch that the recipe asks for, if it does."""
    asked, given = recipe.data.tokens_per_step, recipe.training
    if not asked:
        return recipe, None
    options = {"device": hardware.machine.device}
    if hardware.dimensions and hardware.machine.free:
        step, available = _step(recipe, hardware), room(hardware.machine.free)
        options["fits"] = lambda size, passes: fits(
            hardware.dimensions, replace(step, micro_batch_size=size, accumulation=passes), available
        )
    sizes = {"micro_batch_size": given.get(BATCH[0]), "accumulation": given.get(BATCH[1])}
    layout = (asked, recipe.data.block_size, PartialState().num_processes)
    try:
        batch = divide_batch(*layout, **sizes, **options)
    except RecipeError:
        if f"training.{BATCH[0]}" not in hardware.reused:
            raise
        batch = divide_batch(*layout, **options)  # another number of processes than the run began with
    is_given = given.get(BATCH[0]) == batch.micro_batch_size
    reason = f"micro-batch: {hardware.why(f'training.{BATCH[0]}')}" if is_given else batch.reason
    return with_values(recipe, "training", **{BATCH[0]: batch.micro_batch_size}), Choice(batch.words, reason)


# By the names that the lines at the start of a run give them, in the order in which each may need the ones before.
_CHOICES = {
    "dtype": _dtype,
    "matmul precision": _precision,
    "attention": _attention,
    "Liger kernels": _liger,
    "batch": _batch,
}


def _step(recipe: Recipe, hardware: Hardware, passes: int = 1) -> Step:
    """This run as the memory model sees it."""
    settings = memory_settings(recipe, hardware.machine, recipe.data.block_size)
    shards = PartialState().num_processes if is_sharded() else 1
    sizes = settings | {"accumulation": passes, "block_size": recipe.data.block_size}
    return Step(**sizes, device=hardware.machine.device, fsdp=shards)


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


def reuse_saved_choices(recipe: Recipe, recorded: Recipe) -> tuple[Recipe, frozenset[str]]:
    """The recipe with the values that the run began with where it leaves them open, and the keys of these values."""
    reused = []
    for keys in _TOGETHER:
        if all(_get(recipe, key) is None for key in keys):
            for key in keys:
                if (value := _get(recorded, key)) is not None:
                    recipe = with_values(recipe, key.partition(".")[0], **{key.partition(".")[2]: value})
                    reused.append(key)
    size, before = recipe.training.get(BATCH[0]), recorded.training.get(BATCH[0])
    if recipe.data.tokens_per_step and before and size in (None, before) and BATCH[1] not in recipe.training:
        recipe = with_values(recipe, "training", **{BATCH[0]: before})
        reused.append(f"training.{BATCH[0]}")
    return recipe, frozenset(reused)


def with_values(recipe: Recipe, section: str, **values) -> Recipe:
    """The recipe with other values in one of its sections."""
    if section == "training":
        return replace(recipe, training=recipe.training | values)
    return replace(recipe, **{section: replace(getattr(recipe, section), **values)})


def _get(recipe: Recipe, key: str):
    section, _, name = key.partition(".")
    return recipe.training.get(name) if section == "training" else getattr(getattr(recipe, section), name)
