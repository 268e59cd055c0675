"""`mypt export` from the command line: what is printed, as text and as JSON, and when it fails."""

import json

import pytest

from mypt.cli.main import main
from mypt.conversion import parity
from mypt.conversion.formats import FORMATS, Format


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model whose q, k and v have biases and whose output has none, and its tokenizer."""
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM
    from mypt.tokenization.load import save_tokenizer
    from mypt.tokenization.train import build_char_tokenizer

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MyPTConfig(vocab_size=320, max_position_embeddings=64, qk_norm=False, attention_bias=True, **sizes)
    MyPTForCausalLM(config).save_pretrained(folder)
    save_tokenizer(build_char_tokenizer("abcdefgh "), folder)
    return str(folder)


def test_a_stock_folder_and_its_parity(model, tmp_path, capsys):
    assert main(["export", model, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "MyPTForCausalLM -> LlamaForCausalLM" in printed and "left-padded batch" in printed
    assert "written as zeros: attention_output_bias" in printed  # a Qwen2 would need none, and not keep the tokenizer
    assert "tolerance" in printed and "greedy text   equal, 32 tokens" in printed
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_json_says_what_was_added_and_rounded(model, tmp_path, capsys):
    line = ["export", model, "--to", "llama", "--dtype", "bfloat16", "--out", str(tmp_path / "out"), "--json"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["added_biases"] == ["attention_output_bias"] and report["dtype"] == "bfloat16"
    assert report["rounding"] > 0 and report["greedy_equal"]


def test_a_refusal_is_one_line(model, tmp_path, capsys):
    assert main(["export", model, "--to", "qwen3", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == "mypt export: qwen3 cannot express qk_norm False; --to llama can\n"
    assert not (tmp_path / "out").exists()


def test_a_difference_above_the_tolerance_exits_with_1(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    assert main(["export", model, "--out", str(tmp_path / "out")]) == 1
    assert "nothing is kept" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing_is_named(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx", Format(("float32",), ("onnx_of_tomorrow",)))
    assert main(["export", model, "--format", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "--format onnx needs onnx_of_tomorrow: pip install 'mypt[onnx]'" in capsys.readouterr().err


def test_a_gguf_prints_both_sides_and_the_next_command(model, tmp_path, capsys):
    pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")
    pytest.importorskip("xllamacpp", reason="pip install 'mypt[gguf]'")
    line = ["export", model, "--format", "gguf", "--dtype", "f32", "--out", str(tmp_path / "out")]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "gguf float32" in printed and "bits/byte" in printed and "(llama.cpp of xllamacpp" in printed
    assert "note: llama.cpp reads the character \u2581 (U+2581) in a text as a blank" in printed
    assert f"ollama: cd {tmp_path / 'out'} && ollama create NAME -f Modelfile" in printed
