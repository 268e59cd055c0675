"""Bytes per token that autograd keeps from the forward to the backward pass: counted operation by operation.

The count is that of `MyPTForCausalLM`, on a CPU, where the tests compare it with the tensors that autograd really
saves; a few numbers per token (a norm's statistics, attention's log-sums) are left out. Stock Llama, Qwen and GPT-2
models run the same operations but for RMSNorm and GPT-2's GELU, which they write out.

Three widths in bytes: w of a weight, and so of the residual stream; c of what matrix products compute in (under
autocast smaller than w); 4 where float32 is used whatever the weights are.
"""

from mypt.planning.parameters import adapted, complete, projections

FLOAT32 = 4

# Values per unit of the MLP's width kept inside the activation function, beside its result: of a MyPT model by its
# name, where it is not 1 (relu is differentiated from its result); and of a model that stays a stock GPT-2, which
# writes gelu_new out in elementary operations.
_KEPT_INSIDE = {"relu": 0}
_KEPT_INSIDE_GPT2 = {"relu": 0, "gelu_new": 4}

# Projections that read one tensor.
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def layer_activations(d: dict, block_size: int, weight: int, compute: int, attention: str, lora: dict | None) -> int:
    """Bytes per token kept in one layer.

    d: complete dimensions. weight, compute: w and c. lora: {"r", "targets", "dropout"}: adapters beside frozen weights.

        norms        2 of: w C (the input); a stock RMSNorm 4 C + w C (normalised, unless its weight is frozen)
        inputs       of every group of projections that are trained: one copy of c bytes; under autocast stock models
                     and adapters keep one for each projection, since autocast casts anew for each
        attention    queries and keys c (A + K) before QK-norm, stock ones as above; then SDPA c (A + 2 K); eager c 3 A,
                     and of the weights, H T of them, float32 and a copy of c bytes if c < 4
        MLP          gated: c F (inside + act, up); plain: c F inside; the product or act is the input of `down_proj`
        dropout      its mask, c C twice; of adapters 4 for each number of the input of each, which they keep apart
    """
    trained = adapted(d, lora["targets"]) if lora else projections(d)
    inputs = sum(_inputs(d, group, trained, weight, compute, lora) for group in _SAME_INPUT)
    norms = 2 * _norm(d, d["hidden_size"], weight, bool(lora))
    dropout = 2 * compute * d["hidden_size"] if d.get("hidden_dropout") else 0
    kept = norms + inputs + dropout + _attention(d, block_size, compute, attention, bool(lora)) + _mlp(d, compute)
    # SDPA keeps its result; unless adapters cast it, drop some of it or leave it alone, that is the input of o_proj.
    cast = weight != compute or weight != FLOAT32 or (lora or {}).get("dropout")
    own_result = lora and attention == "sdpa" and (cast or "o_proj" not in trained)
    return kept + (compute * d["num_attention_heads"] * d["head_dim"] if own_result else 0)


def _norm(d: dict, width: int, size: int, frozen: bool) -> int:
    """Bytes that a norm of `width` numbers of `size` bytes keeps, without its result."""
    if d["norm_type"] == "rmsnorm" and d.get("model_type", "mypt") != "mypt":
        return (FLOAT32 + (0 if frozen else size)) * width
    return size * width


def _inputs(d: dict, group: tuple, trained: dict, weight: int, compute: int, lora: dict | None) -> int:
    members = [name for name in group if name in trained]
    if not members:
        return 0
    width = trained[members[0]][0]
    inner = lora["r"] * len(members) * compute if lora else 0
    # Dropout keeps for each adapter by itself what was drawn, in float32, and makes its input another tensor.
    drawn = len(members) * FLOAT32 * width if lora and lora.get("dropout") else 0
    if lora and weight != FLOAT32:  # adapters are float32 and cast their input
        return len(members) * FLOAT32 * width + inner * FLOAT32 // compute + drawn
    if drawn:
        return len(members) * compute * width + inner + drawn
    once = weight == compute or (d.get("model_type", "mypt") == "mypt" and not lora)
    return (1 if once else len(members)) * compute * width + inner


def _attention(d: dict, block_size: int, compute: int, attention: str, frozen: bool) -> int:
    """Without the result, the input of `o_proj`."""
    heads = d["num_attention_heads"]
    queries, keys = heads * d["head_dim"], d["num_key_value_heads"] * d["head_dim"]
    normed = _norm(d, queries + keys, compute, frozen) if d["qk_norm"] else 0
    dropped = bool(d.get("attention_dropout"))
    if attention == "eager":
        casts = compute * ((2 if dropped else 0) if compute == FLOAT32 else (2 if dropped else 1))
        return normed + 3 * compute * queries + heads * block_size * (FLOAT32 + casts)
    if dropped:  # SDPA has no kernel for it on a CPU and falls back to plain products in float32
        return normed + 3 * FLOAT32 * queries + 3 * FLOAT32 * heads * block_size
    return normed + compute * (queries + 2 * keys)


def _mlp(d: dict, compute: int) -> int:
    """Without the input of `down_proj`."""
    kept = _KEPT_INSIDE_GPT2 if d.get("model_type") == "gpt2" else _KEPT_INSIDE
    inside = kept.get(d.get("hidden_act"), 1)
    return compute * d["intermediate_size"] * (inside + (2 if d["mlp_gated"] else 0))


def stream_activations(d: dict, weight: int, compute: int, frozen: bool) -> int:
    """Bytes per token kept outside the layers: by the last norm, as the head's input, by dropout.

    Nothing for a frozen model: the first norm of all needs no gradient, and the last one takes its place.
    """
    if frozen:
        return 0
    dropout = weight * d["hidden_size"] if d.get("hidden_dropout") else 0
    return _norm(d, d["hidden_size"], weight, frozen) + compute * d["hidden_size"] + dropout


def spared_by_frozen_embeddings(d: dict, weight: int, compute: int, checkpointing: bool) -> int:
    """Bytes per token of the above that are not kept when nothing below the first trained layer needs a gradient.

    The input of a tied head, which is frozen too; without checkpointing also the mask of the embeddings' dropout.
    """
    head = compute * d["hidden_size"] if d["tie_word_embeddings"] else 0
    if checkpointing:
        return head
    dropout = weight * d["hidden_size"] if d.get("hidden_dropout") else 0
    return head + dropout


def spared_by_frozen_input(d: dict, lora: dict) -> int:
    """Bytes per token of the above that the first layer does not keep: draws for a tensor that needs no gradient."""
    first = [size for name, size in adapted(complete(d), lora["targets"]).items() if name in _SAME_INPUT[0]]
    return FLOAT32 * sum(inward for inward, _ in first) if lora.get("dropout") else 0


def checkpointed_layer(d: dict, weight: int) -> int:
    """Bytes per token kept of a layer that is computed again in the backward pass: its input."""
    return complete(d)["hidden_size"] * weight
