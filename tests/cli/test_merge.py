"""`mypt merge` says how equal the merged model is, in words or JSON, and refuses in one line."""

import json

from mypt.cli.main import main
from tests.checkpoints.test_adapter import adapter, base  # noqa: F401


def test_the_report(base, adapter, tmp_path, capsys):  # noqa: F811
    assert main(["merge", str(adapter), "--out", str(tmp_path / "merged")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{adapter} merged into {base}"
    assert lines[1].startswith("MyPTForCausalLM, ") and lines[1].endswith(f"float32: {tmp_path / 'merged'}")
    assert lines[2].startswith("largest difference of a logit: ")


def test_json(adapter, base, tmp_path, capsys):  # noqa: F811
    base.rename(tmp_path / "moved")
    words = ["merge", str(adapter), "--out", str(tmp_path / "merged"), "--base", str(tmp_path / "moved"), "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["base"] == str(tmp_path / "moved") and report["difference"] <= 1e-5 * report["largest_logit"]


def test_refusals_are_one_line(base, tmp_path, capsys):  # noqa: F811
    assert main(["merge", str(base), "--out", str(tmp_path / "merged")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
