"""A training step on one device as the memory model sees it, and the constants that planning and training share."""

from dataclasses import dataclass

from mypt.errors import MyPTError
from mypt.planning.coverage import whole
from mypt.planning.parameters import ALL_LINEAR

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ATTENTIONS = ("sdpa", "eager")
DEVICES = ("cpu", "gpu")

VOCABULARY_MULTIPLE = 64  # a model has as many rows of embeddings as its tokenizer has ids, padded to this
MICRO_BATCH = 8  # sequences per process and pass where nothing is given, as in TrainingArguments

# Copies of the trained weights that an optimizer keeps: of MyPT's own, and of HF's that are known here. Muon keeps one
# of hidden matrices, two (AdamW's) of the rest, and a number for each vector along a matrix's longer side.
OWN_OPTIMIZERS = {"muon": 2, "adamw": 2}
STATES = OWN_OPTIMIZERS | {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}

# Numbers in the matrices that Muon orthogonalises at once: enough to fill a machine, with 64 MiB in a stack of float32.
MUON_TOGETHER = 2**24

FRAMEWORK = 550 * 2**20  # Python, torch, transformers and their kernels after a first step (measured on a CPU)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Everything but the model that decides the memory of a training step on one device.

    micro_batch_size: sequences per device and pass, of block_size tokens. accumulation: passes per step.
    ns_steps: Newton-Schulz iterations of Muon, which need no memory.
    weight_dtype: of weights, gradients and optimizer states. compute_dtype: of matrix products; if it is another,
    autocast makes copies of the matrices in it. lora_r: rank of the adapters, 0 for none; lora_dropout: of what goes
    into them. freeze_layers: the first so
    many layers are not trained, freeze_embeddings: nor the tables. fsdp: devices that share weights, gradients and
    states (full shard). device: on a "cpu" glibc's allocator costs memory, too.
    """

    micro_batch_size: int = MICRO_BATCH
    block_size: int
    accumulation: int = 1
    optimizer: str = "adamw"
    ns_steps: int = 3
    weight_dtype: str = "float32"
    compute_dtype: str = "float32"
    checkpointing: bool = False
    attention: str = "sdpa"
    lora_r: int = 0
    lora_targets: str | list[str] = ALL_LINEAR
    lora_dropout: float = 0.0
    freeze_layers: int = 0
    freeze_embeddings: bool = False
    fsdp: int = 1
    device: str = "cpu"

    def __post_init__(self):
        for name in ("micro_batch_size", "block_size", "accumulation", "fsdp"):
            whole(name, getattr(self, name))
        choices = {"optimizer": STATES, "attention": ATTENTIONS, "device": DEVICES}
        for name, known in (choices | dict.fromkeys(("weight_dtype", "compute_dtype"), BYTES)).items():
            if getattr(self, name) not in known:
                raise MyPTError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(known)}")
        if self.lora and (self.freeze_layers or self.freeze_embeddings):
            raise MyPTError("freeze_layers and freeze_embeddings are refused with LoRA, which freezes everything")
        if self.lora and self.optimizer == "muon":
            raise MyPTError("optimizer muon is refused with LoRA, in training too; expected adamw, its default")

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a weight and of a number in a matrix product."""
        return BYTES[self.weight_dtype], BYTES[self.compute_dtype]

    @property
    def lora(self) -> dict | None:
        return {"r": self.lora_r, "targets": self.lora_targets, "dropout": self.lora_dropout} if self.lora_r else None
