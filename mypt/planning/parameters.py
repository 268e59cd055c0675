"""Parameter counts from a configuration's dimensions, part by part."""

from mypt.errors import MyPTError

FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "position_embedding_type",
    "norm_type",
    "mlp_gated",
    "qk_norm",
    "attention_bias",
    "attention_output_bias",
    "mlp_bias",
    "lm_head_bias",
    "tie_word_embeddings",
)

# What config.json leaves unsaid for these model types: transformers' own defaults.
_LLAMA = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "mlp_gated": True,
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "tie_word_embeddings": False,
}
_GPT2 = {
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "mlp_gated": False,
    "qk_norm": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "lm_head_bias": False,
}


def complete(dimensions: dict) -> dict:
    """`dimensions` with the key-value heads and the head width that follow from the rest when they are absent or None.

    Raises MyPTError that names the fields of MyPTConfig that are missing or not positive.
    """
    missing = [name for name in FIELDS if dimensions.get(name) is None]
    if missing:
        raise MyPTError(
            f"dimensions lack {', '.join(missing)}; pass all fields of a MyPTConfig, for example "
            "mypt.models.presets.preset_dimensions('modern-tiny')"
        )
    heads = dimensions["num_attention_heads"]
    filled = dict(dimensions)
    if heads and filled.get("head_dim") is None:
        filled["head_dim"] = filled["hidden_size"] // heads
    if filled.get("num_key_value_heads") is None:
        filled["num_key_value_heads"] = heads
    for name in ("num_key_value_heads", "head_dim", *FIELDS[:6]):
        if not isinstance(filled.get(name), int) or filled[name] < 1:
            raise MyPTError(f"{name} is {filled.get(name)!r}, expected a whole number of at least 1")
    return filled


def dimensions_of(config: dict) -> dict:
    """MyPTConfig fields from the contents of a checkpoint's config.json: mypt, Llama, Qwen3 or GPT-2.

    Raises MyPTError for another model type, or one of these without its dimensions.
    """
    kind = config.get("model_type")
    try:
        if kind == "mypt":
            return complete({"tie_word_embeddings": True} | config)
        if kind in ("llama", "qwen3"):
            return complete(_LLAMA | {"attention_output_bias": config.get("attention_bias", False)}
                            | {"qk_norm": kind == "qwen3"} | config)  # fmt: skip
        if kind == "gpt2":
            return complete(_GPT2 | _from_gpt2(config))
    except KeyError as missing:
        raise MyPTError(f"a {kind} config without {missing}; it must state the model's dimensions") from None
    raise MyPTError(f"model_type is {kind!r}, expected mypt, llama, qwen3 or gpt2; give --params instead")


def _from_gpt2(config: dict) -> dict:
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["n_embd"],
        "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "max_position_embeddings": config["n_positions"],
        "hidden_act": config.get("activation_function", "gelu_new"),
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
    }


def count_parameters(dimensions: dict) -> dict[str, int]:
    """Parameters of a `MyPTForCausalLM` with these MyPTConfig fields.

    Returns:
        embedding, positions, attention, mlp, norms (QK-norms among them), head: the parts; a tied head counts 0.
        total: their sum.
        non_embedding: total without embedding and positions, as HF's `num_parameters(exclude_embeddings=True)`.

    Raises:
        MyPTError: a field is missing.
    """
    d = complete(dimensions)
    layers, width = d["num_hidden_layers"], d["hidden_size"]
    parts = {
        "embedding": d["vocab_size"] * width,
        "positions": d["max_position_embeddings"] * width if d["position_embedding_type"] == "learned" else 0,
        "attention": layers * _attention(d),
        "mlp": layers * _mlp(d),
        "norms": _norms(d),
        "head": (0 if d["tie_word_embeddings"] else d["vocab_size"] * width) + d["vocab_size"] * d["lm_head_bias"],
    }
    total = sum(parts.values())
    return parts | {"total": total, "non_embedding": total - parts["embedding"] - parts["positions"]}


def hidden_matrices(dimensions: dict) -> int:
    """Parameters in the layers' weight matrices: those that Muon updates."""
    d = complete(dimensions)
    without_biases = d | {"attention_bias": False, "attention_output_bias": False, "mlp_bias": False}
    return d["num_hidden_layers"] * (_attention(without_biases) + _mlp(without_biases))


def _attention(d: dict) -> int:
    queries = d["num_attention_heads"] * d["head_dim"]
    keys = d["num_key_value_heads"] * d["head_dim"]
    matrices = d["hidden_size"] * (queries + 2 * keys) + queries * d["hidden_size"]
    biases = (queries + 2 * keys) * d["attention_bias"] + d["hidden_size"] * d["attention_output_bias"]
    return matrices + biases


def _mlp(d: dict) -> int:
    inward = 2 if d["mlp_gated"] else 1  # gate and up, or up alone; then down
    matrices = (inward + 1) * d["hidden_size"] * d["intermediate_size"]
    return matrices + (inward * d["intermediate_size"] + d["hidden_size"]) * d["mlp_bias"]


def _norms(d: dict) -> int:
    vectors = 2 if d["norm_type"] == "layernorm" else 1  # weight and bias, or weight alone
    stream = (2 * d["num_hidden_layers"] + 1) * d["hidden_size"] * vectors
    return stream + (2 * d["num_hidden_layers"] * d["head_dim"] if d["qk_norm"] else 0)
