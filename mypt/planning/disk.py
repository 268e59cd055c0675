"""Bytes that a run leaves on the disk: its checkpoints, the models that it publishes, the data that it prepares."""

from dataclasses import dataclass, replace

from mypt.formatting import gibibytes
from mypt.planning.memory import training_memory
from mypt.planning.parameters import count_parameters, lora_parameters
from mypt.planning.step import BYTES, Step
from mypt.planning.time import saves

KEPT = 3  # of training.save_total_limit, where a recipe leaves it open

# Small files, as measured on runs of a few steps: the code and the configuration of a model; random states, schedule,
# trainer state and the optimizer file's own index; curves, metrics and reports of the run folder.
MODEL_FILES, STATE_FILES, RUN_FILES = 36 * 2**10, 48 * 2**10, 144 * 2**10
TOKENIZER_ENTRY = 60  # bytes of tokenizer.json for each id


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The settings of a recipe that decide the size of its run folder.

    Attributes:
        save_steps: Steps from one checkpoint to the next, below 1 a share of the run; None for a tenth.
        limit: Checkpoints that are kept; None for all.
        prepared_tokens: Tokens of text that training prepares into the folder first, an estimate.
        free: Bytes that are free for the folder, what it holds now included; None where they are not known.
    """

    save_steps: float | None = None
    limit: int | None = KEPT
    prepared_tokens: int = 0
    free: int | None = None


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of a run folder.

    Attributes:
        weights: Of a saved model; under LoRA the adapters alone, since the base stays where it is.
        optimizer: The optimizer's states in a checkpoint.
        checkpoint: One checkpoint: both, tokenizer, random states and other small files.
        kept: Checkpoints at the end.
        models: The final model and, with evaluation sets, the best one.
        data: Text that is prepared first, an estimate.
        end: All of the folder when the run is over.
        peak: The most at any moment: a checkpoint is written before the oldest one is removed.
        free: As of `Saving`; fits: whether `peak` is within it, None where it is not known.
    """

    weights: int
    optimizer: int
    checkpoint: int
    kept: int
    models: int
    data: int
    end: int
    peak: int
    free: int | None = None
    fits: bool | None = None

    def __str__(self) -> str:
        count = f"{self.kept:,} checkpoint{'s' * (self.kept > 1)}"
        parts = [f"{count} of {gibibytes(self.checkpoint)}", f"models {gibibytes(self.models)}"]
        parts += [f"prepared data about {gibibytes(self.data)}"] * bool(self.data)
        return ", ".join(parts)


def plan_disk(dimensions: dict, step: Step, *, steps: int, evaluated: bool, saving: Saving) -> Disk:
    """The size of a run folder.

    Args:
        dimensions, step: As of `training_memory`; FSDP makes no difference, since checkpoints are whole.
        steps: Optimizer steps of the run.
        evaluated: Whether it has evaluation sets, and so a best model.
        saving: The rest.
    """
    tokenizer = TOKENIZER_ENTRY * dimensions["vocab_size"]
    if step.lora:
        weights = BYTES["float32"] * lora_parameters(dimensions, step.lora_r, step.lora_targets)
    else:
        weights = BYTES[step.weight_dtype] * count_parameters(dimensions)["total"]
    optimizer = training_memory(dimensions, replace(step, fsdp=1))["phases"]["update"]["optimizer"]
    model = weights + tokenizer + MODEL_FILES
    checkpoint = model + optimizer + STATE_FILES
    all_saves = saves(steps, saving.save_steps or None)
    limit = saving.limit or all_saves
    kept, written = min(all_saves, limit), min(all_saves, limit + 1)
    data = saving.prepared_tokens * (2 if dimensions["vocab_size"] <= 2**16 else 4)
    models = model * (2 if evaluated else 1)
    end = kept * checkpoint + models + data + RUN_FILES
    peak = max(end, written * checkpoint + data + RUN_FILES)
    return Disk(
        weights=weights,
        optimizer=optimizer,
        checkpoint=checkpoint,
        kept=kept,
        models=models,
        data=data,
        end=end,
        peak=peak,
        free=saving.free,
        fits=peak <= saving.free if saving.free is not None else None,
    )


def fewer_checkpoints(disk: Disk) -> int | None:
    """The most checkpoints to keep with which the run fits, at least 2; None if no number of them helps."""
    room = disk.free - disk.data - RUN_FILES
    kept = min(disk.kept - 1, room // disk.checkpoint - 1, (room - disk.models) // disk.checkpoint)
    return kept if kept >= 2 else None
