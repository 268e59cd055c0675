"""`mypt interpolate` prints the curve and the alpha that it chose, as a table or JSON, and refuses in one line."""

import json

from mypt.cli.main import main


def command(models, folder) -> list[str]:
    return ["interpolate", str(models / "base"), str(models / "adapted"), "--out", str(folder / "out")]


def test_a_table_and_a_line(adapted_models, corpora, tmp_path, capsys):
    words = [
        "interpolate",
        str(adapted_models / "base"),
        str(adapted_models / "adapted"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--guard", f"general={corpora / 'general'}", "--batch-size", "32"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].split() == ["alpha", "general"]
    assert lines[1].startswith("0.00 ") and lines[1].endswith("(+0.0000 +/- 0.0000, healthy)")
    assert lines[-2].startswith("1.00 ") and lines[-2].endswith("critical)")
    chosen = lines[-1].split()[1]
    assert lines[-1].endswith(f"{adapted_models / 'adapted'} (1): {tmp_path / 'out'}") and 0 < float(chosen) < 1
    assert f"alpha {float(chosen):.2f}: general" in output.err


def test_json_and_beyond(adapted_models, tmp_path, capsys):
    words = [
        "interpolate",
        str(adapted_models / "base"),
        str(adapted_models / "adapted"),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main([*words, "--alpha", "1.5", "--extrapolate"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["alpha"] == 1.5 and report["curve"] == []
    assert main([*words, "--alpha", "0.5"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_refusals_are_one_line(adapted_models, tmp_path, capsys):
    words = [
        "interpolate",
        str(adapted_models / "base"),
        str(adapted_models / "adapted"),
        "--out",
        str(tmp_path / "out"),
    ]
    for more, message in (
        (["--alpha", "2"], "--extrapolate allows"),
        (["--guard", "general"], "--guard general is not understood"),
        ([], "give either --alpha, or --guard"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
