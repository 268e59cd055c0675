"""Loss, gradient norm and stop signals of every step, known to all processes alike, without a wait for the GPU."""

import math
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Beat:
    """One optimizer step. loss, grad_norm: over all processes, nats per token; stop: a process was asked to stop."""

    step: int  # counted from 1
    samples: tuple[int, int]  # the first and the last global sample
    loss: float
    grad_norm: float
    stop: bool
    batches: list[dict[str, torch.Tensor]] = field(repr=False)  # this process's micro-batches

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def __str__(self) -> str:
        first, last = self.samples
        return f"step {self.step} (loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, samples {first} to {last})"


class Pulse:
    """Adds up each step's loss where it is computed, and reads one small vector per step.

    late: read each step's vector when the next one is sent off. The copy from a GPU has long arrived by then, so that
    nothing waits; without it `beat` waits for the step's gradients. world_size: processes of the default group, which
    share the vector by one all-reduce of three numbers.
    """

    def __init__(self, world_size: int, late: bool):
        self.world_size = world_size
        self.late = late
        self._loss: torch.Tensor | None = None
        self._sent: tuple[dict, torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, loss: torch.Tensor) -> None:
        """The share of a micro-batch, detached."""
        self._loss = loss if self._loss is None else self._loss + loss

    def beat(self, grad_norm: torch.Tensor | float | None, stop: bool, **about) -> Beat | None:
        """A step's gradient is complete. Returns the newest step that can be told: this one, or (late) the one before.

        grad_norm: the same on all processes; None where there is none to look at. about: `Beat`'s step, samples and
        batches. All processes call it alike.
        """
        before = self.flush()
        loss = self._loss.float()
        norm = grad_norm if isinstance(grad_norm, torch.Tensor) else loss.new_full((), grad_norm or 0.0)
        if hasattr(norm, "full_tensor"):  # FSDP2's is spread over the processes
            norm = norm.full_tensor()
        vector = torch.stack([loss, norm.to(loss), loss.new_full((), float(stop))])
        if self.world_size > 1:
            torch.distributed.all_reduce(vector)
        arrived = None
        if self.late and vector.is_cuda:
            vector = vector.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._loss, self._sent = None, (about, vector, arrived)
        return before if self.late else self.flush()

    def flush(self) -> Beat | None:
        """The step that was sent off and not yet told, if there is one; waits for it."""
        if self._sent is None:
            return None
        (about, vector, arrived), self._sent = self._sent, None
        if arrived:
            arrived.synchronize()
        loss, norm, stop = vector.tolist()
        return Beat(loss=loss / self.world_size, grad_norm=norm / self.world_size, stop=stop > 0, **about)

    def forget(self) -> None:
        """Drop what is under way: its step no longer counts."""
        self._loss = self._sent = None
