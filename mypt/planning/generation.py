"""Bytes that generation needs, by component: worked out from the model's dimensions."""

from mypt.errors import MyPTError
from mypt.planning.coverage import whole
from mypt.planning.parameters import complete, count_parameters
from mypt.planning.step import BYTES, FRAMEWORK


def generation_memory(dimensions: dict, *, context: int, batch_size: int = 1, dtype: str = "float32") -> dict[str, int]:
    """Bytes to generate: `batch_size` sequences that grow to `context` tokens, most of them given as the prompt.

    With n = batch_size x context tokens, A and K the widths of all query and of all key-value heads, C width, F of the
    MLP, V vocabulary, b bytes per value:

        weights      b P
        kv_cache     2 L K n b
        logits       batch_size V (b + 16): of the last position; float32 copies while the next id is drawn
        temporary    while the prompt is read, n b times what attention makes, 2 C + 2 A + 2 K, and 3 A more to rotate,
                     and what the MLP makes, 3 F with a gate, else 2 F, 5 F for gelu_new: both, because attention's
                     blocks are smaller and the allocator keeps them (see `mypt.planning.memory`)
        framework    FRAMEWORK

    Raises MyPTError as `complete` does, and for an unknown dtype or a size below 1.
    """
    d = complete(dimensions)
    if dtype not in BYTES:
        raise MyPTError(f"dtype is {dtype!r}, expected one of: {', '.join(BYTES)}")
    width, tokens = BYTES[dtype], whole("context", context) * whole("batch_size", batch_size)
    keys = d["num_key_value_heads"] * d["head_dim"]
    made = 3 if d["mlp_gated"] else 5 if d.get("hidden_act") == "gelu_new" else 2
    queries = d["num_attention_heads"] * d["head_dim"]
    turned = 3 * queries if d["position_embedding_type"] == "rope" else 0
    inside = 2 * (d["hidden_size"] + queries + keys) + turned + made * d["intermediate_size"]
    parts = {
        "weights": count_parameters(d)["total"] * width,
        "kv_cache": 2 * d["num_hidden_layers"] * keys * tokens * width,
        "logits": batch_size * d["vocab_size"] * (width + 16),
        "temporary": tokens * width * inside,
        "framework": FRAMEWORK,
    }
    return parts | {"total": sum(parts.values())}
