"""FLOPs of training on one token, of any causal LM as it stands: what is frozen costs less."""

from torch import nn
from transformers import PreTrainedModel

from mypt.training.freeze import forward_only_layers


def flops_per_token(model: PreTrainedModel, length: int) -> int:
    """FLOPs of forward and backward pass for one token of a sequence of `length` tokens, without recomputation.

    6 N + 12 L A T, the rule of `mypt.planning.scaling.flops_per_token` (Chowdhery 2022, 2204.02311, appendix B), here
    of any model whose config has the usual names. N: parameters that multiply, so the head even if it is tied, but no
    embedding table. Of the 6 a frozen one costs 4, since it gets no gradient, and 2 where the backward pass does not
    come by. Attention counts in full, as is usual, whatever a mask leaves of it; of a mixture of experts all count.
    """
    head = model.get_output_embeddings()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables -= {id(head.weight)} if head is not None else set()
    multiplying = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    flops = sum((6 if parameter.requires_grad else 4) * parameter_size(parameter) for parameter in multiplying)
    unreached = forward_only_layers(model)
    flops -= 2 * sum(parameter_size(parameter) for layer in unreached for parameter in layer.parameters())
    return flops + _attention(model.config.get_text_config(decoder=True), length, len(unreached))


def _attention(config, length: int, unreached: int) -> int:
    """Scores and weighted sums, 4 A T per layer, and twice that in the backward pass of the layers that it reaches."""
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        return 0
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return 4 * width * length * (3 * layers - 2 * unreached)


def parameter_size(parameter: nn.Parameter) -> int:
    """Numbers in it; bitsandbytes packs two of 4 bits in a byte."""
    packed = 2 * parameter.elementparameter_size() if type(parameter).__name__ == "Params4bit" else 1
    return parameter.numel() * packed
