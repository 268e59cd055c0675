"""The attention of a model for a run: the preferred implementation that really works with it here."""

from contextlib import nullcontext

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from mypt.checkpoints.probes import leaks_between_documents
from mypt.errors import RecipeError
from mypt.planning.optimizer import Choice

# These can be told only by trying: they need a package, a GPU, a compiler, or shapes that a kernel knows.
TRIED = ("flash_attention_2", "flex_attention")


def choose_working_attention(
    model: PreTrainedModel, candidates: list[Choice], compute: str, document_mask: bool, automatic: bool
) -> Choice:
    """Set the first candidate that works, for this process's model only: a saved config does not record it.

    automatic: the next one is taken for one that does not work, with the reason; else that is a RecipeError.
    """
    rejected = ""
    for choice in candidates:
        try:
            _set(model, choice.value, compute, document_mask)
            return Choice(choice.value, choice.reason + rejected)
        except Exception as error:  # whatever a kernel's library raises where it cannot run
            words = f"{choice.value} does not work here: {_first_sentence(error)}"
            if not automatic:
                raise RecipeError(
                    f"hardware.attention {words}; give --hardware.attention=sdpa or leave it out of a new run"
                ) from error
            rejected += f"; {words}"
    raise RecipeError(f"no attention of {type(model).__name__} works{rejected}; name one in hardware.attention")


def _set(model: PreTrainedModel, implementation: str, compute: str, document_mask: bool) -> None:
    if implementation == "flash_attention_2" and document_mask:
        # transformers hands it the documents of a packed sequence for a batch of one only.
        raise ValueError("it sees across the documents of data.document_mask")
    model.set_attn_implementation(implementation)
    if implementation in TRIED:
        _try(model, compute, document_mask)
    if document_mask and leaks_between_documents(model):
        raise ValueError("it sees across the documents of data.document_mask")


def _try(model: PreTrainedModel, compute: str, document_mask: bool) -> None:
    """A forward and a backward pass of a few tokens, on the device that will train."""
    device = PartialState().device
    model.to(device).train()
    ids = torch.arange(256, device=device).view(2, 128) % model.config.vocab_size
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    if document_mask:
        inputs["position_ids"] = torch.arange(64, device=device).repeat(2).expand(2, -1)
    lower = torch.autocast(device.type, getattr(torch, compute)) if compute != "float32" else nullcontext()
    with torch.enable_grad(), lower:
        loss = model(**inputs).loss
    if loss.requires_grad:
        loss.backward()
    model.zero_grad(set_to_none=True)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:200]
