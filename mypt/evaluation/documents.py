"""Whether a model keeps the documents of a packed window apart when it is told their positions: tried, not believed."""

import torch

from mypt.errors import MyPTError

LENGTH = 8  # tokens of each of the two documents that are tried


@torch.no_grad()
def leaks_between_documents(model: torch.nn.Module) -> bool:
    """Whether another first document changes the logits of the second one, beyond float32's rounding.

    The positions (B, T) start at 0 again with the second document, and there is no cache: the way in which
    transformers is told of packed documents.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.arange(4 * LENGTH, device=device).view(2, 2 * LENGTH) % model.config.vocab_size
    ids[1, LENGTH:] = ids[0, LENGTH:]  # the same second document after two first ones
    positions = torch.arange(LENGTH, device=device).repeat(2)[None]
    first, second = (
        model(input_ids=row[None], position_ids=positions, use_cache=False).logits[0, LENGTH:].float() for row in ids
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
