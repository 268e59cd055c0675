"""scripts/bench_formats.py puts what `mypt export` checked beside a speed, for every format that takes the model."""

import json
import sys
from pathlib import Path

import pytest

from tests.conversion.models import bpe_tokenizer, save_model

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import bench_formats

SHORT = ("--tokens", "64", "--rounds", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("formats") / "model", bpe_tokenizer(), "modern-nano"))


def test_the_figures_are_those_of_the_export_and_a_speed_is_added(model, tmp_path, capsys):
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package)
    (tmp_path / "text.txt").write_text("The clerk was told, and the costs of the appeal are costs. " * 9)
    options = ("--formats", "safetensors", "gguf:q8_0", "--text", str(tmp_path / "text.txt"), "--json")
    assert bench_formats.main([model, *options, *SHORT, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == []
    names = [row["files"] for row in found["formats"]]
    assert names == [bench_formats.MODEL, bench_formats.ENGINE, "safetensors float32", "gguf q8_0"]
    for row, folder in zip(found["formats"][2:], ("safetensors", "gguf-q8_0"), strict=True):
        report = json.loads((tmp_path / "out" / folder / "export.json").read_text())
        assert row["parity"] == max(report["differences"].values()) <= report["tolerance"]
        assert row["bytes"] == report["result"]["bytes"] == found_bytes(tmp_path / "out" / folder)
        assert row["bits_per_byte"] == report["result"]["bits_per_byte"] > 0
        assert [row[name] for name in ("rounding", "greedy_equal", "greedy_as_source")] == [
            report[name] for name in ("rounding", "greedy_equal", "greedy_as_source")
        ]
    assert found["source"]["text"] == report["text"]
    assert found["formats"][0]["bits_per_byte"] == report["source"]["bits_per_byte"]
    assert all(row["tokens_per_cpu_second"] > 0 for row in found["formats"])


def test_one_export_by_two_names_is_one_row_and_the_tokens_are_those_that_were_timed(model, capsys):
    options = ("--formats", "safetensors", "safetensors:float32", "--tokens", "100000", "--rounds", "1", "--json")
    assert bench_formats.main([model, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == ["safetensors-float32: safetensors float32 is in the table already"]
    assert [row["files"] for row in found["formats"]][2:] == ["safetensors float32"]
    context = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
    assert found["tokens"] == context - bench_formats.PROMPT - 1


def found_bytes(folder: Path) -> int:
    """Of the files of an export, its report apart, which is written last."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "export.json")


def test_what_refuses_the_model_is_a_line_and_a_failed_check_an_exit_code(tmp_path, capsys, monkeypatch):
    classic = str(save_model(tmp_path / "classic", bpe_tokenizer(), "tiny"))
    assert bench_formats.main([classic, "--formats", "int8", "safetensors", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert "left out: int8: " in printed and "safetensors float32" in printed
    monkeypatch.setattr("mypt.conversion.parity.TOLERANCE", -1.0)
    assert bench_formats.main([classic, "--formats", "safetensors", *SHORT]) == 1
    printed = capsys.readouterr().out
    assert "left out: safetensors: the written model gives logits that differ" in printed and "speed" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formats", "pickle"], "--formats pickle: there is no format pickle; choose safetensors, onnx"),
        (["--formats", "gguf:int3"], "--formats gguf:int3: gguf has no dtype int3; choose float32"),
        (["--tokens", "0"], "--tokens and --rounds are 1 or more"),
        (["--out", "."], "is not empty"),
    ],
)
def test_bad_input_is_one_line(model, tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert bench_formats.main([model, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.slow
def test_every_format_of_a_modern_model(model, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime", "gguf", "xllamacpp", "torchao"):
        pytest.importorskip(package)
    assert bench_formats.main([model, *SHORT]) == 0
    printed = capsys.readouterr().out
    for name in ("safetensors float32", "onnx float32", "gguf float16", "gguf q8_0", "gguf q4_k_m", "int8"):
        assert f"\n{name} " in printed, name
    assert "left out" not in printed
