"""`mypt generate` from the command line: what is printed, streamed, refused."""

import io
import json

import pytest

from mypt.cli.main import main

CONTEXT = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model and its character tokenizer; its weights are random, so its text is noise."""
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM
    from mypt.tokenization.char import build_char_tokenizer
    from mypt.tokenization.load import save_tokenizer

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = MyPTConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        lm_head_bias=True,
    )
    model = MyPTForCausalLM(config)
    tokenizer = build_char_tokenizer("abcdefgh")
    # Letters only, never the end of text: what is printed can then be compared character by character.
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    torch.nn.init.constant_(model.lm_head.bias, -1e4)
    model.lm_head.bias.data[tokenizer.convert_tokens_to_ids(list("abcdefgh"))] = 0.0
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return str(folder)


def generate(capsys, *arguments, code=0):
    assert main(["generate", *arguments]) == code
    return capsys.readouterr()


def texts(capsys, *arguments):
    return json.loads(generate(capsys, *arguments, "--json").out)["texts"]


def test_prompt_and_text_are_printed_as_json_tells_them(model, capsys):
    options = [model, "--prompt", "abc", "--max-new-tokens", "12", "--seed", "4"]
    printed = generate(capsys, *options)
    (text,) = texts(capsys, *options)
    assert printed.out == f"abc{text['text']}\n" and printed.err == ""
    assert (len(text["text"]), text["tokens"], text["finish"], text["seed"]) == (12, 12, "length", 4)


def test_samples_differ_and_the_first_is_the_single_one(model, capsys):
    options = [model, "--prompt", "abc", "--max-new-tokens", "12", "--seed", "4"]
    samples = texts(capsys, *options, "--num-samples", "3")
    assert [sample["seed"] for sample in samples] == [4, 5, 6]
    assert len({sample["text"] for sample in samples}) == 3
    assert samples[:1] == texts(capsys, *options)
    printed = generate(capsys, *options, "--num-samples", "3").out
    assert printed == "\n---\n".join(f"abc{sample['text']}" for sample in samples) + "\n"


def test_without_a_seed_texts_differ_and_the_seed_is_told(model, capsys):
    first, second = (texts(capsys, model, "--max-new-tokens", "20")[0] for _ in range(2))
    assert first["text"] != second["text"]
    assert texts(capsys, model, "--max-new-tokens", "20", "--seed", str(first["seed"])) == [first]


def test_prompts_from_everywhere_come_in_order(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompt.txt").write_text("ab\ncd\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"gh\n")))
    found = texts(
        capsys, model, "--prompt", "a", "--prompt-file", str(tmp_path / "prompt.txt"), "--prompt", "-",
        "--max-new-tokens", "2",
    )  # fmt: skip
    assert [text["prompt"] for text in found] == ["a", "gh", "ab\ncd"]


def test_a_full_context_is_said(model, capsys):
    printed = generate(capsys, model, "--prompt", "a" * 60, "--max-new-tokens", "10")
    assert len(printed.out) == CONTEXT + 1
    assert printed.err == "mypt generate: stopped after 4 tokens: the model's context is full\n"
    refused = generate(capsys, model, "--prompt", "a" * 64, code=2)
    assert "the prompt has 64 tokens and the model's context ends at 64" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "temperature is 0.0; it must be above 0; the likeliest token each time is --greedy"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--top-k", "0"], "top_k is 0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--num-samples", "0"], "num_samples is 0"),
        (["--greedy", "--num-samples", "2"], "would all be the same text"),
        (["--prompt-file", "no/such/file"], "prompt file no/such/file cannot be read"),
    ],
)
def test_bad_values_are_one_line(model, capsys, options, message):
    error = generate(capsys, model, *options, code=2).err
    assert message in error and len(error.splitlines()) == 1


def test_missing_pieces_are_one_line(model, tmp_path, capsys):
    from pathlib import Path

    assert "holds no config.json" in generate(capsys, str(tmp_path), code=2).err
    assert "neither a folder here" in generate(capsys, str(tmp_path / "nowhere"), code=2).err
    for file in Path(model).iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert "holds no tokenizer.json" in generate(capsys, str(tmp_path), code=2).err
