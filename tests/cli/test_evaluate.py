"""`mypt evaluate` prints the exact figures, for people and as JSON."""

import json
import sys

import numpy as np
import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.cli.main import main
from mypt.evaluation.compare import compare


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They are drawn in tests/checkpoints/test_evaluations.py."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def models(tmp_path):
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MyPTConfig(vocab_size=40, max_position_embeddings=16, initializer_range=0.3, **sizes)
        paths.append(str(tmp_path / f"model{seed}"))
        MyPTForCausalLM(config).save_pretrained(paths[-1])
    return paths


@pytest.fixture
def data(make_shards):
    rng = np.random.default_rng(0)
    return {
        name: str(make_shards(name, train=rng.integers(0, 40, 90), val=rng.integers(0, 40, 1_234), vocab_size=40))
        for name in ("general", "domain")
    }


def pairs(data):
    return [f"{name}={directory}" for name, directory in data.items()]


def test_json_is_what_compare_found(models, data, capsys):
    assert main(["evaluate", *models, "--data", *pairs(data), "--guard", "domain", "--block-size", "8", "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == "", "nothing but errors is printed beside the JSON when piped"
    assert report == [vars(score) for score in compare(models, data, block_size=8, guard=["domain"])]
    assert report[0]["tokens"] == 1_233
    assert set(report[3]) == {
        *("model", "data", "definition", "loss", "standard_error", "perplexity", "bits_per_byte", "bytes"),
        *("tokens", "delta", "delta_error", "interval", "bits_delta", "bits_interval", "unit", "units"),
        *("state", "tolerance", "alpha", "block_size", "split", "document_mask", "data_hash", "parts"),
    }


def test_the_table_has_a_row_for_every_model_and_set(models, data, capsys):
    assert main(["evaluate", *models, "--data", *pairs(data), "--guard", "general"]) == 0
    header, *rows, definition, interval, saved = capsys.readouterr().out.splitlines()
    columns = ["model", "data", "tokens", "nats/token", "perplexity", "bits/byte", "change", "interval", "forgetting"]
    assert definition.startswith("windows: every token but the first")
    assert interval.startswith("interval: 95%, of the change, from ")
    assert saved.startswith("saved: ")
    assert header.split() == columns
    scores = compare(models, data, guard=["general"])
    assert len(rows) == 4
    for row, score in zip(rows, scores, strict=True):
        assert row.startswith(score.model)
        for figure in (f" {score.data} ", "1,233", f"{score.loss:.4f} +/- ", f"{score.perplexity:.2f}"):
            assert figure in row
        assert (score.state or "+/-") in row
        assert ("+/-" in row.split(f"{score.bits_per_byte:.4f}")[1]) == (score.delta is not None)


def test_options_may_be_given_again(models, data, capsys):
    first, second = pairs(data)
    for arguments in (["--data", first, second], ["--data", first, "--data", second]):
        main(["evaluate", models[0], "--json", *arguments])
        assert [entry["data"] for entry in json.loads(capsys.readouterr().out)] == ["general", "domain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "general"], "expected NAME=DIR"),
        (["--data", "x=/nowhere"], "/nowhere"),
        (["--data", "{general}", "{general}"], "a name twice"),
        (["--data", "{general}", "--guard", "law"], "'law', --data has: general"),
        (["--data", "{general}", "--block-size", "17"], "expected 1 to 16 tokens"),
        (["--data", "{general}", "--batch-size", "0"], "expected 1 window or more"),
        ([], "nothing to measure; give --data NAME=DIR, --references NAME=FILE or --tasks NAME"),
        (["--data", "{general}", "--rolling", "--document-mask"], "leave out --document-mask"),
        (["--data", "{general}", "--by", "source"], "does not say which documents of val came of which source"),
        (["--data", "{general}", "--texts", "x"], "--texts is for the texts that --references compares"),
        (["--data", "{general}", "--out", "/nowhere/x.json"], "/nowhere/x.json cannot be written"),
        (["--references", "x=nothing.jsonl"], "nothing.jsonl cannot be read"),
        (["--references", "x=nothing.txt"], "expected a .jsonl file"),
        (["--data", "{general}", "--max-new-tokens", "0"], "expected 1 token or more"),
    ],
)
def test_bad_input_is_one_line(models, data, capsys, arguments, message):
    arguments = [argument.format(general=pairs(data)[0]) for argument in arguments]
    assert main(["evaluate", models[0], *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert message in printed.err


def test_a_folder_without_a_model(data, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--data", *pairs(data)]) == 2
    assert "config.json" in capsys.readouterr().err
