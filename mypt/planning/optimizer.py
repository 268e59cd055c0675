"""The optimizer's arithmetic in a training step, and which optimizer a run takes where its recipe leaves it open.

Muon multiplies matrices whose sizes do not depend on the batch, so its share of a step falls as the step gets more
tokens. AdamW's work, a few operations for each parameter, counts as nothing.
"""

from typing import NamedTuple

from mypt.planning.parameters import complete, is_measured, projections
from mypt.planning.scaling import flops_per_token

NS_STEPS = 3  # Newton-Schulz iterations of Muon

# The largest share of a step's FLOPs at which Muon is the default; docs/optimizers.md has the measurements.
MUON_BOUND = 0.6


class Choice(NamedTuple):
    """A value for a key of the recipe, and why it is this one."""

    value: object
    reason: str


def newton_schulz_flops(rows: int, columns: int, steps: int = NS_STEPS) -> int:
    """FLOPs of `steps` Newton-Schulz iterations on one matrix, 2 for each multiply-add.

    With m the shorter and n the longer side, an iteration of `mypt.training.optim.optimizers.orthogonalize` has three
    products: x x^T (m m n), the square of that (m^3), and the polynomial times x (m m n).
    """
    m, n = sorted((rows, columns))
    return steps * 2 * (2 * m * m * n + m**3)


def muon_flops(dimensions: dict, steps: int = NS_STEPS, freeze_layers: int = 0) -> int:
    """FLOPs of Muon's Newton-Schulz iterations in one optimizer step, over all hidden matrices that are trained."""
    if is_measured(dimensions):  # whose modules are not told apart by layers: none counts as frozen
        matrices = [(m["inward"], m["outward"], m["count"]) for m in dimensions["modules"] if m["linear"]]
    else:
        d = complete(dimensions)
        layers = d["num_hidden_layers"] - freeze_layers
        matrices = [(*sides, layers) for sides in projections(d).values()]
    return sum(count * newton_schulz_flops(rows, columns, steps) for rows, columns, count in matrices)


def muon_share(
    dimensions: dict, block_size: int, tokens: int, *, steps: int = NS_STEPS, freeze_layers: int = 0, fsdp: int = 1
) -> float:
    """Muon's share of the FLOPs of one optimizer step, on one process.

    Under DDP each process orthogonalises all matrices, under FSDP2 its part of them. Forward and backward pass count
    as in `flops_per_token`, frozen layers in full.

    Args:
        dimensions: MyPTConfig fields.
        block_size: Tokens per sequence.
        tokens: Tokens of one process in an optimizer step: micro-batch x block size x accumulation.
        steps: Newton-Schulz iterations.
        freeze_layers: Layers that are not trained.
        fsdp: Processes that share the weights.
    """
    muon = muon_flops(dimensions, steps, freeze_layers) / fsdp
    return muon / (muon + flops_per_token(dimensions, block_size) * tokens)


def choose_optimizer(dimensions: dict, block_size: int, tokens: int, **about) -> Choice:
    """`muon` or `adamw` for a MyPT model, all of which is trained, and the reason. Arguments: those of `muon_share`."""
    share = muon_share(dimensions, block_size, tokens, **about)
    percent = f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"
    rest = f"{percent} of a step of {tokens:,} tokens; bound {MUON_BOUND:.0%}"
    if share <= MUON_BOUND:
        return Choice("muon", f"auto: its Newton-Schulz products are {rest}")
    return Choice("adamw", f"auto: Muon's Newton-Schulz products would be {rest}")
