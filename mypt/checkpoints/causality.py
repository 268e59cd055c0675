"""Whether a model is a causal language model: tried on a few tokens, not believed by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypt.errors import CheckpointError

if TYPE_CHECKING:
    import torch

LENGTH = 12  # tokens of the window that is tried
CUTS = (3, 8)  # positions from which on other tokens are put
# Largest change of an earlier logit, relative to the largest logit, that counts as rounding. Experts and quantized
# layers compute the same token in another order when its neighbours change.
ROUNDING = {"float32": 1e-5, "float64": 1e-5}
ROUNDING_16_BIT = 3e-2


def require_causal(model: torch.nn.Module, name: str) -> None:
    """Check that earlier logits do not move when later tokens change, and that none is NaN.

    Takes three forward passes of 12 tokens; weights, mode and the global random state stay as they were.

    Args:
        model: called as `model(input_ids=..., use_cache=False)`, with `.logits` (1, T, vocabulary).
        name: its folder or hub id, for the message.

    Raises:
        CheckpointError: a later token changes an earlier logit (an encoder), or a logit is NaN.
    """
    import torch

    ids = probe_tokens(model, rows=2, length=LENGTH)
    was_training = model.training
    model.eval()
    devices = [ids.device] if ids.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        first = _logits(model, ids[:1])
        if first.isnan().any():
            raise CheckpointError(
                f"model {name} gives logits that are NaN: its weights are damaged, or its training diverged; take an "
                "earlier checkpoint, or download it again"
            )
        scale, moved = first.abs().amax(), 0.0
        for cut in CUTS:
            changed = torch.cat([ids[:1, :cut], ids[1:, cut:]], dim=1)
            difference = (_logits(model, changed) - first)[:, :cut].abs().amax()
            moved = max(moved, (difference / scale).nan_to_num(nan=1.0).item() if scale else 0.0)
    model.train(was_training)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), first)
    limit = ROUNDING.get(str(parameter.dtype).removeprefix("torch."), ROUNDING_16_BIT)
    if not moved <= limit:
        raise CheckpointError(
            f"model {name} ({type(model).__name__}) is not a causal language model: a later token changes the logits "
            "of earlier ones, as in an encoder (BERT), so that its loss would be false; choose a decoder-only model"
        )


def probe_tokens(model: torch.nn.Module, rows: int, length: int) -> torch.Tensor:
    """Token ids to try a model on, int64 (rows, length), distinct between rows at each position, without special ids."""
    import torch

    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "vocab_size", None) or model.get_input_embeddings().num_embeddings
    named = (getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    special = {number for value in named for number in (value if isinstance(value, list) else [value])}
    ordinary = torch.tensor([number for number in range(min(size, 10_000)) if number not in special] or [0])
    chosen = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0))
    chosen = chosen.repeat(-(-rows * length // len(chosen)))[: rows * length]
    return ordinary[chosen].view(rows, length).to(next(model.parameters()).device)


def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Within bounds: some models give tokens that cannot come the most negative number, which no scale should follow."""
    return model(input_ids=ids, use_cache=False).logits.float().clamp(-1e4, 1e4)
