"""An exported folder is a stock checkpoint: plain transformers loads it and says the same."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, Qwen2Tokenizer

from mypt.conversion import parity
from mypt.conversion.export import export_model
from mypt.errors import CheckFailed, CheckpointError
from mypt.tokenization.load import largest_id, load_tokenizer, save_tokenizer, tokenizer_hash
from tests.conversion.models import TEXT, bpe_tokenizer, save_model
from tests.processes import bare_python

# What a machine without mypt does with a folder.
PLAIN = """
import sys
sys.modules["mypt"] = None  # any import of it fails
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = model.generate(**tokenizer(sys.argv[1], return_tensors="pt"), do_sample=False, max_new_tokens=24)
    print(type(model).__name__, ids[0].tolist())
"""


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer()


@pytest.fixture
def saved(tmp_path, tokenizer):
    """saved(preset, **changes): the folder of a model with its tokenizer."""
    return lambda preset, **changes: save_model(tmp_path / "model", tokenizer, preset, **changes)


def test_plain_transformers_generates_the_same_text(saved, tmp_path, tokenizer):
    given = torch.tensor([tokenizer(TEXT)["input_ids"]])
    expected, folders = [], []
    for preset, changes, target, name in (
        ("tiny", {}, "gpt2", "GPT2LMHeadModel"),
        ("modern-nano", {}, "qwen3", "Qwen3ForCausalLM"),
        ("modern-nano", {"qk_norm": False, "tie_word_embeddings": False}, "llama", "LlamaForCausalLM"),
    ):
        folder = saved(preset, **changes)
        folders.append(str(tmp_path / target))
        report = export_model(folder, folders[-1], target)
        assert report["greedy_equal"] and report["to"] == name
        assert report["differences"].keys() == {"random ids", "left-padded batch", "text"}
        assert max(report["differences"].values()) <= report["tolerance"] < 1e-3
        assert not list(Path(folders[-1]).glob("*.py"))
        ours = AutoModelForCausalLM.from_pretrained(folder)
        mask = torch.ones_like(given)
        ids = ours.generate(given, attention_mask=mask, do_sample=False, max_new_tokens=24)[0].tolist()
        assert max(ids) <= largest_id(tokenizer)
        expected.append(f"{name} {ids}")
    done = bare_python(PLAIN, TEXT, *folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_auto_is_written_in_the_dtype_that_is_asked_for(saved, tmp_path):
    report = export_model(saved("modern-nano"), tmp_path / "out", dtype="bfloat16")
    assert report["target"] == "qwen3" and report["dtype"] == "bfloat16"
    assert 1e-4 < report["rounding"] < 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert export_model(tmp_path / "out", tmp_path / "again")["rounding"] is None


def test_weights_are_cut_into_shards(saved, tmp_path):
    folder = saved("modern-nano", hidden_size=64, head_dim=32)
    report = export_model(folder, tmp_path / "out", dtype="bf16", max_shard_size=30_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and max(path.stat().st_size for path in shards[1:]) < 40_000
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert max(report["differences"].values()) == 0 and report["dtype"] == "bfloat16"
    saved_report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert saved_report == report and saved_report["result"]["bytes"] < saved_report["source"]["bytes"]
    assert saved_report["source"]["bits_per_byte"] == pytest.approx(saved_report["result"]["bits_per_byte"], abs=0.1)


def test_bits_per_byte_are_those_of_the_text_that_is_given(saved, tmp_path, tokenizer):
    folder, text = saved("modern-nano"), tmp_path / "own.txt"
    text.write_text(TEXT, encoding="utf-8")
    report = export_model(folder, tmp_path / "out", text=text)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    loss = AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    size = len(tokenizer.decode(ids[0, 1:]).encode())
    assert report["text"] == {"tokens": ids.shape[1], "bytes": size}
    for side in ("source", "result"):
        assert report[side]["bits_per_byte"] == pytest.approx(loss / math.log(2) / size, rel=1e-5)


def test_a_folder_whose_tokenizer_would_be_read_as_another_is_not_made(saved, tmp_path, tokenizer):
    """AutoTokenizer makes every tokenizer of a qwen2 folder a Qwen2Tokenizer, which splits text in its own way."""
    folder = saved("modern-nano", qk_norm=False, attention_bias=True)
    with pytest.raises(CheckpointError, match="tokenizer of every qwen2 folder by qwen2's own rules"):
        export_model(folder, tmp_path / "out", "qwen2")
    report = export_model(folder, tmp_path / "out")
    assert (report["target"], report["added_biases"]) == ("llama", ["attention_output_bias"])
    assert tokenizer_hash(load_tokenizer(tmp_path / "out")) == tokenizer_hash(tokenizer)
    own = Qwen2Tokenizer(vocab=tokenizer.get_vocab(), merges=[])
    save_tokenizer(own, folder)
    assert export_model(folder, tmp_path / "own")["target"] == "qwen2"


def test_a_stock_model_goes_the_same_way(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=24, eos_token_id=0))
    model.save_pretrained(tmp_path / "gpt2")
    report = export_model(tmp_path / "gpt2", tmp_path / "out")
    assert (report["from"], report["to"]) == ("GPT2LMHeadModel", "GPT2LMHeadModel")
    assert "text" not in report["differences"]  # there is no tokenizer
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())


def test_what_the_target_lacks_is_named_and_nothing_is_written(saved, tmp_path):
    with pytest.raises(CheckpointError, match="llama cannot express qk_norm True; --to qwen3 can"):
        export_model(saved("modern-nano"), tmp_path / "out", "llama")
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    OPTForCausalLM(OPTConfig(vocab_size=64, num_attention_heads=2, **sizes)).save_pretrained(tmp_path / "opt")
    with pytest.raises(CheckpointError, match="MyPT cannot express model_type opt"):
        export_model(tmp_path / "opt", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "opt"]


def test_a_folder_with_something_in_it_is_refused(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    folder = saved("tiny")
    with pytest.raises(CheckpointError, match="is not empty"):
        export_model(folder, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").unlink()
    export_model(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"


def test_an_export_that_differs_is_not_kept(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    with pytest.raises(CheckFailed, match=r"differ by 0\.0e\+00 \(random ids\).* nothing is kept"):
        export_model(saved("tiny"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
