"""Parameter counts from a model's dimensions, part by part.

Dimensions are the fields of a MyPTConfig or, of an architecture without formulas, the parameters and the shapes of its
modules, as `mypt.checkpoints.meta` reads them: these have the key `modules`.
"""

import difflib
import re

from mypt.errors import MyPTError

ALL_LINEAR = "all-linear"  # every linear layer but the head

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

_ROTARY = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "mlp_gated": True,
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "tie_word_embeddings": False,
    "qk_norm": False,
}
# Model types that `dimensions_of` knows, and what config.json leaves unsaid of each: transformers' own defaults.
FORMULAS = {
    "mypt": {"tie_word_embeddings": True},
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": _ROTARY,
    "qwen3": _ROTARY | {"qk_norm": True},
    "gpt2": {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "mlp_gated": False,
        "qk_norm": False,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "lm_head_bias": False,
    },
}


def is_measured(dimensions: dict) -> bool:
    """Whether these are shapes of modules, and no MyPTConfig fields."""
    return "modules" in dimensions


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
    """MyPTConfig fields from the contents of a checkpoint's config.json, of one of the model types in FORMULAS.

    Raises MyPTError for another model type, or one of these without its dimensions.
    """
    kind = config.get("model_type")
    if kind not in FORMULAS:
        raise MyPTError(f"model_type is {kind!r}, expected one of {', '.join(FORMULAS)}")
    if kind == "gpt2":
        try:
            config = _from_gpt2(config)
        except KeyError as missing:
            raise MyPTError(f"a {kind} config without {missing}; it must state the model's dimensions") from None
    elif kind == "qwen2":
        config = config | {"attention_bias": True, "attention_output_bias": False, "qk_norm": False}
    elif kind != "mypt":
        config = {"attention_output_bias": config.get("attention_bias", False)} | config
    return complete(FORMULAS[kind] | config)


def with_positions(dimensions: dict, block_size: int) -> dict:
    """The dimensions with positions for a block of this size, as training extends a MyPT model.

    Raises MyPTError for a block beyond the positions of an architecture that stays as it is.
    """
    limit = dimensions["max_position_embeddings"]
    if limit is None or block_size <= limit:
        return dimensions
    if is_measured(dimensions):
        raise MyPTError(
            f"block_size {block_size:,} is longer than the {limit:,} positions of {dimensions['architecture']}; lower "
            "data.block_size (--block-size)"
        )
    return dimensions | {"max_position_embeddings": block_size}


def _from_gpt2(config: dict) -> dict:
    return {
        "model_type": "gpt2",
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
    if is_measured(dimensions):
        return dict(dimensions["parameters"])
    d = complete(dimensions)
    layers, width = d["num_hidden_layers"], d["hidden_size"]
    parts = {
        "embedding": d["vocab_size"] * width,
        "positions": d["max_position_embeddings"] * width if d["position_embedding_type"] == "learned" else 0,
        "attention": layers * _biased(d, ATTENTION),
        "mlp": layers * _biased(d, MLP),
        "norms": _norms(d),
        "head": (0 if d["tie_word_embeddings"] else d["vocab_size"] * width) + d["vocab_size"] * d["lm_head_bias"],
    }
    total = sum(parts.values())
    return parts | {"total": total, "non_embedding": total - parts["embedding"] - parts["positions"]}


def parameters_per_layer(dimensions: dict) -> dict[str, int]:
    """Parameters of one layer: attention, mlp, norms, and their total."""
    d = complete(dimensions)
    parts = {"attention": _biased(d, ATTENTION), "mlp": _biased(d, MLP), "norms": _layer_norms(d)}
    return parts | {"total": sum(parts.values())}


def hidden_matrices(dimensions: dict) -> int:
    """Parameters in the layers' weight matrices: those that Muon updates."""
    d = complete(dimensions)
    return d["num_hidden_layers"] * sum(inward * outward for inward, outward in projections(d).values())


def projections(d: dict) -> dict[str, tuple[int, int]]:
    """Width of input and output of each linear layer of a decoder layer, by name; d: complete dimensions."""
    width, inner = d["hidden_size"], d["intermediate_size"]
    queries = d["num_attention_heads"] * d["head_dim"]
    keys = d["num_key_value_heads"] * d["head_dim"]
    layers = {
        "q_proj": (width, queries),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (queries, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }
    return layers if d["mlp_gated"] else {name: size for name, size in layers.items() if name != "gate_proj"}


def adapted(d: dict, targets: str | list[str]) -> dict[str, tuple[int, int]]:
    """The `projections` that LoRA adapts: all of them for "all-linear", else as peft finds them.

    targets: ends of module names (`q_proj`, `mlp.up_proj`) or one regular expression of whole ones, which is tried on
    the first layer. Raises MyPTError if one of them finds nothing.
    """
    known = projections(d)
    if targets == ALL_LINEAR:
        return known
    paths = {name: f"model.layers.0.{'self_attn' if name in ATTENTION else 'mlp'}.{name}" for name in known}
    wanted = [targets] if isinstance(targets, str) else targets
    found = {target: [n for n, path in paths.items() if _is_target(path, target, targets)] for target in wanted}
    for target, names in found.items():
        if not names:
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected {ALL_LINEAR} or some of {', '.join(known)}"
            raise MyPTError(f"LoRA target {target!r} finds no linear layer of this model; {hint}")
    chosen = {name for names in found.values() for name in names}
    return {name: size for name, size in known.items() if name in chosen}


def lora_parameters(dimensions: dict, r: int, targets: str | list[str] = ALL_LINEAR) -> int:
    """Parameters that LoRA of rank `r` trains: r x (input + output width) for each adapted linear layer.

    Raises MyPTError if one of the targets finds nothing.
    """
    if is_measured(dimensions):
        modules = _adapted_modules(dimensions, targets)
        return r * sum(module["count"] * (module["inward"] + module["outward"]) for module in modules)
    d = complete(dimensions)
    return d["num_hidden_layers"] * r * sum(map(sum, adapted(d, targets).values()))


def _adapted_modules(d: dict, targets: str | list[str]) -> list[dict]:
    """The measured modules that peft would find by these names."""
    linear = [module for module in d["modules"] if module["adapted"]]
    if targets == ALL_LINEAR:
        return linear
    paths = [module["name"].replace(".*.", ".0.") for module in linear]
    wanted = [targets] if isinstance(targets, str) else targets
    for target in wanted:
        if not any(_is_target(path, target, targets) for path in paths):
            names = sorted({path.rpartition(".")[2] for path in paths})
            raise MyPTError(
                f"LoRA target {target!r} finds no linear layer of this model; expected {ALL_LINEAR} or some of "
                f"{', '.join(names)}"
            )
    pairs = zip(linear, paths, strict=True)
    return [module for module, path in pairs if any(_is_target(path, target, targets) for target in wanted)]


def _is_target(path: str, target: str, targets: str | list[str]) -> bool:
    """As peft matches: one text is a regular expression of whole names, each of a list the end of a name."""
    return bool(re.fullmatch(target, path)) if isinstance(targets, str) else f".{path}".endswith(f".{target}")


def frozen_parameters(dimensions: dict, layers: int, embeddings: bool) -> int:
    """Parameters of the first `layers` layers and, if asked, of the embedding tables (a tied head is one of them).

    The layers of a model without formulas count as equally large. Raises MyPTError for more layers than there are.
    """
    d = dimensions if is_measured(dimensions) else complete(dimensions)
    most = d["num_hidden_layers"]
    if not 0 <= layers <= most:
        raise MyPTError(f"freeze_layers is {layers}, expected 0 to {most}: the model has no more")
    parts = count_parameters(d)
    tables = parts["embedding"] + parts["positions"] if embeddings else 0
    if is_measured(d):
        return d["layer_parameters"] * layers // max(1, most) + tables
    return layers * parameters_per_layer(d)["total"] + tables


def parameter_report(dimensions: dict, lora: dict | None = None, frozen: int = 0) -> dict:
    """`count_parameters`, with `per_layer`, `trained` and `frozen` and, where LoRA adds adapters, `adapters`.

    lora: {"r": rank, "targets": as `adapted` takes them}. frozen: `frozen_parameters` without LoRA.
    """
    report = count_parameters(dimensions)
    if not is_measured(dimensions):  # whose layers may differ
        report |= {"per_layer": parameters_per_layer(dimensions)}
    if lora:
        adapters = lora_parameters(dimensions, lora["r"], lora["targets"])
        report |= {"adapters": adapters, "trained": adapters, "frozen": report["total"]}
    else:
        report |= {"trained": report["total"] - frozen, "frozen": frozen}
    return report


ATTENTION = {"q_proj": "attention_bias", "k_proj": "attention_bias", "v_proj": "attention_bias",
             "o_proj": "attention_output_bias"}  # fmt: skip
MLP = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp_bias")


def _biased(d: dict, switches: dict[str, str]) -> int:
    """Matrices and biases of one layer's projections; switches: the field that gives each its bias."""
    sizes = {name: size for name, size in projections(d).items() if name in switches}
    return sum(inward * outward + outward * bool(d[switches[name]]) for name, (inward, outward) in sizes.items())


def _layer_norms(d: dict) -> int:
    vectors = 2 if d["norm_type"] == "layernorm" else 1  # weight and bias, or weight alone
    return 2 * d["hidden_size"] * vectors + (2 * d["head_dim"] if d["qk_norm"] else 0)


def _norms(d: dict) -> int:
    vectors = 2 if d["norm_type"] == "layernorm" else 1
    return d["num_hidden_layers"] * _layer_norms(d) + d["hidden_size"] * vectors
