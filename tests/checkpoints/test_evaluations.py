"""evaluation.json beside a model: figures are added, and replaced by the same figure alone."""

import json
import math
import shutil

import pytest

from mypt.checkpoints.evaluations import add_evaluations, evaluations_of, read_evaluations
from mypt.cli.main import main
from mypt.errors import MyPTError


def loss(value: float, **changed) -> dict:
    entry = {"model": "m", "data": "x", "definition": "windows", "data_hash": "a", "weights": "w", "versions": {}}
    entry |= {"split": "val", "block_size": 8, "document_mask": False, "loss": value, "standard_error": 0.1}
    return entry | {"perplexity": 2.0, "bits_per_byte": 1.0, "tokens": 9, "parts": {}} | changed


def test_a_perplexity_that_no_float_holds(tmp_path):
    add_evaluations(tmp_path / "x.json", [loss(800.0, perplexity=math.inf)])
    assert read_evaluations(tmp_path / "x.json")[0]["perplexity"] is None


def test_other_data_under_the_same_name_is_another_entry(tmp_path):
    file = tmp_path / "evaluation.json"
    add_evaluations(file, [loss(1.0)])
    add_evaluations(file, [loss(2.0, data_hash="b"), loss(3.0, definition="rolling"), loss(4.0, weights="v")])
    assert [entry["loss"] for entry in read_evaluations(file)] == [1, 2, 3, 4]
    add_evaluations(file, [loss(5.0)])
    assert [entry["loss"] for entry in read_evaluations(file)] == [2, 3, 4, 5], "the same figure, measured again"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"results": 1}', '{"results": [{"loss": "1"}]}', '{"results": [{"loss": NaN}]}']
)
def test_a_damaged_file_is_not_replaced(tmp_path, text):
    file = tmp_path / "evaluation.json"
    file.write_text(text)
    with pytest.raises(MyPTError, match="restore or delete it"):
        add_evaluations(file, [loss(1.0)])
    assert file.read_text() == text


@pytest.fixture
def model(untrained_models, tmp_path):
    return shutil.copytree(untrained_models / "first", tmp_path / "model")


def test_the_command_saves_beside_the_model(model, corpora, capsys):
    command = ["evaluate", str(model), "--data", f"general={corpora / 'general'}", "--json"]
    assert main([*command, "--by", "position", "source"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    (saved,) = evaluations_of(model)
    assert {key: saved[key] for key in printed} == printed
    assert set(saved["versions"]) == {"mypt", "torch", "transformers"}
    assert {path.name for path in model.glob("evaluation*.png")} == {
        *("evaluation.png", "evaluation_position.png", "evaluation_source.png")
    }
    assert main(command) == 0 and len(evaluations_of(model)) == 1
    command[3] = f"general={corpora / 'domain'}"
    assert main(command) == 0 and len(evaluations_of(model)) == 2


def test_figures_of_other_weights_are_not_the_model_s(model, untrained_models, corpora, capsys):
    assert main(["evaluate", str(model), "--data", f"general={corpora / 'general'}", "--json"]) == 0
    shutil.copy(untrained_models / "second" / "model.safetensors", model)
    assert evaluations_of(model) == [] and len(read_evaluations(model / "evaluation.json")) == 1


def test_a_damaged_file_is_refused_before_anything_is_measured(model, corpora, capsys):
    (model / "evaluation.json").write_text("{")
    assert main(["evaluate", str(model), "--data", f"general={corpora / 'general'}"]) == 2
    assert "evaluation.json is damaged" in capsys.readouterr().err


def test_the_card_has_what_was_measured(model, corpora, capsys):
    from huggingface_hub import ModelCard

    from mypt.storage.card import model_card
    from mypt.storage.upload_files import model_files

    before = model_card(model, "me/model")
    assert "Measured by mypt evaluate" not in before
    assert main(["evaluate", str(model), "--data", f"general={corpora / 'general'}", "--rolling", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    card = model_card(model, "me/model")
    assert "lm-eval's rolling log-likelihood" in card and "![Bits per byte](evaluation.png)" in card
    assert f"| general | rolling, val | 32 | {row['tokens']:,} |" in card
    (result,) = ModelCard(card).data.eval_results
    assert (result.dataset_name, result.metric_type) == ("general", "bits_per_byte")
    assert result.metric_value == round(row["bits_per_byte"], 4)
    assert {"evaluation.json", "evaluation.png"} <= {path.name for path in model_files(model)}
