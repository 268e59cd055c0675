"""The ledger is exact and survives a resume; below one pass the question is asked once, and never waits for nobody."""

import json
import os
import pty
import select
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from mypt.checkpoints.lineage import find_lineage, write_lineage
from mypt.errors import CheckFailed
from mypt.streams.ledger import Ledger, Source
from mypt.training.callbacks.coverage import CoverageCallback
from tests.processes import Command

WINDOWS = (3_000 - 16) // 16
QUESTION = "Continue anyway? (y/n)"


def coverage_of(stream, **options) -> CoverageCallback:
    return CoverageCallback(stream, **options)


def saved(run: Path, step: int) -> dict:
    state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["CoverageCallback"]["attributes"]


def test_a_run_is_accounted_for_to_the_sample(stream, make_trainer, tmp_path, capsys):
    callback = coverage_of(stream)
    trainer = make_trainer([callback], max_steps=5, gradient_accumulation_steps=2)
    trainer.train()
    assert callback.next_sample == 5 * 4 * 2
    [seen] = callback.ledger()
    assert seen == {"name": str(stream.sources[0].name), "samples": 40, "tokens": 640, "epochs": 40 / WINDOWS,
                    "coverage": 640 / 3_000, "estimated": False}  # fmt: skip
    assert trainer.state.epoch == 40 / WINDOWS
    assert saved(tmp_path / "run", 3)["next_sample"] == 24
    report = json.loads((tmp_path / "run" / "coverage.json").read_text())
    assert (report["step"], report["next_sample"], report["seen"], report["events"]) == (5, 40, [seen], [])
    printed = capsys.readouterr().out
    assert printed.count("Dataset coverage") == 1 and "0.21x" in printed and "640" in printed


def test_a_resume_goes_on_counting_and_records_what_changed(stream, make_trainer, tmp_path, capsys):
    make_trainer([coverage_of(stream)], max_steps=3).train()
    capsys.readouterr()
    again = coverage_of(stream)
    changed = {"per_device_train_batch_size": 8, "learning_rate": 5e-4, "max_steps": 5}
    make_trainer([again], **changed).train(resume_from_checkpoint=True)
    assert again.next_sample == 3 * 4 + 2 * 8
    assert again.events == [
        {
            "sample": 12,
            "step": 3,
            "changes": {"max_steps": [3, 5], "learning_rate": [1e-3, 5e-4], "per_device_train_batch_size": [4, 8]},
        }
    ]
    printed = capsys.readouterr().out
    assert "changed from step 3 on: learning_rate 0.001 -> 0.0005" in printed
    assert "from step 3: 2 left" in printed
    assert json.loads((tmp_path / "run" / "coverage.json").read_text())["events"] == again.events

    third = coverage_of(stream)
    make_trainer([third], **changed | {"max_steps": 6}).train(resume_from_checkpoint=True)
    assert (third.next_sample, [event["step"] for event in third.events]) == (36, [3, 5])


def test_the_schedule_is_named_in_words(stream, make_trainer):
    make_trainer([coverage_of(stream)], max_steps=3).train()
    callback = coverage_of(stream)
    make_trainer([callback], max_steps=4, lr_scheduler_type="linear").train(resume_from_checkpoint=True)
    assert callback.events[0]["changes"]["schedule"] == ["constant {}", "linear {}"]


def test_the_same_object_starts_anew_and_joins_a_run_that_did_without_it(stream, make_trainer):
    callback = coverage_of(stream)
    trainer = make_trainer([callback], max_steps=2)
    for _ in range(2):
        trainer.train()
        assert (callback.next_sample, callback.events) == (8, [])
    make_trainer([], max_steps=3).train()
    late = coverage_of(stream)
    make_trainer([late], max_steps=4).train(resume_from_checkpoint=True)
    assert (late.next_sample, late.events) == (16, [])


def test_a_run_counts_on_from_what_its_start_model_saw(stream, make_trainer, tmp_path, capsys):
    """In a stock Trainer; and text that the start model has seen whole is not asked about."""
    make_trainer([coverage_of(stream)], max_steps=3).train()
    first = tmp_path / "first"
    (tmp_path / "run" / "checkpoint-3").rename(first)
    again = coverage_of(stream, init_from=first)
    make_trainer([again], max_steps=2, save_steps=2).train()
    assert "0.06x (192 tokens)" in capsys.readouterr().out
    found = find_lineage(tmp_path / "run" / "checkpoint-2")
    assert [(source["samples"], source["tokens"]) for source in found["seen"]] == [(12 + 8, 20 * 16)]
    assert ([run["step"] for run in found["runs"]], again.ledger()[0]["samples"]) == ([3, 2], 8)
    with pytest.raises(CheckFailed):
        begin(coverage_of(stream, strict=True, init_from=first))
    found["seen"][0]["tokens"] = 3_000 - 2 * 8 * 16
    write_lineage(first, found)
    begin(coverage_of(stream, strict=True, init_from=first))


def test_the_ledger_of_a_mixture_is_that_of_the_planner():
    sources = [Source("domain", 50_000, 0.9), Source("general", 9_000, 0.1)]
    callback = CoverageCallback(Ledger(sources, 16))
    callback.next_sample = 12_345
    assert callback.ledger() == [vars(seen) for seen in Ledger(sources, 16).seen(12_345)]
    assert sum(seen["samples"] for seen in callback.ledger()) == 12_345


# ---- below one pass ----


def begin(callback: CoverageCallback, **arguments) -> None:
    """What Trainer does before the first step of a run that sees 2 x 8 x 16 of 3,000 tokens."""
    args = TrainingArguments(output_dir="unused", max_steps=2, use_cpu=True, report_to="none", **arguments)
    state = TrainerState(max_steps=2, stateful_callbacks=[callback], is_world_process_zero=args.process_index == 0)
    callback.on_train_begin(args, state, TrainerControl())


def verdict_of(callback: CoverageCallback, stdin: int | None, output: int, **arguments) -> None:
    """In a forked child: begin with these descriptors, exit with 0 (went on) or 1 (refused)."""
    os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
    sys.stdin = os.fdopen(0, closefd=False)
    if stdin is None:
        sys.stdin.close()
    sys.stdout = os.fdopen(output, "w")
    try:
        begin(callback, **arguments)
        code = 0
    except CheckFailed as error:
        print(error)
        code = 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
        code = 3
    sys.stdout.flush()
    os._exit(code)


def finish(pid: int, source: int, seconds: float = 120) -> tuple[int, str]:
    """Exit code and output of a child; a child that blocks fails the test."""
    deadline, text = time.monotonic() + seconds, b""
    while time.monotonic() < deadline:
        if select.select([source], [], [], 0.05)[0]:
            try:
                piece = os.read(source, 4_096)
            except OSError:  # the pseudo-terminal's other end is closed
                piece = b""
            text += piece
            if piece:
                continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), text.decode()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"it waits for an answer: {text.decode()[-200:]}")


def ask(callback: CoverageCallback, stdin: int | None) -> tuple[int, str]:
    output, child_output = os.pipe()
    pid = os.fork()
    if pid == 0:
        verdict_of(callback, stdin, child_output)
    os.close(child_output)
    return finish(pid, output)


def pipe_with(text: bytes, keep_open: bool = False) -> int:
    reader, writer = os.pipe()
    os.write(writer, text)
    if not keep_open:
        os.close(writer)
    return reader


@pytest.mark.parametrize(("answer", "code"), [(b"y", 0), (b"YES", 0), (b"n", 1), (b"", 1), (b"what?", 1), (b"\x04", 1)])
def test_on_a_terminal_it_asks(stream, answer, code):
    callback = coverage_of(stream)
    pid, terminal = pty.fork()
    if pid == 0:
        verdict_of(callback, 0, 1)
    text = b""
    while QUESTION.encode() not in text:
        assert select.select([terminal], [], [], 20)[0], text
        text += os.read(terminal, 4_096)
    os.write(terminal, answer if answer == b"\x04" else answer + b"\n")
    got, rest = finish(pid, terminal)
    assert got == code, rest
    assert "0.09x" in text.decode(), "the report comes before the question"
    assert ("nothing was trained" in rest) == (code == 1)


def test_in_the_background_of_a_terminal_it_does_not_ask(stream):
    callback = coverage_of(stream)
    output, child_output = os.pipe()
    pid, _ = pty.fork()
    if pid == 0:
        if (job := os.fork()) == 0:
            os.setpgid(0, 0)
            verdict_of(callback, 0, child_output)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(job, os.WUNTRACED)[1]))
    os.close(child_output)
    code, text = finish(pid, output)
    assert code == 0 and "continuing" in text


@pytest.mark.parametrize(
    ("piped", "code"), [(b"y\n", 0), (b"y", 0), (b"yes\nmore\n", 0), (b"n\n", 1), (b"\n", 1), (b"", 0)]
)
@pytest.mark.parametrize("keep_open", [False, True])
def test_a_piped_answer_is_taken_and_a_silent_pipe_never_waited_for(stream, piped, code, keep_open):
    got, text = ask(coverage_of(stream), pipe_with(piped, keep_open))
    assert got == code, text
    assert ("continuing" in text) == (piped == b"")


@pytest.mark.parametrize("stdin", ["empty", "not for reading, as nohup leaves it", "closed"])
def test_without_anybody_to_ask_it_goes_on(stream, stdin):
    descriptor = None
    if stdin != "closed":
        descriptor = os.open(os.devnull, os.O_RDONLY if stdin == "empty" else os.O_WRONLY)
    code, text = ask(coverage_of(stream), descriptor)
    assert code == 0 and "continuing" in text, text


def test_strict_refuses_and_confirm_and_yes_skip_the_question(stream):
    no = pipe_with(b"n\n" * 10, keep_open=True)
    assert ask(coverage_of(stream, confirm=False), no)[0] == 0
    assert ask(coverage_of(stream, assume_yes=True), no)[0] == 0
    for options in ({}, {"confirm": False}, {"assume_yes": True}):
        code, text = ask(coverage_of(stream, strict=True, **options), pipe_with(b"y\n"))
        assert code == 1 and "raise training.max_steps" in text


def test_from_one_pass_on_nothing_is_asked():
    callback = CoverageCallback(Ledger([Source("small", 250, 1.0)], 16), strict=True)
    code, text = ask(callback, pipe_with(b"n\n"))
    assert code == 0 and "1.02x" in text


def test_of_two_processes_only_the_first_asks_and_both_obey(stream, tmp_path):
    from accelerate.state import AcceleratorState, PartialState

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stdin = {0: pipe_with(b"n\n"), 1: pipe_with(b"y\n")}
    children = {}
    for rank in (0, 1):
        output, child_output = os.pipe()
        pid = os.fork()
        if pid == 0:
            PartialState._reset_state()
            AcceleratorState._reset_state()
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            verdict_of(coverage_of(stream), stdin[rank], child_output)
        os.close(child_output)
        children[rank] = pid, output
    results = {rank: finish(pid, output) for rank, (pid, output) in children.items()}
    assert [results[rank][0] for rank in (0, 1)] == [1, 1], results
    assert "Dataset coverage" in results[0][1] and "Dataset coverage" not in results[1][1]


def test_no_on_a_terminal_ends_the_command_with_1(tmp_path):
    text = " ".join(f"word{i % 97} and {i * i % 89}" for i in range(3_000))
    (tmp_path / "text.txt").write_text(text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{preset: modern-nano, num_hidden_layers: 1, max_position_embeddings: 32}}\n"
        f"tokenizer: {{name: char}}\ndata: {{train: {tmp_path / 'text.txt'}, block_size: 32}}\n"
        f"training: {{output_dir: {tmp_path / 'run'}, max_steps: 2, per_device_train_batch_size: 2}}\n"
    )
    ours, theirs = pty.openpty()
    process = Command(["train", recipe], apart=True, stdin=os.ttyname(theirs))
    os.write(ours, b"n\n")
    code, out, err = process.wait(), process.output(), process.errors()
    assert code == 1, out + err
    assert QUESTION in out and "nothing was trained" in err and "Traceback" not in err
    assert not list((tmp_path / "run").glob("checkpoint-*"))
