"""Write a stock model as a GGUF file, in the layout that llama.cpp reads: weights, hyperparameters and tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mypt.conversion.gguf_tokenizer import BLANK, Vocabulary, vocabulary
from mypt.conversion.llama_cpp import LlamaCppRunner, quantize, serve
from mypt.conversion.parity import MEASURED, TEXT, Outputs, TransformersRunner, compare, random_ids
from mypt.errors import CheckFailed, CheckpointError
from mypt.tokenization.hf_tokenizer import PROBES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


FILE, MODELFILE = "model.gguf", "Modelfile"
CONTEXT = MEASURED  # tokens that the comparison needs
# Our name of a dtype -> gguf's names of the tensor type and of the file type. `_M`: some tensors get Q6_K.
_TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q6_k": ("Q6_K", "MOSTLY_Q6_K"),
    "q5_k_m": ("Q5_K", "MOSTLY_Q5_K_M"),
    "q4_k_m": ("Q4_K", "MOSTLY_Q4_K_M"),
}
# Rows of the k-quants are blocks of 256; llama.cpp's own choice where they do not fit.
_SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# llama.cpp rounds the inputs of each matrix product, too, to the type of the matrix (8 bits for the quantized ones).
# These are two to three times what models of random weights showed.
_FACTORS = {"float32": 10.0, "float16": 500.0, "bfloat16": 3000.0}
_QUANTIZED_FACTOR = 15_000.0
_GELU_FACTOR = 100.0  # llama.cpp looks GPT-2's GELU up in a table of float16
_ACTIVATIONS = {"gpt2": ("gelu_new", "gelu_pytorch_tanh")}  # which llama.cpp computes, whatever the file says


def tolerance_factor(target: str, dtype: str, saved_as: str) -> float:
    """The factor of the comparison's tolerance."""
    return max(_FACTORS.get(dtype, _QUANTIZED_FACTOR), _GELU_FACTOR if target == "gpt2" else 0.0)


def check(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Raise CheckpointError or TokenizerError that names what llama.cpp cannot compute or read."""
    if found := unexpressed(config):
        raise CheckpointError(f"gguf cannot express {', '.join(found)}; --format safetensors can")
    if tokenizer is None:
        raise CheckpointError("gguf holds the tokenizer, and the model's folder has none; save the model's with it")
    vocabulary(tokenizer)


def unexpressed(config: dict[str, Any]) -> list[str]:
    """List the fields of a stock config that llama.cpp does not compute for this architecture."""
    kind, found = config["model_type"], []
    name = "activation_function" if kind == "gpt2" else "hidden_act"
    expected = _ACTIVATIONS.get(kind, ("silu",))
    if config[name] not in expected:
        found.append(f"{name} {config[name]} of a {kind} (llama.cpp computes {expected[0]})")
    if kind == "qwen3" and config["attention_bias"]:
        found.append("attention_bias true of a qwen3")
    rope = config.get("rope_parameters") or {}
    type = rope.get("rope_type", "default")
    if type not in ("default", "linear", "yarn", *(["llama3"] if kind == "llama" else [])):
        found.append(f"rope_type {type} of a {kind}")
    if type == "yarn":
        # llama.cpp has its own rule for these.
        changed = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None]
        changed += [key for key, value in (("beta_fast", 32), ("beta_slow", 1)) if rope.get(key, value) != value]
        changed += ["truncate"] if not rope.get("truncate", True) else []
        found += [f"{key} {rope[key]} of rope_type yarn" for key in changed]
    return found


# ---- writing ----


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: str,
    max_shard_size: int | None = None,
) -> list[str]:
    """Write `folder`/model.gguf; `model` then has the weights that the file holds, in float32. Returns notes.

    Rows of ids that the tokenizer does not have are left out: nothing in the file could keep llama.cpp from choosing
    them.
    """
    words = vocabulary(tokenizer)
    if dtype != "float32":
        _require_layout(model, tokenizer, words, folder)
    _write_file(model, tokenizer, words, folder / FILE, dtype)
    _read_back(model, folder / FILE)
    (folder / MODELFILE).write_text(f"FROM ./{FILE}\n")
    padding = model.config.vocab_size - len(words.tokens)
    notes = [f"{padding} rows of ids that the tokenizer does not have are left out"] if padding > 0 else []
    return [*notes, *words.notes]


def _require_layout(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, words: Vocabulary, folder: Path
) -> None:
    """Raise CheckFailed if llama.cpp gives other logits for the float32 weights, by the tolerance of float32.

    That of the narrow dtypes is wider than what a wrong layout changes in a model whose logits are small. A few
    positions are enough; the file is removed.
    """
    import torch

    context = model.config.max_position_embeddings
    ids = random_ids(len(words.tokens), context)[:1]
    probes = {"the same layout in float32": (ids, torch.ones_like(ids))}
    with TemporaryDirectory(dir=folder) as place:
        path = Path(place, FILE)
        _write_file(model, tokenizer, words, path, "float32")
        with serve(path, len(words.tokens), min(context, CONTEXT)) as runner:
            runner.every = min(32, ids.shape[1])
            expected, found = (
                Outputs({name: one.logits(*probe) for name, probe in probes.items()}, [])
                for one in (TransformersRunner(model), runner)
            )
            factor = tolerance_factor(model.config.model_type, "float32", "float32")
            compare(expected, found, probes, runner, factor)


def _write_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, words: Vocabulary, path: Path, dtype: str
) -> None:
    import gguf

    tensor_type, file_type = _TYPES[dtype]
    writer = gguf.GGUFWriter(path, model.config.model_type)
    if name := Path(model.name_or_path or "").name:
        writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, model.config, len(words.tokens))
    _add_tokenizer(writer, words, tokenizer, model)
    for name, tensor in _tensors(model, len(words.tokens)):
        data = tensor.numpy()
        wanted = _wanted_type(name, tensor_type, dtype, model.config)
        kind = gguf.GGMLQuantizationType[_fitting_type(name, data, wanted)]
        writer.add_tensor(name, _quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer, config: PreTrainedConfig, size: int) -> None:
    import gguf

    writer.add_vocab_size(size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)


def _add_tokenizer(writer, words: Vocabulary, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    writer.add_tokenizer_model(words.model)
    if words.pre:
        writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.model == "llama":
        writer.add_token_scores([0.0] * len(words.tokens))
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges(words.merges)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    ends = model.generation_config.eos_token_id
    ends = [id for id in (ends if isinstance(ends, list) else [ends]) if id is not None and id < len(words.tokens)]
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ends or not ends else ends[0]
    writer.add_eos_token_id(eos)
    # The defaults of SentencePiece files are ids 1 and 0, whatever these are.
    writer.add_bos_token_id(eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_unk_token_id(eos if tokenizer.unk_token_id is None else tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    others = [id for id in ends if id != eos]
    for id, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _wanted_type(name: str, usual: str, dtype: str, config: PreTrainedConfig) -> str:
    """The type of a tensor by its name; the mixtures are llama.cpp's, which spare what costs most."""
    if not dtype.endswith("_m"):
        return usual
    head = "token_embd." if config.tie_word_embeddings else "output."
    if name.startswith(head):
        return "Q6_K"
    layer, layers = name.split(".")[1], config.num_hidden_layers
    if ".attn_v." not in name and ".ffn_down." not in name:
        return usual
    first, place = layers // 8, int(layer)
    return "Q6_K" if place < first or place >= 7 * layers // 8 or (place - first) % 3 == 2 else usual


def _fitting_type(name: str, data: np.ndarray, wanted: str) -> str:
    """Vectors and learned positions stay float32; rows that have no whole blocks get a type of smaller ones."""
    import gguf

    if data.ndim < 2 or name.startswith("position_embd"):
        return "F32"
    for kind in (wanted, _SMALLER_BLOCKS.get(wanted, "F16")):
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        if data.shape[-1] % block == 0:
            return kind
    return "F16"


def _quantize(data: np.ndarray, kind: Any) -> np.ndarray:
    import gguf
    import numpy as np

    with np.errstate(over="ignore"):  # found by `_read_back`
        try:
            return gguf.quants.quantize(data, kind)
        except NotImplementedError:  # the k-quants, which only llama.cpp makes
            return quantize(data, int(kind), gguf.quants.quant_shape_to_byte_shape(data.shape, kind))


def _tensors(model: PreTrainedModel, size: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the float32 values of each tensor of the file."""
    names = _names(model)
    for name, parameter in model.named_parameters():
        tensor = _turned(name, parameter.detach().float(), model.config)
        yield names[name], (tensor[:size] if _is_table(names[name]) else tensor).contiguous()
    if model.config.model_type == "llama" and model.config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _slower(model)


def _names(model: PreTrainedModel) -> dict[str, str]:
    """GGUF's name of each parameter; tied ones are written once."""
    import gguf

    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == model.config.model_type)
    table = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    return {name: table.get_name(name, (".weight", ".bias")) for name, _ in model.named_parameters()}


def _is_table(name: str) -> bool:
    return name.startswith(("token_embd", "output."))


def _turned(name: str, tensor: Tensor, config: PreTrainedConfig, back: bool = False) -> Tensor:
    """A parameter as llama.cpp wants it, or back: GPT-2's matrices (out, in), Llama's rotary pairs side by side."""
    if config.model_type == "gpt2":
        return tensor.T if tensor.ndim == 2 and ".h." in name else tensor
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if config.model_type != "llama" or not heads:
        return tensor
    halves = (heads, -1, 2) if back else (heads, 2, tensor.shape[0] // heads // 2)
    return tensor.unflatten(0, halves).transpose(1, 2).flatten(0, 2)


def _slower(model: PreTrainedModel) -> Tensor:
    """The divisor of each rotary frequency in llama.cpp, float32 (D / 2,)."""
    import torch

    found, theta = model.model.rotary_emb.inv_freq, model.config.rope_parameters["rope_theta"]
    exponents = torch.arange(len(found), dtype=torch.float) / len(found)
    return theta**-exponents / found


def _read_back(model: PreTrainedModel, path: Path) -> None:
    """Give `model` the weights of the file, in float32. Raises CheckpointError if one is NaN or infinite."""
    import gguf
    import numpy as np
    import torch

    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = _names(model)
    for name, parameter in model.named_parameters():
        tensor = held[names[name]]
        values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32))
        if not values.isfinite().all():
            raise CheckpointError(
                f"{name} has values that {tensor.tensor_type.name} cannot hold; choose another --dtype"
            )
        values = _turned(name, values.reshape(*reversed(tensor.shape.tolist())), model.config, back=True)
        parameter.data = parameter.data.float().clone()  # others may share the memory
        parameter.data[: len(values)] = values


# ---- running ----


@contextmanager
def open_folder(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[LlamaCppRunner]:
    """Run the file in llama.cpp. Raises CheckFailed if it cannot load it, or gives other ids for a text."""
    import gguf

    fields = gguf.GGUFReader(folder / FILE).fields
    context = fields[f"{fields['general.architecture'].contents()}.context_length"].contents()
    size = len(fields["tokenizer.ggml.tokens"].data)
    with serve(folder / FILE, size, min(context, CONTEXT)) as runner:
        require_same_ids(runner, tokenizer)
        yield runner


def require_same_ids(runner: LlamaCppRunner, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise CheckFailed for a text that llama.cpp splits otherwise, except as the notes of `vocabulary` state."""
    words = vocabulary(tokenizer)
    composed = any("NFC" in note for note in words.notes)
    around = (f"a {token} b{token}c" for token in tokenizer.get_added_vocab())
    for text in (TEXT, *PROBES, *around):
        text = unicodedata.normalize("NFC", text) if composed else text
        if words.model == "llama" and BLANK in text:
            continue
        expected, found = tokenizer(text)["input_ids"], runner.tokenize(text)
        if expected != found:
            raise CheckFailed(
                f"{runner.name} gives other ids than the tokenizer for {text!r}: {found[:8]} instead of "
                f"{expected[:8]}; nothing is kept"
            )
