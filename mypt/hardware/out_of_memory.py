"""Out of memory in the middle of a run: one error that names what would have fitted, instead of a traceback."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mypt.errors import MyPTError
from mypt.formatting import gibibytes
from mypt.hardware.batch import room
from mypt.planning.fit import knobs
from mypt.planning.memory import training_memory
from mypt.planning.step import FRAMEWORK, Step

# torch's allocator on a CPU, and the one that oneDNN and C++ call, which raise plain RuntimeErrors.
REFUSED = ("can't allocate memory", "bad_alloc", "could not create a memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device or a process without memory, in any of the forms in which torch reports it."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSED)


@contextmanager
def _explain(words: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MyPTError(words()) from error


def explain_out_of_memory_at_start() -> AbstractContextManager[None]:
    """As `explain_out_of_memory`, before there is a trainer: while the model is built or loaded."""
    return _explain(
        lambda: (
            "out of memory before the first step, while model and data were loaded; take a smaller model, or a "
            "machine with more memory (`mypt estimate` has the figures)"
        )
    )


def explain_out_of_memory(trainer) -> AbstractContextManager[None]:
    """Turn running out of memory inside into a MyPTError with the knobs of `trainer.hardware`'s memory model."""
    return _explain(lambda: f"out of memory at step {trainer.state.global_step}{_what_helps(trainer)}")


def _what_helps(trainer) -> str:
    again, hardware = "and run the same command with --resume to continue", trainer.hardware
    if not trainer.model.training:
        size = trainer.args.per_device_eval_batch_size
        return f" in an evaluation of {size} sequences at a time; lower --training.per_device_eval_batch_size, {again}"
    if hardware is None or hardware.step is None:
        return f"; lower --training.per_device_train_batch_size, raise gradient_accumulation_steps as much, {again}"
    return f"; {advice(hardware.dimensions, hardware.step, hardware.machine.free)}, {again}"


def advice(dimensions: dict, step: Step, free: int | None) -> str:
    """The step's need by the estimate, and changes that fit into less than `free` bytes, or than it needs."""
    needed = training_memory(dimensions, step)["total"]
    there = f" and {gibibytes(free)} GiB were free at the start" if free else ""
    beyond = needed - FRAMEWORK  # which this process had already
    help_ = ", or ".join(knobs(dimensions, step, room(min(beyond, free or beyond))))
    return f"a step needs about {gibibytes(needed)} GiB{there}: {help_}"
