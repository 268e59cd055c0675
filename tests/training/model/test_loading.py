"""What a loaded optimizer state has to be, and which faults are the machine's."""

import errno

import pytest
import torch

from mypt.errors import CheckpointError, UnreadableCheckpoint
from mypt.training.model.loading import is_of_machine, require_optimizer_state


class LowRank(torch.optim.Optimizer):
    """Keeps moments of a smaller shape, as GaLore and APOLLO do."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.99)})


@pytest.mark.parametrize("kind", [LowRank, torch.optim.AdamW])
def test_shapes_are_compared_where_moments_have_the_parameters_shape(kind):
    parameter = torch.nn.Parameter(torch.ones(8, 4))
    optimizer = kind([parameter])
    with pytest.raises(UnreadableCheckpoint, match="is empty"):
        require_optimizer_state("run/checkpoint-4", optimizer, 4)
    optimizer.state[parameter] = {"step": 4, "exp_avg": torch.zeros(2, 4), "exp_avg_sq": torch.zeros(2, 4)}
    if kind is LowRank:
        require_optimizer_state("run/checkpoint-4", optimizer, 4)
    else:
        with pytest.raises(UnreadableCheckpoint, match=r"has \(2, 4\) for a parameter of \(8, 4\)"):
            require_optimizer_state("run/checkpoint-4", optimizer, 4)


def test_faults_of_the_machine():
    wrapped = CheckpointError("cannot be loaded")
    wrapped.__cause__ = OSError(errno.ESTALE, "Stale file handle")
    for error in (MemoryError(), wrapped, RuntimeError("I/O error: Cannot allocate memory (os error 12)")):
        assert is_of_machine(error)
    for error in (FileNotFoundError(errno.ENOENT, "gone"), OSError("not a model"), RuntimeError("size mismatch"), None):
        assert not is_of_machine(error)
