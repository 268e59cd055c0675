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
    from mypt.tokenization.load import save_tokenizer
    from mypt.tokenization.train import build_char_tokenizer

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
        (["--prompts", "no/such/file"], "prompts no/such/file cannot be read"),
        (["--min-p", "2"], "min_p is 2.0"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--num-beams", "2", "--num-samples", "2"], "would all be the same text"),
        (["--num-beams", "2", "--overflow", "slide"], "beams end with the context"),
        (["--stop", ""], "stop is ('',)"),
        (["--contrastive"], "transformers has no contrastive search since 5.0"),
        (["--qa", "--template", "no/such/file"], "in it, or a file) no/such/file cannot be read"),
        (["--template", "{question}"], "--template goes with --qa or --chat"),
        (["--resume"], "--resume goes with --out"),
        (["--chat", "--prompt", "a"], "--chat goes with questions on standard input"),
        (["--json", "--batch-size", "0"], "batch_size is 0"),
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


def test_a_preset_gives_way_to_options(model, capsys):
    def settings(*options):
        return json.loads(generate(capsys, model, "--max-new-tokens", "1", "--json", *options).out)["settings"]

    assert settings("--preset", "code")["temperature"] == 0.2
    mixed = settings("--preset", "code", "--temperature", "0.9", "--stop", "\\n", "--stop", "x")
    assert (mixed["temperature"], mixed["top_p"], mixed["stop"]) == (0.9, 0.95, ["\n", "x"])
    assert settings()["temperature"] == 0.8


def test_the_path_is_told(model, capsys):
    (fast,) = texts(capsys, model, "--greedy", "--max-new-tokens", "5")
    (beams,) = texts(capsys, model, "--num-beams", "2", "--max-new-tokens", "5")
    (int8,) = texts(capsys, model, "--int8", "--max-new-tokens", "5")
    assert (fast["path"], beams["path"], int8["path"]) == ("fast", "transformers", "int8")


def test_nothing_from_the_stop_string_on_is_printed(model, capsys):
    options = [model, "--prompt", "abc", "--greedy", "--max-new-tokens", "12"]
    text = texts(capsys, *options)[0]["text"]
    stop = text[4:6]
    printed = generate(capsys, *options, "--stop", stop)
    assert printed.out == f"abc{text[: text.index(stop)]}\n"


def test_a_sliding_context_is_said(model, capsys):
    printed = generate(capsys, model, "--prompt", "a" * 60, "--max-new-tokens", "30", "--overflow", "slide")
    assert len(printed.out) == 60 + 30 + 1
    # 64 tokens fill the context, 32 stay; 26 more do not fill it again.
    assert printed.err == "mypt generate: the context slid: at the end the model no longer saw the first 32 tokens\n"


PROMPTS = "abc\n\nh\ngfedcba\na\nbb\n"


def test_a_file_of_prompts_gives_a_file_of_texts_in_order(model, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    common = [model, "--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "9", "--seed", "4"]
    out = tmp_path / "out.jsonl"
    printed = generate(capsys, *common, "--num-samples", "2", "--batch-size", "3", "--out", str(out))
    assert printed.out == f"10 texts written to {out}, which has 10\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [prompt for prompt in PROMPTS.split() for _ in range(2)]
    assert [line["seed"] for line in lines] == [4, 5] * 5
    assert lines == texts(capsys, *common, "--num-samples", "2", "--batch-size", "1")
    streamed = generate(capsys, *common, "--num-samples", "2").out
    assert streamed == "\n---\n".join(line["prompt"] + line["text"] for line in lines) + "\n"


def test_an_interrupted_file_of_texts_is_continued(model, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{p}", "id": {n}}}\n' for n, p in enumerate("abcd")))
    out = tmp_path / "out.jsonl"
    common = [model, "--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "9", "--out", str(out)]
    generate(capsys, *common)
    whole = out.read_text()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [0, 1, 2, 3]
    refused = generate(capsys, *common, code=2)
    assert "exists already; --resume continues it" in refused.err and out.read_text() == whole
    out.write_text(whole[: whole.index("\n", 300) + 10])
    # No seed is given: that of the first line counts.
    printed = generate(capsys, *common, "--resume").out
    assert out.read_text() == whole and "which has 4" in printed
    assert generate(capsys, *common, "--resume").out.startswith("0 texts written")


def test_answers_come_alone(model, tmp_path, capsys):
    options = [model, "--max-new-tokens", "6", "--seed", "1", "--template", "a{question}b"]
    answer = texts(capsys, model, "--prompt", "acb", "--max-new-tokens", "6", "--seed", "1")[0]["text"]
    assert generate(capsys, *options, "--qa", "--prompt", "c").out == answer + "\n"
    (told,) = texts(capsys, *options, "--qa", "--prompt", "c")
    assert (told["prompt"], told["text"]) == ("c", answer)
    (tmp_path / "template").write_text("a{question}b\n")
    options[-1] = str(tmp_path / "template")
    assert generate(capsys, *options, "--qa", "--prompt", "c").out == answer + "\n"


def test_a_chat_answers_each_line_until_the_end_of_input(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("c\n\nd\n" + "e" * 20 + "\n"))
    options = [model, "--chat", "--max-new-tokens", "6", "--seed", "1", "--template", "a{question}b"]
    printed = generate(capsys, *options)
    answers = printed.out.splitlines()
    assert len(answers) == 3 and {len(answer) for answer in answers} == {6}
    first = texts(capsys, model, "--prompt", "acb", "--max-new-tokens", "6", "--seed", "1")[0]["text"]
    second = texts(capsys, model, "--prompt", f"acb {first}\n\nadb", "--max-new-tokens", "6", "--seed", "2")[0]["text"]
    assert answers[:2] == [first, second]
    assert printed.err == ""
