"""FLOPs of training any causal LM on one token; frozen parts cost less."""

from torch import nn
from transformers import PreTrainedModel

from mypt.checkpoints.meta import attention_layers, used_share
from mypt.training.model.freeze import forward_only_layers


def flops_per_token(model: PreTrainedModel, length: int) -> int:
    """FLOPs of forward and backward pass for one token of a sequence of `length` tokens, without recomputation.

    6 N + 12 L A T, the rule of `mypt.planning.scaling.flops_per_token` (Chowdhery 2022, 2204.02311, appendix B), here
    of any model whose config has the usual names. N: parameters that multiply, so the head even if it is tied, but no
    embedding table. A frozen one costs 4 of the 6, since it gets no gradient, and 2 where the backward pass does not
    come by. Attention counts in full, as is usual, whatever a mask leaves of it; of experts those count that a token
    passes.
    """
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables -= {id(head.weight)} if head is not None else set()
    used = {
        id(parameter): parameter_size(parameter) * used_share(model, module, name, parameter, config)
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) not in tables
    }
    flops = sum((6 if p.requires_grad else 4) * used.get(id(p), 0) for p in model.parameters())
    unreached = forward_only_layers(model)
    flops -= 2 * sum(used.get(id(p), 0) for layer in unreached for p in layer.parameters())
    return round(flops) + _attention(config, length, len(unreached))


def _attention(config, length: int, unreached: int) -> int:
    """Scores and weighted sums, 4 A T per layer, and twice that in the backward pass of the layers that it reaches."""
    layers, heads = attention_layers(config), getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        return 0
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return 4 * width * length * (3 * layers - 2 * unreached)


def parameter_size(parameter: nn.Parameter) -> int:
    """Numbers in it; bitsandbytes packs two of 4 bits in a byte."""
    packed = 2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1
    return parameter.numel() * packed
