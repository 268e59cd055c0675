"""Plain lines in a pipe, one bar on a terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios

from transformers import TrainerControl, TrainerState, TrainingArguments

from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.callbacks.progress import ProgressBarCallback, log_line
from mypt.training.callbacks.throughput import ThroughputCallback

LINE = re.compile(r"step (\d+)/4: loss (\d\.\d{3}), lr 1\.00e-03, (\d\.\d\d)x(?:, ([\d,]+) tokens/s, \d+\.\d% MFU.*)?")
NUMBERS = {"throughput/tokens_per_second": 12_345.6, "throughput/mfu": 0.3142, "throughput/eta_seconds": 125.0}


def test_plain_lines_when_piped(stream, make_trainer, capfd):
    coverage = CoverageCallback(stream, confirm=False)
    callbacks = [coverage, ThroughputCallback(16), ProgressBarCallback()]
    make_trainer(callbacks, max_steps=4, logging_steps=2, save_strategy="no").train()
    captured = capfd.readouterr()
    found = [LINE.fullmatch(line) for line in captured.out.splitlines() if line.startswith("step")]
    assert [match[1] for match in found] == ["2", "4"]
    assert [match[3] for match in found] == [f"{4 * step / 186:.2f}" for step in (2, 4)]
    assert all(int(match[4].replace(",", "")) > 0 for match in found)
    assert "\r" not in captured.out + captured.err and "%|" not in captured.err


def begin_to_end(steps: int) -> None:
    args = TrainingArguments(output_dir="unused", max_steps=steps, use_cpu=True, report_to="none")
    state, control, callback = TrainerState(max_steps=steps, epoch=0.5), TrainerControl(), ProgressBarCallback()
    callback.on_train_begin(args, state, control)
    for step in range(1, steps + 1):
        state.global_step = step
        callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs={"loss": 1.25, "learning_rate": 1e-3} | NUMBERS)
        callback.on_evaluate(args, state, control)
    callback.on_log(args, state, control, logs={"train_loss": 1.0})
    callback.on_train_end(args, state, control)


def test_a_bar_on_a_terminal():
    pid, terminal = pty.fork()
    if pid == 0:
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        begin_to_end(3)
        sys.stderr.flush()
        os._exit(0)
    text = b""
    while select.select([terminal], [], [], 10)[0]:
        try:
            text += os.read(terminal, 4_096)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shown = text.decode()
    assert "3/3" in shown and "\r" in shown
    assert "loss 1.250, lr 1.00e-03, 0.50x, 12,346 tokens/s, 31.4% MFU, 2 min 5 s left]" in shown
    assert "step 1/3" not in shown


def test_a_line_of_what_there_is():
    logs = {"loss": 1.25, "learning_rate": 1e-3}
    assert log_line(logs, None) == "loss 1.250, lr 1.00e-03"
    assert log_line(logs | {"throughput/eta_seconds": 0.4}, 1.5) == "loss 1.250, lr 1.00e-03, 1.50x"


def test_only_the_main_process_shows_progress(capfd):
    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    state = TrainerState(max_steps=2, is_world_process_zero=False)
    callback, control = ProgressBarCallback(), TrainerControl()
    callback.on_train_begin(args, state, control)
    callback.on_step_end(args, state, control)
    callback.on_log(args, state, control, logs={"loss": 1.0, "learning_rate": 1.0})
    callback.on_train_end(args, state, control)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
