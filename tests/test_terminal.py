"""Nothing fails where the standard streams are not those of a terminal."""

import io
import sys

import pytest

from mypt.cli.main import main
from mypt.terminal import is_terminal, progress_bar, say, usable_streams


class Writer:
    """All that some services have: an object with `write`."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.mark.parametrize("stream", [None, Writer(), io.StringIO(), object()])
def test_what_cannot_tell_is_no_terminal(stream):
    assert is_terminal(stream) is False
    closed = io.StringIO()
    closed.close()
    assert is_terminal(closed) is False


def test_lines_come_through_a_writer_and_are_dropped_without_one(monkeypatch):
    writer = Writer()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, writer)
    say("one")
    say("two", error=True)
    with progress_bar(total=3) as bar:
        bar.update()
    assert writer.text == "one\ntwo\n"
    monkeypatch.setattr(sys, "stderr", None)
    say("lost", error=True)  # and not on standard output
    assert writer.text == "one\ntwo\n"


def test_streams_are_whole_inside_and_as_they_were_after(monkeypatch):
    writer = Writer()
    monkeypatch.setattr(sys, "stdout", writer)
    monkeypatch.setattr(sys, "stderr", None)
    with usable_streams():
        print("text", flush=True)
        print("lost", file=sys.stderr, flush=True)
        assert not sys.stdout.isatty() and not sys.stderr.isatty()
    assert (sys.stdout, sys.stderr) == (writer, None)
    assert writer.text == "text\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    (root / "text.txt").write_text("\n\n".join(f"Document {n} of the king of {n * 7} lands." for n in range(200)))
    sizes = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 16"
    (root / "recipe.yaml").write_text(
        f"model: {{preset: modern-nano, {sizes}, intermediate_size: 16}}\n"
        f"data: {{train: {root / 'data'}, block_size: 16}}\n"
        f"training: {{output_dir: {root / 'run'}, max_steps: 2, eval_steps: 1, save_steps: 2, "
        "logging_steps: 1, per_device_train_batch_size: 2}\n"
    )
    return root


@pytest.mark.parametrize("kind", ["none", "writer", "writer without standard error"])
def test_every_command_runs_without_whole_streams(kind, folder, monkeypatch):
    writer = None if kind == "none" else Writer()
    monkeypatch.setattr(sys, "stdout", writer)
    monkeypatch.setattr(sys, "stderr", Writer() if kind == "writer" else None)
    monkeypatch.setattr(sys, "stdin", None)
    data, run = str(folder / "data"), str(folder / "run")
    prepare = ["prepare", "--source", str(folder / "text.txt"), "--out", data, "--tokenizer", "char"]
    commands = [
        [*prepare, "--document", "block"],
        ["plan", str(folder / "recipe.yaml")],
        ["train", str(folder / "recipe.yaml"), "--resume"],
        ["generate", run, "--prompt", "The", "--max-new-tokens", "2", "--seed", "1"],
        ["evaluate", run, "--data", f"data={data}"],
    ]
    for command in commands:
        if writer:
            writer.text = ""
        assert main(command) == 0
        assert writer is None or writer.text
    assert main(["generate", run, "--chat"]) == main(["generate", run, "--prompt", "-"]) == 2
