"""`mypt upload` from the command line: what is listed, sent, refused."""

import json

import pytest

from mypt.cli.main import main
from tests.hub import TOKEN


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny untrained model and its tokenizer."""
    from mypt.models.modeling_mypt import MyPTForCausalLM
    from mypt.models.presets import preset_config
    from mypt.tokenization.load import save_tokenizer
    from mypt.tokenization.train import build_char_tokenizer

    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = preset_config("modern-nano", vocab_size=320, head_dim=8, intermediate_size=32, **sizes)
    MyPTForCausalLM(config).save_pretrained(folder)
    save_tokenizer(build_char_tokenizer("abcdefgh"), folder)
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


def test_a_dry_run_lists_the_files_and_prints_the_card_without_any_hub(model, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["upload", str(model), "hf://me/tiny", "--dry-run", "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("hf://me/tiny would get\nfile ") and "nothing was sent" in printed
    assert "model.safetensors" in printed and "optimizer.pt" not in printed
    assert "\nlicense: mit\n" in printed and 'from_pretrained("me/tiny")' in printed
    assert main(["upload", str(model), "hf://me/tiny", "--dry-run", "--license", "mit", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"]["model.safetensors"] == (model / "model.safetensors").stat().st_size
    assert report["card"] in printed and report["bytes"] == sum(report["files"].values())


def test_what_was_sent_is_told_file_by_file(model, logged_in, capsys):
    assert main(["upload", str(model), "hf://me/tiny@v1", "--public", "--message", "Tiny"]) == 0
    printed = capsys.readouterr().out
    files = logged_in.models["me/tiny"]["v1"]
    assert f"{len(files) - 1} of {len(files) - 1} files sent" in printed and "public" in printed
    assert all(name in printed for name in files if name != ".gitattributes")
    assert logged_in.commits[-1][:3] == ("me/tiny", "v1", "Tiny")
    assert main(["upload", str(model), "hf://me/tiny@v1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sent"] == report["removed"] == [] and report["private"] is False
    assert set(report["unchanged"]) == {*files} - {".gitattributes"} == {*report["files"]}
    assert report["commit"] == logged_in.commit("me/tiny", "v1")


@pytest.mark.parametrize(
    ("directory", "uri", "words"),
    [
        ("MODEL", "ftp://host/tiny", "give hf://user/name"),
        ("MODEL", "hf://tiny", "not of the form hf://user/name"),
        ("nowhere", "hf://me/tiny", "nowhere holds no model"),
        ("MODEL", "hf://you/tiny", "may not write there"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(model, logged_in, directory, uri, words, capsys):
    assert main(["upload", str(model) if directory == "MODEL" else directory, uri]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("mypt upload: ") and error.count("\n") == 1 and TOKEN not in error


def test_a_hub_that_fails_is_exit_1(model, logged_in, capsys):
    logged_in.failing = 9
    assert main(["upload", str(model), "hf://me/failing"]) == 1
    logged_in.failing = 0
    assert "try again later" in capsys.readouterr().err
