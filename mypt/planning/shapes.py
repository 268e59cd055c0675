"""An architecture without formulas: its parameters and the shapes of its modules.

`mypt.checkpoints.meta` reads them; such dimensions have the key `modules`, by which they are told from MyPTConfig
fields. `mypt.planning.shape_memory` estimates memory from them.
"""

import re

from mypt.errors import MyPTError

ALL_LINEAR = "all-linear"  # every linear layer but the head


def is_measured(dimensions: dict) -> bool:
    """Whether these are shapes of modules, and no MyPTConfig fields."""
    return "modules" in dimensions


def frozen_parameters(d: dict, layers: int, embeddings: bool) -> int:
    """As `mypt.planning.parameters.frozen_parameters`; layers count as equally large."""
    if not 0 <= layers <= d["num_hidden_layers"]:
        raise MyPTError(f"freeze_layers is {layers}, expected 0 to {d['num_hidden_layers']}: the model has no more")
    parts = d["parameters"]
    tables = parts["embedding"] + parts["positions"] if embeddings else 0
    return d["layer_parameters"] * layers // max(1, d["num_hidden_layers"]) + tables


def lora_parameters(d: dict, r: int, targets: str | list[str] = ALL_LINEAR) -> int:
    """Parameters of adapters of rank `r`, on the modules that peft would find by these names.

    Raises MyPTError if one of them finds nothing.
    """
    linear = [module for module in d["modules"] if module["adapted"]]
    chosen = linear
    if targets != ALL_LINEAR:
        wanted = [targets] if isinstance(targets, str) else targets
        chosen = [module for module in linear if any(_is_target(module["name"], t, targets) for t in wanted)]
        for target in wanted:
            if not any(_is_target(module["name"], target, targets) for module in linear):
                names = sorted({module["name"].rpartition(".")[2] for module in linear})
                raise MyPTError(
                    f"LoRA target {target!r} finds no linear layer of this model; expected {ALL_LINEAR} or some of "
                    f"{', '.join(names)}"
                )
    return r * sum(module["count"] * (module["inward"] + module["outward"]) for module in chosen)


def _is_target(name: str, target: str, targets: str | list[str]) -> bool:
    """As peft matches: one text is a regular expression of whole names, each of a list the end of a name."""
    first = name.replace(".*.", ".0.")
    return bool(re.fullmatch(target, first)) if isinstance(targets, str) else f".{first}".endswith(f".{target}")


def flops_per_token(d: dict, block_size: int, each: int = 6) -> int:
    """`each` N + 12 L A T, as `mypt.planning.scaling.flops_per_token`; of experts those count that a token passes."""
    used = sum(module["used"] * module["inward"] * module["outward"] * module["count"] for module in d["modules"])
    used += d["vocab_size"] * d["hidden_size"]  # the head
    return round(each * used) + 12 * d["attention_layers"] * d["query_width"] * block_size
