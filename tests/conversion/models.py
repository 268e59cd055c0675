"""Tiny models with tokenizers for exports: logits far apart, and padded ids that would win if they could."""

from pathlib import Path

import torch

from mypt import MyPTForCausalLM, preset_config
from mypt.conversion import parity
from mypt.tokenization.load import largest_id, save_tokenizer
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

TEXT = "The notice was served on the clerk, and the clerk was told: costs of the appeal are costs."
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 96}


def bpe_tokenizer():
    return train_bpe_tokenizer([TEXT, parity.TEXT] * 3, 320)


def char_tokenizer():
    return build_char_tokenizer(TEXT + parity.TEXT)


def save_model(folder: Path, tokenizer, preset: str, **changes) -> Path:
    """Save a model of random weights with its tokenizer; returns the folder."""
    torch.manual_seed(0)
    size, eos = largest_id(tokenizer) + 1, tokenizer.eos_token_id
    sizes = SIZES | {"vocab_size": size + 20, "unpadded_vocab_size": size, "eos_token_id": eos, "pad_token_id": eos}
    model = MyPTForCausalLM(preset_config(preset, **sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder
