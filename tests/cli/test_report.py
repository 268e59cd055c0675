"""`mypt report`, and the report that every `mypt train` leaves."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from mypt.cli.main import main
from mypt.errors import Diverged
from mypt.report.write import report_at_end
from mypt.yaml12 import dump_yaml


def test_a_page_and_where_it_is(whole_copy, tmp_path, capsys):
    assert main(["report", str(whole_copy), "--out", str(tmp_path / "new" / "a.html")]) == 0
    page = (tmp_path / "new" / "a.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "<h3>general</h3>" in page
    assert f"{tmp_path / 'new' / 'a.html'}: " in capsys.readouterr().out
    assert main(["report", str(whole_copy), "--samples", "0"]) == 0
    assert (whole_copy / "report.html").read_text() == page, "the samples are kept"


def test_what_is_refused(whole_copy, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for words, message in (
        ([str(tmp_path / "nothing")], "there is no folder"),
        ([str(whole_copy / "checkpoint-4")], f"mypt report {whole_copy}"),
        ([str(whole_copy), "--out", str(tmp_path / "notes.txt")], "is no report of mypt"),
        ([str(whole_copy), "--out", str(tmp_path)], "is a folder"),
        ([str(whole_copy), "--samples", "-1"], "--samples is -1"),
    ):
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_damaged_file_is_one_message(whole_copy, capsys):
    (whole_copy / "coverage.json").write_text('{"step": 1')
    assert main(["report", str(whole_copy)]) == 2
    assert "coverage.json is damaged" in capsys.readouterr().err


@pytest.fixture
def recipe(recipe_for, tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(recipe_for(training={"max_steps": 4})))
    return path


def test_training_leaves_a_report_with_samples(recipe, tmp_path):
    assert main(["train", str(recipe)]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Completed" in page and len(json.loads((tmp_path / "run" / "samples.json").read_text())["samples"]) == 4
    before = (tmp_path / "run" / "report.html").stat().st_mtime_ns
    assert main(["train", str(recipe)]) == 2, "refused: it holds checkpoints"
    assert main(["train", str(recipe), "--resume"]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_mtime_ns == before, "nothing was trained"


@pytest.mark.parametrize("infeasible", [False, True])
def test_the_report_that_goes_up_tells_how_the_run_ended(recipe_for, corpora, tmp_path, infeasible):
    """It is sent before result.json is written, which a killed upload must not call complete."""
    store = tmp_path / "store"
    content = recipe_for(training={"max_steps": 4}, upload={"uri": f"file://{store}"})
    if infeasible:
        content["data"]["train"] = str(corpora / "domain")
        content["training"] |= {"max_steps": 12, "learning_rate": 3.0}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(content))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == int(infeasible)
    sent = (store / "report.html").read_text()
    words = "Completed, but no saved step kept every guarded set" if infeasible else "Completed</b>"
    assert words in sent and "Not finished" not in sent and "<h3>general</h3>" in sent, "with samples"
    assert words in (tmp_path / "run" / "report.html").read_text()
    before = (store / "report.html").stat().st_mtime_ns
    assert main(["train", str(tmp_path / "recipe.yaml"), "--resume"]) == int(infeasible)
    assert (store / "report.html").stat().st_mtime_ns >= before and words in (store / "report.html").read_text()
    assert main(["download", f"file://{store}", str(tmp_path / "copy")]) == 0
    assert words in (tmp_path / "copy" / "report.html").read_text()


def test_a_report_never_fails_a_run(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(recipe)]) == 0
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    capsys.readouterr()
    assert main(["train", str(recipe), "--resume", "--training.max_steps=5"]) == 0
    assert "no report.html: " in capsys.readouterr().err


def test_a_run_that_diverges_leaves_a_report(recipe, tmp_path):
    assert main(["train", str(recipe), "--training.learning_rate=1e30", "--optimizer.name=adamw"]) == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["reason"] == "diverged"
    assert "Diverged after step" in page and not (tmp_path / "run" / "samples.json").exists()


@pytest.mark.parametrize("ended", [None, Diverged("the loss is NaN")])
def test_ctrl_c_during_the_report_changes_nothing_of_how_the_run_ended(whole_copy, monkeypatch, capsys, ended):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mypt.report.write.write_report", interrupted)
    (whole_copy / "report.html").unlink(missing_ok=True)
    with pytest.raises(Diverged) if ended else nullcontext(), report_at_end(whole_copy):
        if ended:
            raise ended
    assert "no report.html: KeyboardInterrupt" in capsys.readouterr().err
