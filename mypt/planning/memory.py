"""Bytes that a training step and generation need, by component and phase: from the model's dimensions."""

from collections import Counter

from mypt.errors import MyPTError
from mypt.planning.activations import (
    FLOAT32,
    checkpointed_layer,
    layer_activations,
    spared_by_frozen_embeddings,
    spared_by_frozen_input,
    stream_activations,
)
from mypt.planning.coverage import whole
from mypt.planning.parameters import (
    complete,
    count_parameters,
    frozen_parameters,
    hidden_matrices,
    is_measured,
    lora_parameters,
)
from mypt.planning.parameters import projections as layer_projections
from mypt.planning.step import BYTES, FRAMEWORK, MUON_TOGETHER, STATES, Step

NO_ADAPTER = {"r": 0, "targets": []}  # a frozen layer through which gradients flow, beside trained ones

# On a CPU glibc keeps freed blocks below 32 MiB for later use and gives larger ones back: resident at most is the
# largest sum of small blocks in any phase, and the large ones of the phase with most of them. Not every place that was
# freed serves again. Measured with scripts/bench_memory.py, why it is so much was not proven:
# - after the forward pass the process holds beyond its tensors 0.2 to 0.5 of what the layers keep, with adapters
#   0.8, with checkpointing 0.5 to 1.0 (adapters under autocast: from 0.2) of what they would keep without it;
# - gradients whose blocks are larger than the activations' hardly use the activations' places.
GIVEN_BACK = 32 * 2**20
KEPT = 256 * 2**20  # of freed blocks at the end of glibc's heap (mypt.hardware.main_memory.keep_freed)
HOLES, HOLES_LORA, HOLES_CHECKPOINTING = 0.37, 0.8, 0.6

# Of a model without formulas: chosen by what autograd kept of 51 tiny models (docs/estimate.md).
ALLOWANCE = 1.3
HOLES_SHAPES = 0.4  # of the activations: what an allocator on a CPU cannot use again

PHASES = ("forward", "loss", "backward", "update")


def training_memory(dimensions: dict, step: Step) -> dict:
    """Peak bytes of a training step, by component, on one device.

    Returns {component: bytes at the peak..., "total", "phase": its name, "phases": {name: {component: bytes}}}.

    With P parameters, of them T trained and M in hidden matrices, w and c bytes per weight and per number in a matrix
    product, n = micro_batch_size x block_size tokens, V vocabulary, C width, F of the MLP, L layers (of M and L, those
    that the backward pass reaches: not the frozen ones above frozen embeddings):

        weights      w P; with LoRA 4 T more for the adapters
        gradients    w T, there from the backward pass to the update; with accumulation all the time
        optimizer    w T x states per parameter (adamw 2; muon w M + 2 w (T - M), and w for each
                     vector along a matrix's longer side, which FSDP leaves whole)
        activations  n x (L x `layer_activations` + `stream_activations`); with checkpointing n L w C, and while a layer
                     is computed again, its activations
        logits       at the end of the forward pass n V 8 in float32 (logits, log-softmax), else n V (8 + c) (and a
                     float32 copy); when the loss is differentiated n V 12 (log-softmax and two gradients)
        temporary    forward and loss: autocast's copies of the matrices, c x (M + V C), of which the backward pass
                     keeps all, or with checkpointing the head's; backward: gradients inside a layer,
                     n (3 c F + 2 w C), or of a tied embedding, w V C; update: Muon's workspace
        allocator    on a CPU: what glibc holds and the phase cannot use, see GIVEN_BACK and HOLES
        framework    FRAMEWORK

    FSDP divides weights, gradients and states, and adds to `temporary` what is gathered: c x (two layers, embedding and
    head) and the gradient of the largest of these. document_mask and kernels' scratch space are left out.

    An architecture without formulas gets a rough estimate from the shapes of its modules, `_training_by_shapes`.

    Raises MyPTError as `complete` and `adapted` do.
    """
    if is_measured(dimensions):
        return _training_by_shapes(dimensions, step)
    d = complete(dimensions)
    pieces = _pieces(d, step)
    phases = _phases({name: sum(size for size, _ in rows) for name, rows in pieces.items()}, step)
    return _at_peak(phases, _allocator(pieces, step))


def _at_peak(phases: dict[str, dict[str, int]], allocator: dict[str, int]) -> dict:
    """The result of `training_memory`. phases: `_components`. allocator: its bytes in each."""
    for name, phase in phases.items():
        phase |= {"allocator": allocator[name], "framework": FRAMEWORK}
        phase["total"] = sum(phase.values())
    peak = max(phases, key=lambda name: phases[name]["total"])
    return phases[peak] | {"phase": peak, "phases": phases}


def _components(parts: dict[str, int], rows: dict[str, tuple[int, int, int, int]]) -> dict[str, dict[str, int]]:
    """The phases from `rows`: each one's gradients, activations, logits and temporary bytes."""
    return {
        name: {
            "weights": parts["weights"],
            "gradients": gradients,
            "optimizer": parts["optimizer"],
            "activations": activations,
            "logits": logits,
            "temporary": temporary,
        }
        for name, (gradients, activations, logits, temporary) in rows.items()
    }


def _pieces(d: dict, step: Step) -> dict[str, list[tuple[int, int]]]:
    """All that the phases are made of: (bytes, bytes of one of the blocks in them)."""
    weight, compute = step.widths
    tokens, layers = step.micro_batch_size * step.block_size, d["num_hidden_layers"]
    reached, trained = _layers(d, step)
    matrices, table = hidden_matrices(d) * reached // layers, d["vocab_size"] * d["hidden_size"]
    matrix = max(inward * outward for inward, outward in layer_projections(d).values())
    sizes = (step.block_size, weight, compute, step.attention)
    layer = tokens * layer_activations(d, *sizes, step.lora)
    computed = trained * layer + (reached - trained) * tokens * layer_activations(d, *sizes, NO_ADAPTER)
    kept = layers * tokens * checkpointed_layer(d, weight) if step.checkpointing else computed
    stream = tokens * stream_activations(d, weight, compute, bool(step.lora))
    if step.lora and not step.checkpointing:
        stream -= tokens * spared_by_frozen_input(d, step.lora)
    if step.freeze_embeddings:
        stream -= tokens * spared_by_frozen_embeddings(d, weight, compute, step.checkpointing)
    autocast = compute if compute != weight else 0
    widest = weight * max(d["hidden_size"], d["num_attention_heads"] * d["head_dim"])
    block = tokens * (widest if step.checkpointing else max(widest, compute * d["intermediate_size"]))
    share = HOLES_CHECKPOINTING if step.checkpointing else HOLES_LORA if step.lora else HOLES
    tied = d["tie_word_embeddings"]
    trained_head = 0 if step.lora or (step.freeze_embeddings and tied) else weight * table
    workspaces = _muon_workspaces(d, step) if step.optimizer == "muon" else [(0, 0)]
    return _weight_pieces(d, step, matrix) | {
        "layer": [(layer, block)],
        "kept": [(kept + stream, block)],
        "holes": [(round(share * computed), block)],
        "logits": [(tokens * d["vocab_size"], FLOAT32 * tokens * d["vocab_size"])],
        "copies": [(autocast * matrices, autocast * matrix), (autocast * table, autocast * table)],
        "head_copy": [(autocast * table, autocast * table)],
        "layer_copies": [(autocast * hidden_matrices(d) // layers, autocast * matrix)],
        "head_gradient": [(trained_head, weight * table)],
        "tied_gradient": [(trained_head if tied else 0, weight * table)],
        "inside": [(tokens * (3 * compute * d["intermediate_size"] + 2 * weight * d["hidden_size"]), block)],
        "gathered": [(_gathered(d, step), BYTES[step.compute_dtype] * table)],
        "workspace": workspaces[:1],
        "earlier_workspace": [max((size, block) if block < GIVEN_BACK else (0, 0) for size, block in workspaces)],
    }


def _weight_pieces(d: dict, step: Step, matrix: int) -> dict[str, list[tuple[int, int]]]:
    """Weights, gradients and states on one device; matrix: numbers in the largest matrix of a layer."""
    width, parameters = step.widths[0], count_parameters(d)["total"]
    table = width * d["vocab_size"] * d["hidden_size"]
    tables = table if d["tie_word_embeddings"] else 2 * table
    weights = _in_tables_and_layers(width * parameters, tables, table, width * matrix, step.fsdp)
    states = STATES[step.optimizer]
    if step.lora:
        adapters = FLOAT32 * lora_parameters(d, step.lora_r, step.lora_targets) // step.fsdp
        return {
            "weights": [*weights, (adapters, 0)],
            "gradients": [(adapters, 0)],
            "optimizer": [(states * adapters, 0)],
        }
    trained = width * (parameters - frozen_parameters(d, step.freeze_layers, step.freeze_embeddings))
    if step.freeze_embeddings:
        tables -= table
    share = _layers(d, step)[1] / d["num_hidden_layers"]
    muon = step.optimizer == "muon"
    with_momentum = round(share * width * hidden_matrices(d)) if muon else 0
    vectors = sum(max(shape) for shape in layer_projections(d).values()) * _layers(d, step)[1] if muon else 0
    return {
        "weights": weights,
        "gradients": _in_tables_and_layers(trained, tables, table, width * matrix, step.fsdp),
        "optimizer": [
            *_in_tables_and_layers(states * trained - with_momentum, states * tables, table, width * matrix, step.fsdp),
            (width * vectors, 0),
        ],
    }


def _in_tables_and_layers(size: int, tables: int, table: int, matrix: int, fsdp: int) -> list[tuple[int, int]]:
    """One device's part of `size` bytes: `tables` of them in blocks of a table, the rest in blocks of a matrix."""
    return [(tables // fsdp, table), (-(-size // fsdp) - tables // fsdp, matrix)]


def _layers(d: dict, step: Step) -> tuple[int, int]:
    """Layers that the backward pass reaches, and those of them that are trained."""
    trained = d["num_hidden_layers"] - step.freeze_layers
    return (trained if step.freeze_embeddings else d["num_hidden_layers"]), trained


def _phases(parts: dict[str, int], step: Step) -> dict[str, dict[str, int]]:
    """Components at the four moments; parts: bytes by the names of `_pieces`."""
    compute = BYTES[step.compute_dtype]
    going = parts["gradients"] if step.accumulation > 1 else 0
    copies = parts["head_copy"] if step.checkpointing else parts["copies"]
    upward = 8 if compute == FLOAT32 else 8 + compute
    rows = {
        "forward": (going, parts["kept"], upward * parts["logits"], parts["copies"] + parts["gathered"]),
        "loss": (going, parts["kept"], 12 * parts["logits"], copies + parts["gathered"]),
        "backward": _backward(parts, going, parts["layer"] if step.checkpointing else 0, copies),
        "update": (parts["gradients"], 0, 0, parts["workspace"]),
    }
    return _components(parts, rows)


def _backward(parts: dict[str, int], going: int, again: int, copies: int) -> tuple[int, int, int, int]:
    """The backward pass in the last layer, the first to be differentiated, or in the first one: which needs more."""
    gradient = max(going, min(parts["head_gradient"], parts["gradients"]))
    start = parts["inside"] + copies + (parts["layer_copies"] if again else 0)
    at_start = (gradient, parts["kept"] + again, 0, start + parts["gathered"])
    first = parts["inside"] + parts["layer_copies"]
    if first + parts["layer"] > parts["tied_gradient"]:
        at_end = (parts["gradients"], parts["layer"], 0, first + parts["gathered"])
    else:
        at_end = (parts["gradients"], 0, 0, parts["tied_gradient"] + parts["gathered"])
    return max(at_start, at_end, key=sum)


def _allocator(pieces: dict, step: Step) -> dict[str, int]:
    """Bytes that glibc holds beyond the tensors in each phase; see GIVEN_BACK."""
    if step.device != "cpu":
        return dict.fromkeys(PHASES, 0)
    parts = {name: sum(size for size, block in rows if block < GIVEN_BACK) for name, rows in pieces.items()}
    small = {name: sum(phase.values()) for name, phase in _phases(parts, step).items()}
    unused = dict.fromkeys(("forward", "loss"), parts["holes"])
    places = parts["kept"] + parts["holes"] + parts["copies"]
    unused |= dict.fromkeys(("backward", "update"), round(_too_small(pieces) * places))
    unused["update"] += parts["earlier_workspace"] - parts["workspace"]
    most = max(size + unused[name] for name, size in small.items())
    return {name: most - small[name] for name in PHASES}


def _too_small(pieces: dict) -> float:
    """The share of the forward pass's places that the gradients' blocks do not fit in; see GIVEN_BACK."""
    (_, activation), (_, gradient) = pieces["layer"][0], pieces["gradients"][-1]
    return max(0.0, 1 - activation / gradient) if gradient else 0.0


def _gathered(d: dict, step: Step) -> int:
    if step.fsdp == 1:
        return 0
    tables = d["vocab_size"] * d["hidden_size"] * (1 if d["tie_word_embeddings"] else 2)
    layer = hidden_matrices(d) // d["num_hidden_layers"]
    return BYTES[step.compute_dtype] * (tables + 2 * layer + (0 if step.lora else max(tables, layer)))


def _muon_workspaces(d: dict, step: Step) -> list[tuple[int, int]]:
    """Bytes of `MuonAdamW`'s scratch, and of one block, the largest first: one for all matrices of one shape.

    With G numbers in a stack of updates (w bytes each; at most MUON_TOGETHER, or one matrix), S in the products of
    their shorter sides and i bytes per number (2 under bfloat16 autocast, else 4): w G + i (2 G + 2 S), when an
    iteration ends.
    """
    weight, compute = step.widths
    inner = 2 if step.compute_dtype == "bfloat16" and compute != weight else FLOAT32
    layers = _layers(d, step)[1]
    shapes = Counter(tuple(sorted(shape)) for shape in layer_projections(d).values())
    needs = []
    for (short, long), members in shapes.items():
        members = min(members * layers, max(1, MUON_TOGETHER // (short * long)))
        total = weight * short * long + 2 * inner * (short * long + short**2)
        needs.append((members * total, members * inner * short * long))
    return sorted(needs, reverse=True)


def _training_by_shapes(d: dict, step: Step) -> dict:
    """As `training_memory`, for an architecture without formulas.

    A token keeps, for each matrix that it passes, the input and the output, and for each norm its input and the
    normalised states. ALLOWANCE covers what activation functions and routers keep; recurrent states are counted.
    """
    weight, compute = step.widths
    tokens, layers = step.micro_batch_size * step.block_size, max(1, d["num_hidden_layers"])
    parts = _weights_by_shapes(d, step)
    kept = tokens * _kept_by_shapes(d, step)
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
    holes = {name: round(HOLES_SHAPES * row[1]) if step.device == "cpu" else 0 for name, row in rows.items()}
    return _at_peak(_components(parts, rows), holes)


def _weights_by_shapes(d: dict, step: Step) -> dict[str, int]:
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


def _kept_by_shapes(d: dict, step: Step) -> int:
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

    For an architecture without formulas, what a layer makes is estimated from the widest of its modules.

    Raises MyPTError as `complete` does, and for an unknown dtype or a size below 1.
    """
    measured = is_measured(dimensions)
    d = dimensions if measured else complete(dimensions)
    if dtype not in BYTES:
        raise MyPTError(f"dtype is {dtype!r}, expected one of: {', '.join(BYTES)}")
    width, tokens = BYTES[dtype], whole("context", context) * whole("batch_size", batch_size)
    if measured:
        cached = d["attention_layers"] * d["key_value_width"]
        widest = max((module["inward"] + module["outward"] for module in d["modules"]), default=0)
        made = ALLOWANCE * (widest + 4 * d["hidden_size"])
    else:
        cached = d["num_hidden_layers"] * d["num_key_value_heads"] * d["head_dim"]
        made = _made_in_layer(d)
    parts = {
        "weights": count_parameters(d)["total"] * width,
        "kv_cache": 2 * cached * tokens * width,
        "logits": batch_size * d["vocab_size"] * (width + 16),
        "temporary": round(tokens * width * made),
        "framework": FRAMEWORK,
    }
    return parts | {"total": sum(parts.values())}


def _made_in_layer(d: dict) -> int:
    """Numbers per token that a layer makes without a backward pass; see `generation_memory`."""
    keys, queries = (d[name] * d["head_dim"] for name in ("num_key_value_heads", "num_attention_heads"))
    made = 3 if d["mlp_gated"] else 5 if d.get("hidden_act") == "gelu_new" else 2
    turned = 3 * queries if d["position_embedding_type"] == "rope" else 0
    return 2 * (d["hidden_size"] + queries + keys) + turned + made * d["intermediate_size"]


def evaluation_memory(dimensions: dict, step: Step, windows: int) -> dict[str, int]:
    """Bytes of an evaluation between steps, by component, on one device; windows: in a forward pass.

    With n = windows x block_size tokens, and what `training_memory` and `generation_memory` name:

        weights, optimizer   as between steps
        logits               n V 8: float32 logits and their log-softmax; n V (8 + c) under autocast, of which they are
                             a copy
        temporary            what a layer makes, n w numbers, with eager attention n H T (4 + 2 c); autocast's copies
        allocator            on a CPU: what the last step has left in glibc's heap, at most KEPT

    Raises MyPTError as `training_memory` does.
    """
    d, (weight, compute) = complete(dimensions), step.widths
    tokens = whole("windows", windows) * step.block_size
    phases = training_memory(dimensions, step)["phases"]
    between, forward = phases["update"], phases["forward"]
    numbers = 8 if compute == FLOAT32 else 8 + compute
    temporary = tokens * weight * _made_in_layer(d)
    if step.attention == "eager":
        temporary += tokens * d["num_attention_heads"] * step.block_size * (FLOAT32 + 2 * compute)
    if compute != weight:
        temporary += compute * (hidden_matrices(d) + d["vocab_size"] * d["hidden_size"])
    parts = {
        "weights": between["weights"],
        "optimizer": between["optimizer"],
        "logits": numbers * tokens * d["vocab_size"],
        "temporary": temporary,
        "allocator": min(KEPT, forward["activations"] + forward["allocator"]) if step.device == "cpu" else 0,
        "framework": FRAMEWORK,
    }
    return parts | {"total": sum(parts.values())}
