"""Muon for hidden matrices and AdamW for everything else, in one Optimizer that HF Trainer builds."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim.adamw import adamw

from mypt.planning.step import MUON_TOGETHER

# (a, b, c) of a s + b s^3 + c s^5 for each Newton-Schulz iteration: the odd quintic nearest to 1 on the interval of
# singular values that the iteration before left, the first on [0.01, 1] (Polar Express, Amsel et al. 2025, 2505.16932).
# tests/training/optim/test_newton_schulz.py solves for them. Later iterations repeat the last.
QUINTICS = (
    (8.093368512548258, -23.620430328824277, 17.44615174983625),
    (3.6365855542590406, -2.7219267466089083, 0.5365462883273614),
    (2.661299985777099, -1.9771545218846251, 0.45261640699640093),
    (1.9561716388844543, -1.3375077459440734, 0.3838527013298801),
    (1.8751655627362336, -1.2501839462931827, 0.3750183951054486),
    (1.875, -1.25, 0.375),
)
# Keeps the largest singular value below 1, beyond which the polynomials grow, although bfloat16 rounds the norm.
MARGIN = 1.02

NEURON_DECAY = 0.95  # of the running means of `normalize_neurons`
TINY = 1e-16


def parameter_groups(model: nn.Module, weight_decay: float, muon: bool) -> list[dict]:
    """Trainable parameters by treatment.

    Hidden matrices: Muon if asked, weight decay. Stacks of matrices (experts, convolutions): AdamW with decay.
    Embeddings, the output head, norms, biases and other vectors: AdamW without decay.
    """
    decayed = decayed_parameters(model)
    chosen = {id(parameter) for parameter in decayed}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [
        {"params": [p for p in decayed if p.ndim == 2], "weight_decay": weight_decay, "muon": muon},
        {"params": [p for p in decayed if p.ndim > 2], "weight_decay": weight_decay, "muon": False},
        {"params": rest, "weight_decay": 0.0, "muon": False},
    ]
    return [group for group in groups if group["params"]]


def decayed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters that get weight decay: two or more dimensions, no embedding table and not the head."""
    outside = {id(parameter) for parameter in _embedding_parameters(model)}
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in outside]


def _embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weights of every embedding table, and of the head whether or not it is tied to one."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return tables if head is None else [*tables, head.weight]


def muon_factory():
    """The form in which HF Trainer takes an optimizer that groups parameters itself: called with the whole model."""
    return build_muon_adamw


def build_muon_adamw(model: nn.Module, weight_decay: float, muon: bool = True, **defaults) -> "MuonAdamW":
    return MuonAdamW(parameter_groups(model, weight_decay, muon), **defaults)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on groups with `muon=True`, AdamW (Loshchilov & Hutter 2019) on the others.

    Muon's orthogonalised update is normalised by neurons (NorMuon, Li et al. 2025, 2510.05491) and scaled by
    0.2 * sqrt(max(rows, columns)), which gives it the root mean square of an AdamW update (Liu et al. 2025,
    2502.16982): one learning rate and one weight decay serve both.
    bfloat16: orthogonalise in that dtype, faster where the hardware has it; float32 keeps runs on different layouts
    equal to the last few bits.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.95), eps: float = 1e-8, momentum: float = 0.95,
                 ns_steps: int = 3, bfloat16: bool = False):  # fmt: skip
        # `fused` tells load_state_dict to put each step count on its parameter's device, where fused AdamW needs it.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum, "ns_steps": ns_steps, "muon": False,
                    "bfloat16": bfloat16, "weight_decay": 0.0, "fused": True}  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon if group["muon"] else self._adamw)(parameters, group)
        return loss

    def _muon(self, parameters: list[nn.Parameter], group: dict) -> None:
        by_shape: dict[tuple, list[nn.Parameter]] = {}
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            if "mean_squares" not in self.state[parameter]:  # also in a state of before there were any
                longer = torch.zeros(max(parameter.shape), dtype=parameter.dtype, device=parameter.device)
                self.state[parameter]["mean_squares"] = longer
            by_shape.setdefault((*sorted(parameter.shape), parameter.device), []).append(parameter)
        for (short, long, _), members in by_shape.items():
            together = max(1, MUON_TOGETHER // (short * long)) * _sharers(members[0])
            for first in range(0, len(members), together):
                self._update(members[first : first + together], group, 0.2 * long**0.5)

    def _update(self, members: list[nn.Parameter], group: dict, scale: float) -> None:
        """Muon's update of matrices that are all of one shape, or transposed of one shape."""
        gradients = [parameter.grad for parameter in members]
        means = [self.state[parameter]["momentum_buffer"] for parameter in members]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        # Nesterov momentum: the gradient, moved towards its running mean.
        updates = torch._foreach_lerp(gradients, means, group["momentum"])
        updates = torch.stack([update.mT if is_tall(update) else update for update in updates])  # (n, short, long)
        dtype = torch.bfloat16 if group["bfloat16"] else torch.float32
        method = orthogonalize_shards if isinstance(updates, DTensor) else orthogonalize
        updates = method(updates, group["ns_steps"], dtype).to(members[0].dtype)
        updates = normalize_neurons(updates, [self.state[parameter]["mean_squares"] for parameter in members])
        directions = [d.mT if is_tall(p) else d for p, d in zip(members, updates.unbind(), strict=True)]
        torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(members, directions, alpha=-group["lr"] * scale)

    def _adamw(self, parameters: list[nn.Parameter], group: dict) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: torch.Tensor, steps: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace each matrix U S V^T of (n, rows, columns) by about U V^T, with `steps` Newton-Schulz iterations.

    With 3 steps singular values from 1% of the matrix's norm on come to 0.73 to 1.27, with 4 to 0.98 to 1.02.
    Runs in `dtype` and returns it. `mypt.planning.optimizer.newton_schulz_flops` counts the products.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype, copy=True, memory_format=torch.contiguous_format)
    x.div_(MARGIN * torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for step in range(steps):  # x <- a x + b (x x^T) x + c (x x^T)^2 x
        a, b, c = QUINTICS[min(step, len(QUINTICS) - 1)]
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalize_shards(matrices: DTensor, steps: int, dtype: torch.dtype = torch.float32) -> DTensor:
    """`orthogonalize` for (n, rows, columns) that FSDP2 shards over processes, in the layout and dtype of `matrices`.

    Shards are exchanged for whole matrices, so that each process orthogonalises its share of the n, and back.
    """
    mesh, parts = matrices.device_mesh, matrices.placements
    whole = [Shard(0) if place.is_shard() else place for place in parts]
    mine = matrices.redistribute(placements=whole).to_local()
    done = orthogonalize(mine, steps, dtype).to(matrices.dtype)
    layout = {"run_check": False, "shape": matrices.shape, "stride": matrices.stride()}
    return DTensor.from_local(done, mesh, whole, **layout).redistribute(placements=parts)


def normalize_neurons(updates: torch.Tensor, means: list[torch.Tensor]) -> torch.Tensor:
    """Divide the vectors along the longer side of each update by the root of a running mean of their mean squares.

    The vectors along the shorter side of an orthogonal matrix have one length, those along the longer side do not.
    (The paper normalises rows always, its neurons; here a square matrix is normalised by rows.)

    Args:
        updates: (n, short, long), changed in place; each keeps its Frobenius norm.
        means: n of shape (long,), updated in place; zero at first.
    """
    across = -1 if updates.shape[-2] == updates.shape[-1] else -2
    squares = updates.square().sum(across, dtype=torch.float32) / updates.shape[across]
    squares = squares.full_tensor() if isinstance(squares, DTensor) else squares  # (n, long)
    now = torch.stack(means).float().lerp_(squares, 1 - NEURON_DECAY)
    torch._foreach_copy_(means, now.unbind())
    now.clamp_min_(TINY)
    longer = (squares / now).sum(1, keepdim=True).clamp_min_(TINY) / squares.sum(1, keepdim=True).clamp_min_(TINY)
    factors = (now * longer).rsqrt_().to(updates.dtype).unsqueeze(across)
    if isinstance(updates, DTensor):
        mesh = updates.device_mesh
        factors = DTensor.from_local(factors, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return updates.mul_(factors)


def _sharers(parameter: torch.Tensor) -> int:
    """Processes that FSDP2 shards a parameter over; each orthogonalises a share of the matrices."""
    return parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1


def is_tall(matrix: torch.Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]
