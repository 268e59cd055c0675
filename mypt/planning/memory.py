"""Bytes that training and generation need, by component: an estimate from the model's dimensions."""

from mypt.errors import MyPTError
from mypt.planning.coverage import whole
from mypt.planning.parameters import complete, count_parameters, hidden_matrices

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZERS = ("adamw", "muon")

# Values per unit of the MLP's width that autograd keeps inside the activation function; transformers' gelu_new is
# written out in elementary operations, each of which keeps its own.
_KEPT_BY_ACTIVATION = {"gelu_new": 4}


def training_memory(
    dimensions: dict,
    *,
    micro_batch_size: int,
    block_size: int,
    optimizer: str = "adamw",
    weight_dtype: str = "float32",
    compute_dtype: str = "float32",
    checkpointing: bool = False,
) -> dict[str, int]:
    """Peak bytes on one device that holds the whole model (no FSDP or offloading), at the end of a forward pass.

    micro_batch_size: sequences per device and pass. compute_dtype: of activations; if it is not the weights', autocast
    keeps a copy of the weights in it. checkpointing: keep each layer's input only and compute the rest again.

    With P parameters, M of them in hidden matrices, w and c bytes per weight and activation, n = micro_batch_size x
    block_size tokens, L layers, C width, A and K the widths of all query and of all key-value heads, F of the MLP:

        weights      P w, and P c more with autocast
        gradients    P w
        optimizer    2 P w for adamw; M w + 2 (P - M) w for muon
        activations  n c (L k + 2 C), k = 4 C + 2 A + 2 K + (gated MLP: 4 F; plain: F (1 + what its activation keeps))
                     with RMSNorm + C at each of the norms, with QK-norm + 2 (A + K) per layer
                     with checkpointing L C + k for L k
        logits       n V (c + 12): the logits, and three float32 copies while the loss is differentiated

    The sum leaves out the framework itself, dropout masks and attention weights (SDPA keeps none).

    Raises MyPTError for an unknown optimizer or dtype, or a size below 1.
    """
    if optimizer not in OPTIMIZERS:
        raise MyPTError(f"optimizer is {optimizer!r}, expected one of: {', '.join(OPTIMIZERS)}")
    d = complete(dimensions)
    weight, compute = _width("weight_dtype", weight_dtype), _width("compute_dtype", compute_dtype)
    parameters = count_parameters(d)["total"]
    tokens = whole("micro_batch_size", micro_batch_size) * whole("block_size", block_size)
    with_momentum_only = hidden_matrices(d) if optimizer == "muon" else 0
    per_layer = activations_per_layer(d)
    layers = d["num_hidden_layers"]
    kept = layers * d["hidden_size"] + per_layer if checkpointing else layers * per_layer
    parts = {
        "weights": parameters * (weight + (compute if compute != weight else 0)),
        "gradients": parameters * weight,
        "optimizer": (2 * parameters - with_momentum_only) * weight,
        "activations": tokens * compute * (kept + _per_norm(d) * d["hidden_size"]),
        "logits": tokens * d["vocab_size"] * (compute + 3 * BYTES["float32"]),
    }
    return parts | {"total": sum(parts.values())}


def activations_per_layer(dimensions: dict) -> int:
    """Values per token that autograd keeps in one layer between the forward and the backward pass."""
    d = complete(dimensions)
    queries = d["num_attention_heads"] * d["head_dim"]
    keys = d["num_key_value_heads"] * d["head_dim"]
    attention = 2 * queries + 2 * keys + (2 * (queries + keys) if d["qk_norm"] else 0)
    # gated: gate, up, activation, product; plain: activation, and what it keeps to be differentiated
    mlp = 4 if d["mlp_gated"] else 1 + _KEPT_BY_ACTIVATION.get(d.get("hidden_act"), 1)
    return 2 * _per_norm(d) * d["hidden_size"] + attention + mlp * d["intermediate_size"]


def _per_norm(d: dict) -> int:
    """Copies of the stream kept per norm: its input, its output, and RMSNorm's normalised input (none where fused)."""
    return 3 if d["norm_type"] == "rmsnorm" else 2


def generation_memory(dimensions: dict, *, context: int, batch_size: int = 1, dtype: str = "float32") -> dict[str, int]:
    """Bytes to generate `batch_size` sequences of `context` tokens: the weights and the cache of keys and values.

    kv_cache = 2 x layers x key-value heads x head_dim x context x batch_size x bytes per value.
    """
    d = complete(dimensions)
    width = _width("dtype", dtype)
    per_token = 2 * d["num_hidden_layers"] * d["num_key_value_heads"] * d["head_dim"]
    weights = count_parameters(d)["total"] * width
    cache = per_token * whole("context", context) * whole("batch_size", batch_size) * width
    return {"weights": weights, "kv_cache": cache, "total": weights + cache}


def largest_micro_batch(dimensions: dict, available: int, *, block_size: int, **settings) -> int:
    """The most sequences per pass whose `training_memory` fits into `available` bytes; 0 if not even one fits.

    settings: the other keyword arguments of `training_memory`.
    """
    needs = training_memory(dimensions, micro_batch_size=1, block_size=block_size, **settings)
    per_sequence = needs["activations"] + needs["logits"]
    return max(0, (available - (needs["total"] - per_sequence)) // per_sequence)


def plan_memory(dimensions: dict, micro_batch_size: int, available: int | None, *, block_size: int, **settings) -> dict:
    """Both estimates, and where `available` bytes are known: whether training fits, and if not, which knob helps.

    settings: the other keyword arguments of `training_memory`.
    """
    settings["block_size"] = block_size
    training = training_memory(dimensions, micro_batch_size=micro_batch_size, **settings)
    generation = generation_memory(dimensions, context=block_size, dtype=settings["weight_dtype"])
    result = {"training": training, "generation": generation}
    if available:
        result |= {"available": available, "fits": training["total"] <= available}
        result["largest_micro_batch"] = largest_micro_batch(dimensions, available, **settings)
        result["advice"] = _advise(dimensions, result, settings)
    return result


def _advise(dimensions: dict, result: dict, settings: dict) -> str:
    needed, available, largest = result["training"]["total"], result["available"], result["largest_micro_batch"]
    if result["fits"]:
        return f"fits: {gibibytes(needed)} of {gibibytes(available)} GiB; up to {largest:,} sequences per pass do"
    excess = f"does not fit: {gibibytes(needed - available)} GiB more than the {gibibytes(available)} GiB there are; "
    if largest:
        return excess + f"lower the per-device batch size to {largest} and raise gradient_accumulation_steps"
    with_checkpointing = largest_micro_batch(dimensions, available, **settings | {"checkpointing": True})
    if with_checkpointing:
        return (
            excess + f"turn on activation checkpointing and use a per-device batch size of {with_checkpointing} at most"
        )
    return excess + "take a smaller model, or shard it over devices (FSDP)"


def gibibytes(size: int) -> str:
    """Bytes as GiB with three digits or so: 0.012, 1.53, 24.0."""
    value = size / 2**30
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _width(name: str, dtype: str) -> int:
    if dtype not in BYTES:
        raise MyPTError(f"{name} is {dtype!r}, expected one of: {', '.join(BYTES)}")
    return BYTES[dtype]
