"""`mypt tokenizer` shows what a tokenizer is, and makes the one that `mypt prepare` would make."""

import argparse
import json

import pytest

from mypt.cli.main import main
from mypt.cli.tokenizer import add_arguments, run
from mypt.errors import MyPTError, TokenizerError
from mypt.preparation.prepare import prepare_dataset
from mypt.tokenization.load import load_tokenizer, save_tokenizer, tokenizer_hash
from mypt.tokenization.train import build_char_tokenizer

TEXT = "".join(f"The {word} of number {i} is as good as any.\n\n" for i in range(300) for word in ("house", "tree"))


@pytest.fixture
def tokenizer(tmp_path, monkeypatch, capsys):
    """tokenizer("gpt2", "--text", "x") in a folder with text.txt: what it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)

    def call(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        run(parser.parse_args(arguments))
        return capsys.readouterr().out

    return call


def train(tokenizer, *more, out="made"):
    line = ("--source", "text.txt", "--out", out, "--vocab-size", "300", "--workers", "1")
    return json.loads(tokenizer(*line, "--json", *more))


def test_on_error_skips_what_cannot_be_read(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "the cat sat"}\n{broken\n{"text": "on the mat"}\n')
    source, out = str(tmp_path / "a.jsonl"), str(tmp_path / "out")
    make = ["tokenizer", "--source", source, "--out", out, "--tokenizer", "char", "--workers", "1"]
    assert main(make) == 2
    assert main([*make, "--on-error", "skip"]) == 0
    capsys.readouterr()
    assert main(["tokenizer", out, "--source", source, "--on-error", "skip", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["source"]
    assert (measured["bytes"], measured["loss"]["changed_texts"]) == (21, 0)


def test_it_makes_the_tokenizer_of_prepare(tokenizer, tmp_path):
    report = train(tokenizer)
    prepare_dataset("text.txt", "data", "bpe", vocab_size=300, progress=False)
    assert report["hash"] == tokenizer_hash(load_tokenizer("data")) == tokenizer_hash(load_tokenizer("made"))
    assert (report["kind"], report["ids"], report["merges"]) == ("byte-level BPE", 300, 43)
    assert report["special_tokens"] == [{"text": "<|endoftext|>", "id": 0, "roles": ["eos", "pad"]}]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "tokenizer.json", "tokenizer_config.json", "tokenizer_training.json",
    ]  # fmt: skip


def test_the_reasons_of_an_automatic_size_are_printed_and_kept(tokenizer):
    line = (
        "--source",
        "text.txt",
        "--out",
        "made",
        "--min-vocab-size",
        "270",
        "--max-vocab-size",
        "280",
        "--workers",
        "1",
    )
    made, shown = tokenizer(*line), tokenizer("made")
    assert made == shown
    assert "raised to the lower bound of 270" in shown
    assert "(Tao 2024)" in shown and "made of       text.txt" in shown


def test_it_is_reused_made_again_or_refused(tokenizer, tmp_path):
    first = train(tokenizer)
    record = tmp_path / "made" / "tokenizer_training.json"
    before = record.stat().st_mtime_ns
    assert train(tokenizer) == first and record.stat().st_mtime_ns == before
    assert train(tokenizer, "--retrain") == first and record.stat().st_mtime_ns > before
    with pytest.raises(TokenizerError, match=r"made holds another tokenizer \(seed 42 -> 1\).*--retrain"):
        train(tokenizer, "--seed", "1")
    (tmp_path / "text.txt").write_text(TEXT + "More.")
    with pytest.raises(TokenizerError, match="other text"):
        train(tokenizer)
    assert train(tokenizer, "--seed", "1", "--retrain")["training"]["settings"]["seed"] == 1
    prepare_dataset("text.txt", "data", "char", progress=False)
    with pytest.raises(TokenizerError, match="data is a dataset"):
        train(tokenizer, "--retrain", out="data")
    with pytest.raises(TokenizerError, match=r"text.txt is a file"):
        train(tokenizer, out="text.txt")


def test_characters(tokenizer):
    report = json.loads(
        tokenizer(
            "--source", "text.txt", "--out", "made", "--tokenizer", "char", "--json", "--workers", "1", "--lowercase"
        )
    )
    assert report["kind"] == "characters, and bytes for any other"
    assert report["ids"] == 1 + 256 + len(set(TEXT.lower()))
    assert report["training"]["settings"]["lowercase"] is True


def test_what_a_text_becomes(tokenizer, tmp_path):
    save_tokenizer(build_char_tokenizer("abc"), tmp_path / "char")
    (tmp_path / "abc.jsonl").write_text('{"body": "abab\\u00e9"}\n{"body": "b"}\n')
    line = ("char", "--source", "abc.jsonl", "--text-column", "body", "--text", "ca<|endoftext|>")
    report = json.loads(tokenizer(*line, "--json"))
    source = report["source"]
    # Two letters; two bytes for the accented one.
    assert {name: source[name] for name in ("bytes", "tokens", "bytes_per_token", "ids_used")} == {
        "bytes": 7, "tokens": 7, "bytes_per_token": 1.0, "ids_used": 4,
    }  # fmt: skip
    assert source["engine"] == "characters" and source["automatic_vocab_size"] == 5000
    assert [token["text"] for token in report["text"][:3]] == ["c", "a", "<"]
    assert len(report["text"]) == 2 + len("<|endoftext|>")
    one = json.loads(tokenizer(*line, "--json", "--max-documents", "1"))
    assert one["source"]["bytes"] == 6
    assert '"c"' in tokenizer(*line) and "ids used      4 of 260" in tokenizer(*line)


def test_the_longest_tokens(tokenizer):
    longest = train(tokenizer)["longest_tokens"]
    sizes = [token["bytes"] for token in longest]
    assert sizes == sorted(sizes, reverse=True) and len(longest) == 10
    assert all(len(token["text"].encode()) == token["bytes"] for token in longest)
    assert " number" in [token["text"] for token in longest]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "give a tokenizer to show"),
        (["gpt2", "--out", "made"], "give a tokenizer to show"),
        (["--out", "made"], "name the text with --source"),
        (["--source", "none.txt", "--out", "made"], "none.txt does not exist"),
        (["--source", "text.txt", "--out", "made", "--vocab-size", "100"], "vocab_size is 100"),
        (["made", "--source", "text.txt", "--max-documents", "-1"], "--max-documents is -1; it must be 1 or more"),
        (["none"], "none"),
    ],
)
def test_errors(tokenizer, line, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if line[:1] == ["made"]:
        save_tokenizer(build_char_tokenizer("ab"), "made")
    with pytest.raises(MyPTError, match=message):
        tokenizer(*line)


def test_words_are_added_to_a_tokenizer_and_prepare_takes_it(tokenizer, tmp_path):
    train(tokenizer)
    (tmp_path / "words.txt").write_text(" zygomorphic\n of number\n")
    line = ("made", "--add-tokens", "words.txt", " number", "--out", "more", "--text", "A house of number 7")
    report = json.loads(tokenizer(*line, "--json"))
    size = json.loads(tokenizer("made", "--json"))["ids"]
    assert report["ids"] == size + 2  # " number" is one token already
    assert {"id": size + 1, "text": " of number"} in report["text"]
    manifest = prepare_dataset("text.txt", "data", str(tmp_path / "more"), progress=False)
    assert manifest.vocab_size == size + 2


@pytest.mark.parametrize("line", [("--text", "a\udcff"), ("--add-tokens", "a\udcff", "--out", "more")])
def test_a_text_that_is_not_utf8_is_named(tokenizer, tmp_path, line):
    save_tokenizer(build_char_tokenizer("abc"), "made")
    with pytest.raises(TokenizerError, match=rf"{line[0]} 'a\\udcff' is not UTF-8"):
        tokenizer("made", *line)
    assert not (tmp_path / "more").exists()


def test_words_need_a_tokenizer_and_a_place(tokenizer):
    for line in (("--add-tokens", "a"), ("gpt2", "--add-tokens", "a"), ("--add-tokens", "a", "--out", "more")):
        with pytest.raises(TokenizerError, match="--add-tokens needs a tokenizer to add to and --out"):
            tokenizer(*line)
