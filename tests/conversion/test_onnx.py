"""An ONNX graph gives the logits of the model in onnxruntime, with its cache, and its text in other programs."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mypt.conversion import onnx as onnx_format
from mypt.conversion.export import export_model
from mypt.errors import CheckFailed, CheckpointError
from tests.conversion.models import TEXT, bpe_tokenizer, save_model
from tests.packages import needs

pytestmark = [needs("onnxscript", "pip install 'mypt[onnx]'"), needs("onnxruntime", "pip install 'mypt[onnx]'")]

LLAMA = {"qk_norm": False, "attention_bias": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}
LLAMA["rope_parameters"]["rope_theta"] = 1e4
MODELS = {
    "qwen3": ("modern-nano", {"num_key_value_heads": 1, "head_dim": 24, "num_hidden_layers": 1}),
    "gpt2": ("tiny", {}),
    "llama": ("modern-nano", LLAMA | {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize(
    "target", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "llama"))]
)
def test_the_graph_computes_the_same(target, tmp_path):
    """Logits of a left-padded batch, the second half of each row from the cache; the greedy loop; a batch of 3."""
    import onnxruntime

    preset, changes = MODELS[target]
    tokenizer = bpe_tokenizer()
    folder = save_model(tmp_path / "model", tokenizer, preset, **changes)
    report = export_model(folder, tmp_path / "out", format="onnx")
    assert report["target"] == target and report["greedy_equal"] and report["greedy_tokens"] > 0
    assert max(report["differences"].values()) <= 1e-5 * report["largest_logit"]
    assert report["notes"] == ["20 rows of ids that the tokenizer does not have are left out"]
    names = {path.name for path in (tmp_path / "out" / "onnx").iterdir()}
    assert names == {"model.onnx", "model.onnx_data"}
    runner, model = onnx_format.OnnxRunner(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(tokenizer.vocab_size, (3, 41))
    with torch.no_grad():
        expected = model(ids).logits[..., : tokenizer.vocab_size]
    torch.testing.assert_close(runner.logits(ids, torch.ones_like(ids)), expected, atol=5e-5, rtol=0)
    # What transformers.js begins with: a cache without rows.
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    heads = changes.get("num_key_value_heads", 2)
    empty = np.zeros((0, heads, 0, changes.get("head_dim", 16)), np.float32)
    feed = {value.name: empty for value in session.get_inputs() if value.name.startswith("past_key_values.")}
    feed |= {"input_ids": ids.numpy(), "attention_mask": np.ones((3, 41), np.int64)}
    feed["position_ids"] = np.arange(41)[None].repeat(3, 0)
    logits = session.run(["logits"], feed)[0]
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=5e-5, rtol=0)
    if target != "qwen3":
        same_text_elsewhere(tmp_path / "out", model, tokenizer)


GENAI = """
import json, sys
import onnxruntime_genai as genai
model = genai.Model(sys.argv[1])
params = genai.GeneratorParams(model)
params.set_search_options(max_length=60, do_sample=False)
generator = genai.Generator(model, params)
generator.append_tokens([int(id) for id in genai.Tokenizer(model).encode(sys.argv[2])])
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps([int(id) for id in generator.get_sequence(0)]))
"""


def same_text_elsewhere(folder, model, tokenizer):
    """onnxruntime-genai reads the folder as it is, tokenizer included."""
    pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai")
    done = subprocess.run([sys.executable, "-c", GENAI, folder, TEXT[:40]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given = torch.tensor([tokenizer(TEXT[:40])["input_ids"]])
    options = {"do_sample": False, "max_length": 60, "max_new_tokens": None}
    expected = model.generate(given, attention_mask=torch.ones_like(given), **options)
    assert json.loads(done.stdout) == expected[0].tolist()


@pytest.mark.slow
def test_a_graph_that_differs_is_not_kept(tmp_path, monkeypatch):
    """One matrix of the file is damaged."""
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "tiny", num_hidden_layers=1)

    def damaged(model, tokenizer, folder, *options):
        write(model, tokenizer, folder, *options)
        with open(folder / "onnx" / "model.onnx_data", "r+b") as file:
            file.seek(4_000)
            file.write(np.full(64, 0.5, np.float32).tobytes())
        return []

    write = onnx_format.write
    monkeypatch.setattr(onnx_format, "write", damaged)
    with pytest.raises(CheckFailed, match=r"differ by .* nothing is kept"):
        export_model(folder, tmp_path / "out", format="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_rope_type_that_cannot_be_traced_is_named(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "modern-nano", rope_parameters=rope)
    with pytest.raises(CheckpointError, match=r"onnx cannot express rope_type dynamic, .*--format safetensors can"):
        export_model(folder, tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_options_that_the_format_does_not_have_are_refused(tmp_path):
    folder = save_model(tmp_path / "model", bpe_tokenizer(), "tiny")
    with pytest.raises(CheckpointError, match="--format onnx has no --dtype q8_0; choose float32"):
        export_model(folder, tmp_path / "out", dtype="q8_0", format="onnx")
    with pytest.raises(
        CheckpointError, match="--format onnx is one file; --max-shard-size is for safetensors and int8"
    ):
        export_model(folder, tmp_path / "out", format="onnx", max_shard_size=1_000)
    shutil.rmtree(folder)
