"""A run folder's pictures, tables and texts."""

import shutil

import pytest

from mypt.demo.run_view import view_run
from mypt.errors import CheckpointError

PNG = b"\x89PNG\r\n\x1a\n"


def words(view) -> str:
    return "\n".join(block if isinstance(block, str) else str(block) for block in view.blocks)


def test_a_run_shows_its_tables_and_the_texts_of_its_evaluation_sets(whole_run, corpora):
    view = view_run(str(whole_run))
    text = words(view)
    for part in ("training data", "since step 0", "Dataset coverage", "12 of 12", "Verdict"):
        assert part in text, part
    assert "settings that are not the defaults" in "\n".join(b for b in view.more if isinstance(b, str))
    assert set(view.examples) == {"domain", "general"}
    for name, texts in view.examples.items():
        whole = (corpora / f"{name}.txt").read_text()
        assert texts and all(text in whole for text in texts), "a text is not of the set"


def test_a_checkpoint_shows_the_pictures_of_its_run(whole_copy):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the plots extra has it)")
    (whole_copy / "loss.png").write_bytes(PNG + b"loss")
    (whole_copy / "best").mkdir(exist_ok=True)
    (whole_copy / "best" / "interpolation.png").write_bytes(PNG + b"between")
    for folder in (whole_copy, whole_copy / "checkpoint-8"):
        view = view_run(str(folder))
        assert [data for _, data in view.pictures[1:]] == [PNG + b"loss", PNG + b"between"]
        assert view.pictures[0][0].startswith("Plan") and view.pictures[0][1].startswith(PNG)
    assert "8 of 12" in words(view)


def test_a_model_alone_and_data_that_is_gone_show_less(whole_copy, adapted_models, tmp_path):
    assert view_run(str(tmp_path / "nowhere")) is None
    alone = view_run(str(adapted_models / "base"))
    assert not alone.pictures and not alone.examples and "MyPTForCausalLM" in words(alone)
    recipe = whole_copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("corpora", "elsewhere"))
    assert view_run(str(whole_copy)).examples == {}
    shutil.rmtree(whole_copy / "checkpoint-12")
    (whole_copy / "coverage.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"coverage\.json"):
        view_run(str(whole_copy))
