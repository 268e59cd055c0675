"""What a start warns of in one line each, before the first step: evaluation text in the training data, a full disk."""

from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer


def warnings(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


def test_a_start_warns_of_what_is_trained_on_and_of_a_full_disk(corpora, recipe_for, tmp_path, capsys, monkeypatch):
    from mypt.preparation.prepare import prepare_dataset
    from mypt.training import build

    build_trainer(parse_recipe(recipe_for())).give_back()
    assert warnings(capsys) == []

    whole, options = tmp_path / "whole", {"val_fraction": 0, "progress": False}
    prepare_dataset([str(corpora / "general.txt")], whole, tokenizer=str(corpora / "general"), **options)
    content = recipe_for(training={"output_dir": str(tmp_path / "other")})
    content["data"]["train"] = {str(corpora / "domain"): 0.75, str(whole): 0.25}
    monkeypatch.setattr(build, "free_for", lambda folder: 10_000)
    build_trainer(parse_recipe(content)).give_back()
    shared, disk = warnings(capsys)
    assert f"of general is in the training data of {whole}" in shared and "domain is" not in shared
    assert "0.000 GiB are free" in disk and "training.save_total_limit" in disk
