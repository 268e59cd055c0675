"""Newton-Schulz on matrices that FSDP2 has spread over the processes by rows."""

import torch
from torch.distributed.tensor import DTensor, Shard

from mypt.training.optim.newton_schulz import orthogonalize


def orthogonalize_shards(matrices: DTensor, steps: int, dtype: torch.dtype = torch.float32) -> DTensor:
    """`orthogonalize` for (n, rows, columns), in the layout and dtype of `matrices`.

    Parts are exchanged for whole matrices, so that each process orthogonalises its share of the n, and back for parts.
    """
    mesh, parts = matrices.device_mesh, matrices.placements
    whole = [Shard(0) if place.is_shard() else place for place in parts]
    mine = matrices.redistribute(placements=whole).to_local()
    done = orthogonalize(mine, steps, dtype).to(matrices.dtype)
    layout = {"run_check": False, "shape": matrices.shape, "stride": matrices.stride()}
    return DTensor.from_local(done, mesh, whole, **layout).redistribute(placements=parts)
