"""evaluate.load of a local folder gives the figures of `mypt evaluate`, without a network."""

import json
import sys
from pathlib import Path

import mypt
from mypt.cli.main import main

METRICS = Path(mypt.__file__).parent / "metrics"


def test_a_metric_is_what_the_command_prints(untrained_models, tmp_path, monkeypatch, capsys):
    import evaluate

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    texts = ["The first document, of a few words.", "Another:\nof two lines.", "\u00e9"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = str(untrained_models / "first")
    printed = {}
    for definition, options in (("windows", []), ("rolling", ["--rolling"])):
        command = ["evaluate", model, "--data", f"x={file}", "--out", str(tmp_path / "out.json"), "--json", *options]
        assert main(command) == 0
        (printed[definition],) = json.loads(capsys.readouterr().out)
    for name in ("bits_per_byte", "perplexity"):
        metric = evaluate.load(str(METRICS / name), cache_dir=str(tmp_path / "cache"))
        for definition, row in printed.items():
            found = metric.compute(predictions=texts, model_id=model, definition=definition)
            assert found == {key: row[key] for key in found}
            assert found[name] > 0 and found["definition"] == definition
            assert found["bytes"] == sum(len(text.encode()) for text in texts)
