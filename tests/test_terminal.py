"""Nothing fails where the standard streams are not those of a terminal."""

import ast
import io
import json
import logging
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest

import mypt
from mypt.cli.main import build_parser, main
from mypt.terminal import (
    is_terminal,
    one_line,
    print_table,
    progress_bar,
    say,
    say_json,
    usable_streams,
    visible,
    visible_libraries,
    write,
)

# A title that a terminal would take, a bell, C1, the direction of writing, rich's markup, a byte that is not UTF-8.
HOSTILE = "a\x1b]0;title\x07\x9b31m\u202eb\u2066[red]c[/red]\udce9\r\n"
SHOWN = r"a\x1b]0;title\x07\x9b31m\u202eb\u2066[red]c[/red]\udce9\r\n"


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


def test_what_a_terminal_obeys_is_shown_and_all_other_text_stays():
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        obeyed = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"
        )  # fmt: skip
        if char not in "\n\t" and obeyed:
            assert visible(char).isascii() and visible(char).startswith("\\"), hex(code)
        elif unicodedata.category(char) not in ("Cf", "Cn"):
            assert visible(char) == char
    text = "Größe \u200d 👩\u200d🚀 שלום \u200c नमस्ते\t1\n2"
    assert visible(text) == text
    assert one_line(HOSTILE) == SHOWN


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ascii_stream():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal, ascii_stream])
def test_lines_tables_and_json_hold_no_control_characters(monkeypatch, stream):
    out, err = stream(), stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    say(f"1 {one_line(HOSTILE)}é")
    say(HOSTILE, error=True)
    print_table(HOSTILE, ["name", "n"], [[HOSTILE, 1], ["日本", 22]])
    say_json({HOSTILE: ["é", "\U000e0041"]})
    printed = [s.buffer.getvalue().decode("ascii") if stream is ascii_stream else s.getvalue() for s in (out, err)]
    for part in printed:
        assert visible(part.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[3m", "")) == part.replace(
            "\x1b[1m", ""
        ).replace("\x1b[0m", "").replace("\x1b[3m", "")
        assert SHOWN.removesuffix(r"\n") in part.replace("\n", "").replace(" ", "") or stream is Terminal
    assert json.loads(printed[0][printed[0].rindex("{") :]) == {HOSTILE: ["é", "\U000e0041"]}
    if stream is io.StringIO:
        first, second = printed[0].splitlines()[3:5]
        assert first.endswith(" 1") and len(first) == len(second) + 2 and second.endswith("22")  # 日本 takes four cells


def test_text_of_a_model_is_exact_in_a_pipe_and_shown_on_a_terminal(monkeypatch):
    for stream, expected in ((io.StringIO(), "a\x1b[2Jb\n\t"), (Terminal(), "a\\x1b[2Jb\n\t")):
        monkeypatch.setattr(sys, "stdout", stream)
        write("a\x1b[2Jb\n\t")
        assert stream.getvalue() == expected


def test_what_libraries_and_argparse_print_is_visible(capsys, monkeypatch):
    form = warnings.formatwarning
    logger = logging.getLogger("a library's")
    handler = logging.StreamHandler(sys.stderr)
    with visible_libraries():
        logger.addHandler(handler)
        logger.warning("found %s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("failed")
        sys.stderr.write(warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "file", 1, ""))
    logger.removeHandler(handler)
    with pytest.raises(SystemExit):
        build_parser().parse_args(["presets", "--json", f"--{HOSTILE}"])
    printed = capsys.readouterr().err
    assert printed.count(SHOWN.removesuffix(r"\n")) == 4 and visible(printed) == printed
    assert warnings.formatwarning is form


TRACEBACKS = """
import sys, threading, warnings
from mypt.preparation.prepare_run import run_in_order
from mypt.terminal import show_tracebacks
class Broken:
    def __del__(self):
        raise ValueError(sys.argv[1])
def fail():
    raise ValueError(sys.argv[1])
if __name__ == "__main__":
    show_tracebacks()
    list(run_in_order(warnings.warn, [(sys.argv[1],)], 2))
    for target in (fail, sys.exit):
        thread = threading.Thread(target=target, name=target.__name__)
        thread.start()
        thread.join()
    Broken()
    fail()
"""


def test_tracebacks_of_threads_finalizers_and_workers_are_visible(tmp_path):
    (tmp_path / "script.py").write_text(TRACEBACKS)
    words = [sys.executable, str(tmp_path / "script.py"), HOSTILE]
    done = subprocess.run(words, capture_output=True, text=True, errors="surrogateescape")
    assert visible(done.stderr) == done.stderr and done.stderr.count(SHOWN.removesuffix(r"\n")) == 4, done.stderr
    for title in ("UserWarning: ", "Exception in thread fail:", "Exception ignored in: <function Broken"):
        assert done.stderr.count(title) == 1, done.stderr
    assert done.returncode == 1 and "thread exit" not in done.stderr


def test_each_line_said_is_one_line(capsys):
    say("a.bin\nok: 0.0 MB\tb", "", "c")
    say()
    assert capsys.readouterr().out == "a.bin\\nok: 0.0 MB\tb\n\nc\n\n"


def test_a_progress_bar_shows_its_label(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(desc=HOSTILE, total=1):
        pass
    assert SHOWN in sys.stderr.getvalue() and "\x07" not in sys.stderr.getvalue()


def test_nothing_else_in_the_package_prints():
    for path in Path(mypt.__file__).parent.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                words = ast.unparse(node.func)
                assert words not in ("print", "sys.stdout.write", "sys.stderr.write"), f"{path}:{node.lineno}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search("(import|from) (rich|tqdm)", ast.unparse(node)), f"{path}:{node.lineno}"


def test_an_error_names_a_path_in_one_visible_line(capsys):
    assert main(["inspect", HOSTILE]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"mypt inspect: {SHOWN} does not exist") and printed.count("\n") == 1
