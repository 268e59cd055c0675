"""`mypt download` from the command line: what came, and what it is."""

import json

import pytest

from mypt.cli.main import main
from tests.cli.test_upload import model  # noqa: F401


@pytest.fixture
def stored(model, logged_in):  # noqa: F811
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    logged_in.models["me/tiny"] = {"main": files}
    return "hf://me/tiny"


def test_it_says_what_the_model_is(stored, logged_in, tmp_path, capsys):
    assert main(["download", stored, str(tmp_path / "tiny")]) == 0
    printed = capsys.readouterr().out
    assert "architecture  MyPTForCausalLM (mypt)" in printed and "1 layers, 2 heads, width 16" in printed
    assert f"commit        {logged_in.commit('me/tiny', 'main')}" in printed
    assert "left on the hub: optimizer.pt" in printed
    assert main(["inspect", str(tmp_path / "tiny")]) == 0


def test_json(stored, tmp_path, capsys):
    assert main(["download", stored, str(tmp_path / "tiny"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == {path.name: path.stat().st_size for path in (tmp_path / "tiny").iterdir()}
    assert report["left_out"] == ["optimizer.pt"] and report["model"]["context"] == "1,024 tokens"


def test_bad_input_is_one_line_and_exit_2(stored, tmp_path, capsys):
    for uri, words in {"ftp://a/b": "give hf://user/name", "hf://me/none": "no such model that you may read"}.items():
        assert main(["download", uri, str(tmp_path / "tiny")]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
