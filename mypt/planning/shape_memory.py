"""Memory of architectures without formulas of their own, estimated from the shapes of their modules.

A token keeps, for each matrix that it passes, the input and the output, and for each norm its input and the normalised
states. What activation functions and routers keep besides is covered by ALLOWANCE, recurrent states are counted.
"""

from mypt.planning.memory import at_peak, components
from mypt.planning.shapes import frozen_parameters, lora_parameters
from mypt.planning.step import BYTES, FRAMEWORK, STATES, Step

FLOAT32 = 4
ALLOWANCE = 1.3  # chosen by what autograd kept of 51 tiny models (docs/estimate.md)
HOLES = 0.4  # of the activations: what an allocator on a CPU cannot use again (see mypt.planning.memory)


def note(dimensions: dict) -> str:
    """The line of a plan about the memory of such a model."""
    return (
        f"{dimensions['architecture']}: parameters are exact, counted on torch's meta device; memory is a rough "
        "estimate from the shapes of the modules"
    )


def training_memory(d: dict, step: Step) -> dict:
    """As `mypt.planning.memory.training_memory`, an estimate from the shapes."""
    weight, compute = step.widths
    tokens, layers = step.micro_batch_size * step.block_size, max(1, d["num_hidden_layers"])
    parts = _weights(d, step)
    kept = tokens * _kept_per_token(d, step)
    again = 0
    if step.checkpointing:
        kept, again = tokens * layers * weight * d["hidden_size"], kept // layers
    copies = compute * d["parameters"]["total"] if compute != weight else 0
    gathered = 0
    if step.fsdp > 1:
        gathered = BYTES[step.compute_dtype] * (2 * d["layer_parameters"] // layers + d["parameters"]["embedding"])
    logits = tokens * d["vocab_size"]
    going = parts["gradients"] if step.accumulation > 1 else 0
    upward = 8 if compute == FLOAT32 else 8 + compute
    rows = {
        "forward": (going, kept, upward * logits, copies + gathered),
        "loss": (going, kept, 12 * logits, copies + gathered),
        "backward": (parts["gradients"], kept + again, 0, copies + gathered),
        "update": (parts["gradients"], 0, 0, 0),
    }
    holes = {name: round(HOLES * row[1]) if step.device == "cpu" else 0 for name, row in rows.items()}
    return at_peak(components(parts, rows), holes)


def generation_memory(d: dict, *, context: int, batch_size: int = 1, dtype: str = "float32") -> dict[str, int]:
    """As `mypt.planning.memory.generation_memory`, an estimate from the shapes."""
    width, tokens = BYTES[dtype], context * batch_size
    widest = max((module["inward"] + module["outward"] for module in d["modules"]), default=0)
    parts = {
        "weights": d["parameters"]["total"] * width,
        "kv_cache": 2 * d["attention_layers"] * d["key_value_width"] * tokens * width,
        "logits": batch_size * d["vocab_size"] * (width + 16),
        "temporary": round(ALLOWANCE * tokens * width * (widest + 4 * d["hidden_size"])),
        "framework": FRAMEWORK,
    }
    return parts | {"total": sum(parts.values())}


def _weights(d: dict, step: Step) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer states on one device."""
    width, total = step.widths[0], d["parameters"]["total"]
    states = STATES[step.optimizer]
    if step.lora:
        adapters = FLOAT32 * lora_parameters(d, step.lora_r, step.lora_targets)
        sizes = {"weights": width * total + adapters, "gradients": adapters, "optimizer": states * adapters}
    else:
        trained = width * (total - frozen_parameters(d, step.freeze_layers, step.freeze_embeddings))
        sizes = {"weights": width * total, "gradients": trained, "optimizer": states * trained}
    return {name: -(-size // step.fsdp) for name, size in sizes.items()}


def _kept_per_token(d: dict, step: Step) -> int:
    """Bytes that autograd keeps for a token in all layers."""
    compute = step.widths[1]
    matrices = sum(module["used"] * module["count"] * (module["inward"] + module["outward"]) for module in d["modules"])
    kept = ALLOWANCE * (compute * matrices + 2 * FLOAT32 * d["norm_width"]) + FLOAT32 * d["state_numbers"]
    weights = d["attention_layers"] * d["num_attention_heads"] * step.block_size
    if step.attention == "eager":
        kept += weights * (FLOAT32 + compute)
    elif d["attention_dropout"]:  # SDPA has no kernel for it on a CPU
        kept += 3 * FLOAT32 * weights
    return round(kept)
