"""A GGUF file gives the same log-probabilities, ids and greedy text in llama.cpp itself, or is refused by name."""

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from mypt import MyPTForCausalLM
from mypt.conversion import gguf as gguf_format
from mypt.conversion import gguf_tokenizer
from mypt.conversion.export import export_model
from mypt.conversion.gguf_tokenizer import PRE_TOKENIZERS, vocabulary
from mypt.conversion.llama_cpp import LlamaCppRunner
from mypt.errors import CheckFailed, CheckpointError, TokenizerError
from mypt.legacy.tokenizer import TokenizerState
from mypt.tokenization.load import load_tokenizer, state_tokenizer, wrap
from mypt.tokenization.train import build_char_tokenizer
from tests.conversion.models import bpe_tokenizer, char_tokenizer, save_model

gguf = pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")
pytest.importorskip("xllamacpp", reason="pip install 'mypt[gguf]'")

LLAMA = {"qk_norm": False, "num_key_value_heads": 1, "head_dim": 16}
BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
MODELS = {
    "gpt2": ("tiny", {}),
    "qwen3": ("modern-nano", {"num_key_value_heads": 1, "head_dim": 24, "rope_parameters": YARN}),
    "llama": ("modern-nano", LLAMA | BIASES | {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "llama, linear": ("modern-nano", LLAMA | {"rope_parameters": LINEAR}),
}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same(name, tmp_path):
    """In float32 to a few units in the last place; GPT-2's GELU comes from a table of float16 there."""
    preset, changes = MODELS[name]
    tokenizer = char_tokenizer() if name == "llama, linear" else bpe_tokenizer()
    report = export_model(save_model(tmp_path / "model", tokenizer, preset, **changes), tmp_path / "out", format="gguf")
    assert report["target"] == name.split(",")[0] and report["dtype"] == "float32"
    bound = 1e-3 if name == "gpt2" else 1e-5
    assert max(report["differences"].values()) <= bound * report["largest_logit"]
    assert report["greedy_equal"] and report["rounding"] is None
    # The source also gives probability to its padded ids, which the file leaves out.
    before, after = (report[side]["bits_per_byte"] for side in ("source", "result"))
    assert before - 0.2 < after < before
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./model.gguf\n"


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_rounded_weights_are_those_of_the_file(dtype, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "unpadded_vocab_size": None}
    sizes["vocab_size"] = bpe_tokenizer().vocab_size
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "modern-nano", **sizes)
    report = export_model(folder, tmp_path / "out", format="gguf", dtype=dtype)
    assert report["notes"] == []
    assert 0 < max(report["differences"].values()) <= report["tolerance"] < 0.2 * report["largest_logit"]
    assert report["rounding"] > 0
    bits = {"f16": 16, "bf16": 16, "q8_0": 8.5, "q4_k_m": 4.5}[dtype]
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    matrix = held["blk.0.ffn_up.weight"]
    assert matrix.n_bytes * 8 == matrix.n_elements * bits
    assert held["token_embd.weight"].tensor_type.name == {"q4_k_m": "Q6_K"}.get(dtype, matrix.tensor_type.name)
    assert held["output_norm.weight"].tensor_type.name == "F32"


def test_a_wrong_file_is_not_kept(tmp_path, monkeypatch):
    """Rotary pairs in transformers' order are what llama.cpp reads wrongly."""
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "modern-nano", **LLAMA)
    monkeypatch.setattr(gguf_format, "_turned", lambda name, tensor, config, back=False: tensor)
    with pytest.raises(CheckFailed, match=r"differ by .* nothing is kept"):
        export_model(folder, tmp_path / "out", format="gguf", dtype="q8_0")
    monkeypatch.undo()
    ours = ((("ByteLevel", False, True),), False)
    monkeypatch.setitem(PRE_TOKENIZERS, ours, "qwen2")
    with pytest.raises(CheckFailed, match=r"other ids than the tokenizer for .* nothing is kept"):
        export_model(folder, tmp_path / "out", format="gguf")
    monkeypatch.setitem(PRE_TOKENIZERS, ours, "klingon")
    with pytest.raises(CheckFailed, match=r"llama.cpp does not load the file: .*klingon"):
        export_model(folder, tmp_path / "out", format="gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("dtype", ["bf16", "q8_0"])
def test_a_wrong_layout_shows_in_small_logits(dtype, tmp_path, monkeypatch):
    """A model that was not trained: rounded inputs alone change its logits as much as rotary pairs do."""
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "modern-nano", **LLAMA)
    model = MyPTForCausalLM(MyPTForCausalLM.from_pretrained(folder).config)
    model.save_pretrained(folder)
    export_model(folder, tmp_path / "right", format="gguf", dtype=dtype)
    assert sorted(path.name for path in (tmp_path / "right").iterdir()) == ["Modelfile", "export.json", "model.gguf"]
    monkeypatch.setattr(gguf_format, "_turned", lambda name, tensor, config, back=False: tensor)
    with pytest.raises(CheckFailed, match=r"differ by .* \(the same layout in float32\)"):
        export_model(folder, tmp_path / "wrong", format="gguf", dtype=dtype)


def test_an_overflow_of_float16_is_named(tmp_path):
    """Weights that float16 holds, and products that it does not: llama.cpp's logits are NaN, transformers' are not."""
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "modern-nano", **LLAMA)
    model = MyPTForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(3e4)
    model.save_pretrained(folder)
    with pytest.raises(CheckFailed, match=r"logits are NaN or infinite .*choose another --dtype.*nothing is kept"):
        export_model(folder, tmp_path / "out", format="gguf", dtype="f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_null_of_the_server_is_nan():
    """JSON has no NaN; NaN fails every comparison."""

    class Answering(LlamaCppRunner):
        def __init__(self):
            self._size, self._letter = 2, 1

        def _complete(self, known, new, **options):
            top = [{"id": 0, "logprob": -0.5}, {"id": 1, "logprob": None}]
            return {"tokens": [1], "completion_probabilities": [{"logprob": None, "top_logprobs": top}]}

    ids = torch.tensor([[0, 1]])
    assert Answering().losses(ids).isnan().all()
    assert Answering()._log_probabilities([0]).isnan().tolist() == [False, True]


def test_added_tokens_are_compared(tmp_path, monkeypatch):
    """One that is in none of the usual texts, and that the file does not mark as added."""
    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens(["zebra"])
    folder = save_model(tmp_path / "model", tokenizer, "modern-nano")
    monkeypatch.setattr(gguf_tokenizer, "USER_DEFINED", gguf_tokenizer.NORMAL)
    with pytest.raises(CheckFailed, match="other ids than the tokenizer for 'a zebra bzebrac'"):
        export_model(folder, tmp_path / "out", format="gguf")


def test_special_tokens_and_the_chat_template_are_carried(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|start|>", "eos_token": "<|stop|>"})
    tokenizer.add_tokens(["clerk"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|stop|>{% endfor %}"
    folder = save_model(tmp_path / "model", tokenizer, "modern-nano", eos_token_id=[len(tokenizer) - 2, 0])
    export_model(folder, tmp_path / "out", format="gguf")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    value = {name.removeprefix("tokenizer."): field.contents() for name, field in fields.items()}
    assert value["chat_template"] == tokenizer.chat_template
    ids = {name: value[f"ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    start, stop = tokenizer.convert_tokens_to_ids(["<|start|>", "<|stop|>"])
    assert ids == {"bos": start, "eos": stop, "eot": 0, "padding": tokenizer.pad_token_id}
    kinds = {
        text: gguf.TokenType(kind).name
        for text, kind in zip(value["ggml.tokens"], value["ggml.token_type"], strict=True)
    }
    assert kinds["<|stop|>"] == "CONTROL" and kinds["clerk"] == "USER_DEFINED" and kinds["a"] == "NORMAL"
    assert value["ggml.pre"] == "gpt-2" and value["ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    ("preset", "changes", "named"),
    [
        (
            "modern-nano",
            {"hidden_act": "gelu", "qk_norm": False},
            r"hidden_act gelu of a llama \(llama.cpp computes silu",
        ),
        ("tiny", {"hidden_act": "gelu"}, r"activation_function gelu of a gpt2 \(llama.cpp computes gelu_new"),
        ("modern-nano", {"attention_bias": True}, "attention_bias true of a qwen3"),
        ("modern-nano", {"rope_parameters": LLAMA3}, "rope_type llama3 of a qwen3"),
        (
            "modern-nano",
            {"rope_parameters": YARN | {"attention_factor": 2.0}},
            "attention_factor 2.0 of rope_type yarn",
        ),
        ("modern-nano", {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, "rope_type dynamic of a qwen3"),
    ],
    ids=["silu", "gelu", "bias", "llama3", "yarn", "dynamic"],
)
def test_what_llama_cpp_does_not_compute_is_named(preset, changes, named, tmp_path):
    folder = save_model(tmp_path / "model", bpe_tokenizer(), preset, **changes)
    with pytest.raises(CheckpointError, match=f"gguf cannot express {named}.*--format safetensors can"):
        export_model(folder, tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "tiny")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="gguf holds the tokenizer"):
        export_model(folder, tmp_path / "out", format="gguf")


def with_parts(**parts):
    """The byte-level BPE of the tests with other parts."""
    tokenizer = bpe_tokenizer()
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def with_token(text, **flags):
    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False, **flags)])
    return tokenizer


TOKENIZERS = {
    "a WordLevel model": lambda: wrap(Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))),
    "the normalizer Lowercase": lambda: with_parts(normalizer=normalizers.Lowercase()),
    "this pre-tokenizer .Metaspace": lambda: with_parts(pre_tokenizer=pre_tokenizers.Metaspace()),
    "this pre-tokenizer .ByteLevel": lambda: with_parts(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "this pre-tokenizer .none": lambda: state_tokenizer(TokenizerState(("a", "b")), exact=True),
    "characters with \u2581": lambda: build_char_tokenizer("a \u2581"),
    "characters with .*or without the blank": lambda: build_char_tokenizer("a"),
    "lstrip of the added token '<sep>'": lambda: with_token("<sep>", lstrip=True),
    "rstrip of the added token '<sep>'": lambda: with_token("<sep>", rstrip=True),
    "single_word of the added token 'clerk'": lambda: with_token("clerk", single_word=True),
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_named(what):
    with pytest.raises(TokenizerError, match=f"llama.cpp does not have {what}"):
        vocabulary(TOKENIZERS[what]())


def test_the_pre_tokenizers_of_known_families_are_named():
    assert vocabulary(load_tokenizer("gpt2")).pre == "gpt-2"
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert vocabulary(with_parts(pre_tokenizer=digits)).pre == "smollm"
    assert vocabulary(char_tokenizer()).model == "llama"
