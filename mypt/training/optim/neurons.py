"""Muon's updates made even over the neurons of a matrix, after NorMuon (Li et al. 2025, 2510.05491)."""

import torch
from torch.distributed.tensor import DTensor, Replicate

DECAY = 0.95  # of the running means
TINY = 1e-16


def even_out(updates: torch.Tensor, means: list[torch.Tensor]) -> torch.Tensor:
    """Divide the vectors along the longer side of each update by the root of a running mean of their mean squares.

    Of an orthogonal matrix the vectors along the shorter side are of one length, those along the longer side are not.
    (The paper evens rows always, its neurons; here they are taken of a square matrix.)
    updates: (n, short, long), changed in place; each keeps its Frobenius norm.
    means: n of shape (long,), which come up to date; zero at first.
    """
    across = -1 if updates.shape[-2] == updates.shape[-1] else -2
    squares = updates.square().sum(across, dtype=torch.float32) / updates.shape[across]
    squares = squares.full_tensor() if isinstance(squares, DTensor) else squares  # (n, long)
    now = torch.stack(means).float().lerp_(squares, 1 - DECAY)
    torch._foreach_copy_(means, now.unbind())
    now.clamp_min_(TINY)
    longer = (squares / now).sum(1, keepdim=True).clamp_min_(TINY) / squares.sum(1, keepdim=True).clamp_min_(TINY)
    factors = (now * longer).rsqrt_().to(updates.dtype).unsqueeze(across)
    if isinstance(updates, DTensor):
        mesh = updates.device_mesh
        factors = DTensor.from_local(factors, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return updates.mul_(factors)
