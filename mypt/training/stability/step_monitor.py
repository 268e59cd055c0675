"""Loss, gradient norm and stop signals of every step, known to all processes alike, without a wait for the GPU."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, over all processes.

    Attributes:
        step: Counted from 1.
        samples: The first and the last global sample.
        loss: What was trained on, in nats per token.
        cross_entropy: The part of it that is logged, in nats per token.
        grad_norm: Before clipping.
        stop: Whether a process was asked to stop.
        batches: This process's micro-batches; empty where an update broke the weights.
    """

    step: int
    samples: tuple[int, int]
    loss: float
    cross_entropy: float
    grad_norm: float
    stop: bool = False
    batches: Sequence[dict[str, torch.Tensor]] = field(default=(), repr=False)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def __str__(self) -> str:
        first, last = self.samples
        return f"step {self.step} (loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, samples {first} to {last})"


class KeptNorm:
    """Wrap `Accelerator.clip_grad_norm_` and keep the norm that it returned."""

    def __init__(self, clip: Callable):
        self._clip = clip
        self._norm: torch.Tensor | float | None = None

    def __call__(self, *args, **kwargs) -> torch.Tensor | float | None:
        self._norm = self._clip(*args, **kwargs)
        return self._norm

    def take(self) -> torch.Tensor | float | None:
        """The norm of the last call, before clipping; None if there was no call since the last `take`."""
        norm, self._norm = self._norm, None
        return norm


class LossWindow:
    """The mean loss of the finite steps since the last log entry, and the mean over the run."""

    def __init__(self):
        self.steps = 0  # in the open window
        self._sum = 0.0
        self._run_sum, self._run_steps = 0.0, 0  # of the windows before

    def add(self, stats: StepStats) -> None:
        self.steps += 1
        self._sum += stats.cross_entropy

    def clear(self) -> None:
        """Drop the open window, as after a step that is not finite."""
        self.steps, self._sum = 0, 0.0

    def take_mean(self) -> float:
        """The mean of the open window, in nats per token; a new one begins."""
        mean = self._sum / self.steps
        self._run_sum, self._run_steps = self._run_sum + self._sum, self._run_steps + self.steps
        self.clear()
        return mean

    @property
    def run_mean(self) -> float:
        return (self._run_sum + self._sum) / max(1, self._run_steps + self.steps)


class StepMonitor:
    """Adds up each step's loss where it is computed, and reads one small vector per step.

    Args:
        world_size: Processes of the default group, which share the vector by one all-reduce of four numbers.
        late: Read each step's vector in the next call of `step`. The copy from a GPU has arrived by then, so that
            nothing waits; without it `step` waits for the step's gradients.
    """

    def __init__(self, world_size: int, late: bool):
        self.world_size = world_size
        self.late = late
        self._losses: torch.Tensor | None = None
        self._sent: tuple[dict, torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, loss: torch.Tensor, cross_entropy: torch.Tensor | None = None) -> None:
        """Add a micro-batch's share of the loss, detached. cross_entropy: the logged part of it; None: all of it."""
        losses = torch.stack([loss, loss if cross_entropy is None else cross_entropy.to(loss)]).float()
        self._losses = losses if self._losses is None else self._losses + losses

    def step(self, grad_norm: torch.Tensor | float | None, stop: bool, **about) -> StepStats | None:
        """Close a step, whose gradient is complete, and return the newest known one: this, or (late) the one before.

        All processes call it together.

        Args:
            grad_norm: The same on all processes; None where there is none to look at.
            stop: Whether this process was asked to stop.
            about: `step`, `samples` and `batches` of `StepStats`.
        """
        before = self.flush()
        losses = self._losses
        norm = grad_norm if isinstance(grad_norm, torch.Tensor) else losses.new_full((), grad_norm or 0.0)
        if hasattr(norm, "full_tensor"):  # FSDP2's is spread over the processes
            norm = norm.full_tensor()
        vector = torch.cat([losses, torch.stack([norm.to(losses), losses.new_full((), float(stop))])])
        if self.world_size > 1:
            torch.distributed.all_reduce(vector)
        arrived = None
        if self.late and vector.is_cuda:
            vector = vector.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._losses, self._sent = None, (about, vector, arrived)
        return before if self.late else self.flush()

    def flush(self) -> StepStats | None:
        """The step that was closed and not yet returned, if there is one; waits for it."""
        if self._sent is None:
            return None
        (about, vector, arrived), self._sent = self._sent, None
        if arrived:
            arrived.synchronize()
        *means, stop = vector.tolist()
        loss, cross_entropy, norm = (mean / self.world_size for mean in means)
        return StepStats(loss=loss, cross_entropy=cross_entropy, grad_norm=norm, stop=stop > 0, **about)

    def forget(self) -> None:
        """Drop the losses and the step that are not yet returned."""
        self._losses = self._sent = None
