"""Try properties of a model on a few tokens: causality, and whether packed documents are kept apart."""

from __future__ import annotations

import copy

import torch

from mypt.errors import CheckpointError, MyPTError, first_line

LENGTH = 12  # tokens of the window that is tried
CUTS = (1, 5, 11)  # positions from which on other tokens are put
# How far an earlier logit may move, relative to the farthest that any logit moves. Measured on a CPU: 0 for every
# architecture of scripts/zoo.py, 2.4e-3 and more for its random encoders in float32. Experts and quantized layers may
# compute a token in another order when its neighbours change; a rounding is 1e-7 in float32, up to 8e-3 in bfloat16.
TOLERANCE, TOLERANCE_16_BIT = 1e-4, 2e-2
COPIED = 100_000_000  # parameters below which a model in 16 bits is tried as a copy in float32


def require_causal(model: torch.nn.Module, name: str) -> None:
    """Check that earlier logits do not move when later tokens change, and that none is NaN or infinite.

    Takes four forward passes of 12 tokens; weights, mode and the global random state stay as they were.

    Args:
        model: called as `model(input_ids=..., use_cache=False)`, with `.logits` (1, T, vocabulary).
        name: its folder or hub id, for the message.

    Raises:
        CheckpointError: a later token changes an earlier logit (an encoder), there are no logits for each token, or
            a logit is NaN or infinite.
    """
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    half = any(p.element_size() < 4 for p in parameters)
    small = sum(p.numel() for p in parameters) < COPIED
    if half and small and not getattr(model, "is_quantized", False):
        model, half = copy.deepcopy(model).float(), False
    ids = probe_tokens(model, rows=2, length=LENGTH)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[ids.device] if ids.is_cuda else []):
        first = _logits(model, ids[:1], name)
        earlier = largest = 0.0
        for cut in (cut for cut in CUTS if cut < ids.shape[1]):
            changed = torch.cat([ids[:1, :cut], ids[1:, cut:]], dim=1)
            moved = (_logits(model, changed, name) - first).abs()
            earlier, largest = max(earlier, moved[:, :cut].max().item()), max(largest, moved.max().item())
    model.train(was_training)
    limit = (TOLERANCE_16_BIT if half else TOLERANCE) * largest
    if not earlier <= limit:
        raise CheckpointError(
            f"model {name} ({type(model).__name__}) is not a decoder-only language model: a later token changes the "
            f"logits of earlier ones (by {earlier:.1e}, tolerance {limit:.1e}), as in an encoder (BERT), so its "
            "next-token loss would be meaningless; choose a causal model"
        )


def probe_tokens(model: torch.nn.Module, rows: int, length: int) -> torch.Tensor:
    """Token ids to try a model on, int64 (rows, length), other ones in each row, no special ids.

    length: at most; a shorter context of the model's is filled.
    """
    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "vocab_size", None) or model.get_input_embeddings().num_embeddings
    context = getattr(config, "max_position_embeddings", None) or length  # XLNet's is -1
    length = min(length, context) if context > 0 else length
    named = (getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    special = {number for value in named for number in (value if isinstance(value, list) else [value])}
    ordinary = torch.tensor([number for number in range(min(size, 10_000)) if number not in special] or [0])
    chosen = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0))
    chosen = chosen.repeat(-(-rows * length // len(chosen)))[: rows * length]
    return ordinary[chosen].view(rows, length).to(next(model.parameters()).device)


def _logits(model: torch.nn.Module, ids: torch.Tensor, name: str) -> torch.Tensor:
    """float32 (1, T, vocabulary), bounded: ids that cannot come may have -inf or the most negative number."""
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise CheckpointError(
            f"model {name} ({type(model).__name__}) is not a decoder-only language model: it gives no logits for "
            f"token ids alone ({first_line(error)})"
        ) from error
    if logits.shape[:2] != ids.shape:
        raise CheckpointError(
            f"model {name} ({type(model).__name__}) is not a decoder-only language model: for {ids.shape[1]} tokens "
            f"its logits have the shape {tuple(logits.shape)}"
        )
    if not logits.logsumexp(dim=-1).isfinite().all():
        raise CheckpointError(
            f"model {name} gives logits that are NaN or infinite: its weights are damaged, or its training diverged; "
            "take an earlier checkpoint, or download it again"
        )
    return logits.clamp(-1e4, 1e4)


DOCUMENT = 8  # tokens of each of the two documents that are tried


@torch.no_grad()
def leaks_between_documents(model: torch.nn.Module) -> bool:
    """Whether another first document changes the logits of the second one, beyond float32's rounding.

    The positions (B, T) start at 0 again with the second document, and there is no cache: so
    transformers detects packed documents.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.arange(4 * DOCUMENT, device=device).view(2, 2 * DOCUMENT) % model.config.vocab_size
    ids[1, DOCUMENT:] = ids[0, DOCUMENT:]  # the same second document after two first ones
    positions = torch.arange(DOCUMENT, device=device).repeat(2)[None]
    first, second = (
        model(input_ids=row[None], position_ids=positions, use_cache=False).logits[0, DOCUMENT:].float() for row in ids
    )
    model.train(was_training)
    return not (first - second).abs().max() <= 1e-6 * first.abs().max()


def require_document_mask(model: torch.nn.Module, name: str) -> None:
    """Raises MyPTError for a model whose attention crosses documents, or that takes no positions at all."""
    try:
        leaks = leaks_between_documents(model)
    except TypeError:  # no argument position_ids
        leaks = True
    if leaks:
        raise MyPTError(
            f"{name} ({type(model).__name__}) does not keep packed documents apart, as document masks need; leave them "
            "out (data.document_mask: false), or take a model that does, such as MyPT, Llama or Qwen3"
        )
