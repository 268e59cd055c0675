"""LoRA: small trained matrices added to the frozen linear layers of an existing model."""

import importlib.util
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModelForCausalLM, TaskType, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel, set_seed

from mypt.checkpoints.adapter import is_adapter, save_base, weights_fingerprint
from mypt.errors import RecipeError
from mypt.recipe import LoraSection
from mypt.training.model.lora_targets import choose_targets, describe


class AdaptedModel(PeftModelForCausalLM):
    """peft's model, which saves the adapter alone and what its base model was."""

    def __init__(self, model: PreTrainedModel, config: LoraConfig, base_weights: str | None, lines: list[str]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            super().__init__(model, config)
        self.base_weights = base_weights  # weights_fingerprint of the base model
        self.lines = lines  # what is adapted and what is not, for people

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
    """Freeze `model`, which was loaded from `base`, and add adapters to its linear layers; at first they add 0.

    Raises RecipeError for target_modules that name no layer that can be adapted, and for a base that is an adapter.
    """
    if is_adapter(base):
        raise RecipeError(
            f"model.init_from {base} is an adapter itself; merge it first: mypt merge {base} --out DIR, and name DIR"
        )
    options = {
        "task_type": TaskType.CAUSAL_LM,
        # An absolute path, so that peft finds a local base from any folder.
        "base_model_name_or_path": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "r": section.r,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
    }
    targets = choose_targets(model, section.target_modules, options, quantized=section.load_in_4bit)
    lines = describe(model, targets)
    if section.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        **options,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        fan_in_fan_out=targets.fan_in_fan_out,
    )
    set_seed(seed)
    return AdaptedModel(model, config, weights_fingerprint(base), lines)


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
