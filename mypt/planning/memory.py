"""Bytes that training and generation need, by component and by phase of a step: worked out from the model's dimensions.

A training step needs most at one of four moments; what is there at each is in `training_memory`. The rules were found
by counting the tensors that autograd saves and by measuring processes; `scripts/bench_memory.py` measures again.
"""

from collections import Counter
from dataclasses import dataclass

from mypt.errors import MyPTError
from mypt.planning.activations import checkpointed_layer, layer_activations, stream_activations
from mypt.planning.coverage import whole
from mypt.planning.parameters import ALL_LINEAR, complete, count_parameters, hidden_matrices, lora_parameters
from mypt.planning.parameters import projections as layer_projections

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ATTENTIONS = ("sdpa", "eager")
DEVICES = ("cpu", "gpu")

# Copies of the trained weights that an optimizer keeps. Muon: one for hidden matrices, two (AdamW's) for the rest.
STATES = {"adamw": 2, "muon": 2, "adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}

FRAMEWORK = 550 * 2**20  # Python, torch, transformers and their kernels after a first step (measured on a CPU)

# On a CPU glibc keeps freed blocks below 32 MiB for later use and gives larger ones back: resident at most is the
# largest sum of small blocks in any phase, and the large ones of the phase with most of them. Not every place that was
# freed serves again. Measured (docs/estimate.md has the runs; why it is so much was not proven):
# - after the forward pass the process holds beyond its tensors 0.2 to 0.5 of what the layers keep, with adapters
#   0.8, with checkpointing 0.5 to 1.0 (adapters under autocast: from 0.2) of what they would keep without it;
# - gradients whose blocks are larger than the activations' hardly use the activations' places.
GIVEN_BACK = 32 * 2**20
HOLES, HOLES_LORA, HOLES_CHECKPOINTING = 0.37, 0.8, 0.6

COMPONENTS = ("weights", "gradients", "optimizer", "activations", "logits", "temporary", "allocator", "framework")
PHASES = ("forward", "loss", "backward", "update")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What beside the model decides the memory of a training step on one device.

    micro_batch_size: sequences per device and pass, of block_size tokens. accumulation: passes per step.
    weight_dtype: of weights, gradients and optimizer states. compute_dtype: of matrix products; if it is another,
    autocast makes copies of the matrices in it. lora_r: rank of the adapters, 0 for none. fsdp: devices that share
    weights, gradients and states (full shard). device: on a "cpu" glibc's allocator costs memory, too.
    """

    micro_batch_size: int
    block_size: int
    accumulation: int = 1
    optimizer: str = "adamw"
    weight_dtype: str = "float32"
    compute_dtype: str = "float32"
    checkpointing: bool = False
    attention: str = "sdpa"
    lora_r: int = 0
    lora_targets: str | list[str] = ALL_LINEAR
    fsdp: int = 1
    device: str = "cpu"

    def __post_init__(self):
        for name in ("micro_batch_size", "block_size", "accumulation", "fsdp"):
            whole(name, getattr(self, name))
        choices = {"optimizer": STATES, "attention": ATTENTIONS, "device": DEVICES}
        for name, known in (choices | dict.fromkeys(("weight_dtype", "compute_dtype"), BYTES)).items():
            if getattr(self, name) not in known:
                raise MyPTError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(known)}")
        if self.lora and self.optimizer == "muon":
            raise MyPTError("optimizer muon is refused beside LoRA, in training too; expected adamw, the default there")

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a weight and of a number in a matrix product."""
        return BYTES[self.weight_dtype], BYTES[self.compute_dtype]

    @property
    def lora(self) -> dict | None:
        return {"r": self.lora_r, "targets": self.lora_targets} if self.lora_r else None


def training_memory(dimensions: dict, step: Step) -> dict:
    """Peak bytes of a training step, by component, on one device.

    Returns {component: bytes at the peak..., "total", "phase": its name, "phases": {name: {component: bytes}}}.

    With P parameters, of them T trained and M in hidden matrices, w and c bytes per weight and per number in a matrix
    product, n = micro_batch_size x block_size tokens, V vocabulary, C width, F of the MLP, L layers:

        weights      w P; with LoRA 4 T more for the adapters
        gradients    w T, there from the backward pass to the update; with accumulation all the time
        optimizer    w T x states per parameter (adamw 2; muon w M + 2 w (T - M))
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

    Raises MyPTError as `complete` and `adapted` do.
    """
    d = complete(dimensions)
    pieces = _pieces(d, step)
    phases = _phases({name: sum(size for size, _ in rows) for name, rows in pieces.items()}, step)
    for name, held in _allocator(pieces, step).items():
        phases[name] |= {"allocator": held, "framework": FRAMEWORK}
        phases[name]["total"] = sum(phases[name].values())
    peak = max(phases, key=lambda name: phases[name]["total"])
    return phases[peak] | {"phase": peak, "phases": phases}


def _pieces(d: dict, step: Step) -> dict[str, list[tuple[int, int]]]:
    """All that the phases are made of: (bytes, bytes of one of the blocks in them)."""
    weight, compute = step.widths
    tokens, layers = step.micro_batch_size * step.block_size, d["num_hidden_layers"]
    matrices, table = hidden_matrices(d), d["vocab_size"] * d["hidden_size"]
    matrix = max(inward * outward for inward, outward in layer_projections(d).values())
    layer = tokens * layer_activations(d, step.block_size, weight, compute, step.attention, step.lora)
    per_layer = tokens * checkpointed_layer(d, weight) if step.checkpointing else layer
    stream = tokens * stream_activations(d, weight, compute, bool(step.lora))
    autocast = compute if compute != weight else 0
    widest = weight * max(d["hidden_size"], d["num_attention_heads"] * d["head_dim"])
    block = tokens * (widest if step.checkpointing else max(widest, compute * d["intermediate_size"]))
    share = HOLES_CHECKPOINTING if step.checkpointing else HOLES_LORA if step.lora else HOLES
    trained_table = 0 if step.lora else weight * table
    workspaces = _muon_workspaces(d, step) if step.optimizer == "muon" else [(0, 0)]
    return _weight_pieces(d, step, matrix) | {
        "layer": [(layer, block)],
        "kept": [(layers * per_layer + stream, block)],
        "holes": [(round(share * layers * layer), block)],
        "logits": [(tokens * d["vocab_size"], BYTES["float32"] * tokens * d["vocab_size"])],
        "copies": [(autocast * matrices, autocast * matrix), (autocast * table, autocast * table)],
        "head_copy": [(autocast * table, autocast * table)],
        "layer_copies": [(autocast * matrices // layers, autocast * matrix)],
        "head_gradient": [(trained_table, weight * table)],
        "tied_gradient": [(trained_table if d["tie_word_embeddings"] else 0, weight * table)],
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
    total = -(-width * parameters // step.fsdp)
    weights = [(tables // step.fsdp, table), (total - tables // step.fsdp, width * matrix)]
    states = STATES[step.optimizer]
    if step.lora:
        adapters = BYTES["float32"] * lora_parameters(d, step.lora_r, step.lora_targets) // step.fsdp
        return {
            "weights": [*weights, (adapters, 0)],
            "gradients": [(adapters, 0)],
            "optimizer": [(states * adapters, 0)],
        }
    with_momentum = width * hidden_matrices(d) if step.optimizer == "muon" else 0
    whole_states = -(-(states * width * parameters - with_momentum) // step.fsdp)
    in_tables = states * tables // step.fsdp
    kept = [(in_tables, table), (whole_states - in_tables, width * matrix)]
    return {"weights": weights, "gradients": weights, "optimizer": kept}


def _phases(parts: dict[str, int], step: Step) -> dict[str, dict[str, int]]:
    """Components at the four moments; parts: bytes by the names of `_pieces`."""
    compute = BYTES[step.compute_dtype]
    going = parts["gradients"] if step.accumulation > 1 else 0
    copies = parts["head_copy"] if step.checkpointing else parts["copies"]
    upward = 8 if compute == BYTES["float32"] else 8 + compute
    rows = {
        "forward": (going, parts["kept"], upward * parts["logits"], parts["copies"] + parts["gathered"]),
        "loss": (going, parts["kept"], 12 * parts["logits"], copies + parts["gathered"]),
        "backward": _backward(parts, going, parts["layer"] if step.checkpointing else 0, copies),
        "update": (parts["gradients"], 0, 0, parts["workspace"]),
    }
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
    """What glibc holds beyond the tensors in each phase; see GIVEN_BACK."""
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

    With G numbers in the stack of their updates (w bytes each), S in the products of their shorter sides and i bytes
    per number (2 under bfloat16 autocast, else 4), the larger of w G + i (4 G + S), when an iteration adds up (the
    iterate, its two terms, their sum), and w G + i (2 G + 4 S), when it squares the products.
    """
    weight, compute = step.widths
    inner = 2 if step.compute_dtype == "bfloat16" and compute != weight else BYTES["float32"]
    shapes = Counter((outward, inward) for inward, outward in layer_projections(d).values())
    needs = []
    for (rows, columns), members in shapes.items():
        members, size, square = members * d["num_hidden_layers"], rows * columns, min(rows, columns) ** 2
        total = weight * size + inner * max(4 * size + square, 2 * size + 4 * square)
        needs.append((members * total, members * inner * size))
    return sorted(needs, reverse=True)


def generation_memory(dimensions: dict, *, context: int, batch_size: int = 1, dtype: str = "float32") -> dict[str, int]:
    """Bytes to generate: `batch_size` sequences that grow to `context` tokens, most of them given as the prompt.

    With n = batch_size x context tokens, A and K the widths of all query and of all key-value heads, C width, F of the
    MLP, V vocabulary, b bytes per value:

        weights      b P
        kv_cache     2 L K n b
        logits       batch_size V (b + 16): of the last position; float32 copies while the next id is drawn
        temporary    while the prompt is read, n b times what attention makes, 2 C + 2 A + 2 K, and 3 A more to rotate,
                     and what the MLP makes, 3 F with a gate, else 2 F, 5 F for gelu_new: both, because attention's
                     blocks are smaller and the allocator keeps them (see GIVEN_BACK)
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
