"""LoRA: small trained matrices beside the frozen linear layers of an existing model."""

import importlib.util
import re
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModelForCausalLM, TaskType, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from mypt.checkpoints.adapter import is_adapter, save_base, weights_fingerprint
from mypt.errors import RecipeError
from mypt.recipe import LoraSection

ALL_LINEAR = "all-linear"


class AdaptedModel(PeftModelForCausalLM):
    """peft's model, which saves the adapter alone and what its base model was."""

    def __init__(self, model: PreTrainedModel, config: LoraConfig, base_weights: str | None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            super().__init__(model, config)
        self.base_weights = base_weights  # weights_fingerprint of the base model

    def save_pretrained(self, save_directory: str, is_main_process: bool = True, **kwargs) -> None:
        """The adapter; peft would ask the hub on each save whether the base model's embeddings were resized."""
        if is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            save_base(save_directory, self.peft_config["default"].base_model_name_or_path, self.base_weights)
        super().save_pretrained(save_directory, is_main_process=is_main_process, save_embedding_layers=False, **kwargs)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """None: `mypt upload` writes a card about the run."""

    def activation_checkpointing_enable(self, **kwargs) -> None:
        """As the base model's; one that re-enters its layers needs a gradient where the frozen embeddings give none."""
        self.enable_input_require_grads()
        self.get_base_model().activation_checkpointing_enable(**kwargs)


def attach_adapters(model: PreTrainedModel, section: LoraSection, base: str, seed: int) -> AdaptedModel:
    """Freeze `model`, which was loaded from `base`, and put adapters beside its linear layers; at first they add 0.

    Raises RecipeError for target_modules that name no linear layer, and for a base that is an adapter itself.
    """
    if is_adapter(base):
        raise RecipeError(
            f"model.init_from {base} is an adapter itself; merge it first: mypt merge {base} --out DIR, and name DIR"
        )
    targets = _targets(model, section.target_modules)
    if section.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        # An absolute path, so that peft finds a local base from any folder.
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).is_dir() else base,
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=[*targets],
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in targets.values()),
    )
    set_seed(seed)
    return AdaptedModel(model, config, weights_fingerprint(base))


def quantization(section: LoraSection) -> BitsAndBytesConfig | None:
    """How the frozen base is held in 4 bits (QLoRA, Dettmers et al. 2023, 2305.14314), or None for its own dtype.

    Raises RecipeError without a CUDA GPU or the package bitsandbytes.
    """
    if not section.load_in_4bit:
        return None
    if not torch.cuda.is_available():
        raise RecipeError("lora.load_in_4bit needs a CUDA GPU, and there is none here: leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("lora.load_in_4bit needs the package bitsandbytes: pip install mypt[qlora]")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16,
    )


def _targets(model: PreTrainedModel, asked: list | str) -> dict[str, nn.Module]:
    """The linear layers to adapt, by full name."""
    head, tied = model.get_output_embeddings(), model.get_input_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if asked == ALL_LINEAR:
        return {name: module for name, module in linear.items() if module is not head}
    if head is not None and head.weight is tied.weight:
        # An adapter of the head alone could not be merged into the weights that the embedding shares.
        linear = {name: module for name, module in linear.items() if module is not head}
    chosen = {}
    for pattern in [asked] if isinstance(asked, str) else asked:
        found = {name: module for name, module in linear.items() if _matches(pattern, name, asked)}
        if not found:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise RecipeError(f"lora.target_modules: {pattern!r} is no linear layer of the model, which has: {names}")
        chosen |= found
    return chosen


def _matches(pattern: str, name: str, asked: list | str) -> bool:
    """As peft does: a name in a list is a module's last parts, a text is a regular expression of all of them."""
    if isinstance(asked, list):
        return name == pattern or name.endswith(f".{pattern}")
    return re.fullmatch(pattern, name) is not None
