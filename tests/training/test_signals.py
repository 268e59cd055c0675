"""A signal finishes the step, saves and ends; going on from there is the uninterrupted run. Real signals throughout."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainerCallback

from mypt.checkpoints.complete import what_is_missing
from mypt.errors import Interrupted
from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer
from mypt.training.run import finish, train
from mypt.training.stability.signals import SIGNALS, SignalCallback, Unread
from tests.processes import Command


class Sender(TrainerCallback):
    """Sends this process signals at one event of one step."""

    def __init__(self, event: str, step: int, *numbers: int):
        self.step, self.numbers = step, numbers
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def handlers():
    return lambda: [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(autouse=True)
def hangups_are_received():
    """As in a terminal: under `nohup` every process begins with SIGHUP ignored, and a run leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def interrupted(content: dict, sender: Sender) -> Interrupted:
    trainer = build_trainer(parse_recipe(content))
    trainer.add_callback(sender)
    with pytest.raises(Interrupted) as raised:
        finish(trainer)
    result = json.loads(Path(trainer.args.output_dir, "result.json").read_text())
    name = signal.Signals(raised.value.exit_code - 128).name
    assert (result["state"], result["reason"]) == ("interrupted", name)
    assert (result["exit_code"], result["step"]) == (raised.value.exit_code, trainer.state.global_step)
    return raised.value


def test_wherever_a_signal_comes_the_run_goes_on_as_if_it_had_not(recipe_for, weights, tmp_path, handlers, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    content = recipe_for()
    whole, before = train(parse_recipe(content)), handlers()
    moments = [
        (signal.SIGTERM, "on_step_begin", 5, 6),  # in a step: it is finished
        (signal.SIGINT, "on_train_begin", 0, 1),  # before the first step
        (signal.SIGUSR1, "on_evaluate", 4, 5),  # evaluating at a step that is saved
        (signal.SIGHUP, "on_save", 8, 9),
    ]
    for number, event, sent_at, saved_at in moments:
        run = tmp_path / event
        content["training"]["output_dir"] = str(run)
        error = interrupted(content, Sender(event, sent_at, number))
        assert error.exit_code == 128 + number
        assert f"stopped by {number.name} after step {saved_at} of 12" in str(error)
        assert f"checkpoint-{saved_at}: run the same command with --resume" in str(error)
        assert what_is_missing(run / f"checkpoint-{saved_at}") is None
        assert not (run / "model.safetensors").exists(), "a run that is not over publishes nothing"
        assert handlers() == before
        train(parse_recipe(content), resume=True)
        left, right = weights(whole), weights(run)
        assert all(torch.equal(left[name], right[name]) for name in left), event
        for name in ("coverage.json", "forgetting.json"):
            assert json.loads((whole / name).read_text()) == json.loads((run / name).read_text()), event


def test_a_signal_in_the_last_step_changes_nothing(recipe_for):
    trainer = build_trainer(parse_recipe(recipe_for()))
    trainer.add_callback(Sender("on_step_begin", 11, signal.SIGTERM))
    assert (finish(trainer) / "model.safetensors").is_file()


def test_a_second_interrupt_stops_at_once(recipe_for, handlers):
    trainer, before = build_trainer(parse_recipe(recipe_for())), handlers()
    trainer.add_callback(Sender("on_step_begin", 5, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        finish(trainer)
    assert trainer.state.global_step == 5
    assert handlers() == before


def test_handlers_of_the_main_thread_only_and_none_that_is_ignored(handlers):
    before, seen = handlers(), []

    def elsewhere():
        with SignalCallback():
            seen.append(handlers())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
    for number in (signal.SIGINT, signal.SIGHUP):  # a shell's background job, nohup
        old = signal.signal(number, signal.SIG_IGN)
        try:
            with SignalCallback() as callback:
                assert signal.getsignal(number) == signal.SIG_IGN
                assert signal.getsignal(signal.SIGTERM) == callback._receive
            assert signal.getsignal(number) == signal.SIG_IGN
        finally:
            signal.signal(number, old)


def test_what_is_written_to_a_terminal_or_a_pipe_that_is_gone_is_dropped():
    terminal, pipe = os.openpty(), os.pipe()
    for read_end, write_end in (terminal, pipe):
        with os.fdopen(write_end, "w") as file:
            stream = Unread(file)
            stream.write("read\n")
            stream.flush()
            assert os.read(read_end, 10).split() == [b"read"]
            os.close(read_end)
            for _ in range(2):
                print("x" * 100_000, file=stream, flush=True)
            assert stream.fileno() == write_end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_one_line_and_the_schedulers_exit_code(recipe_for, tmp_path, number):
    content = recipe_for()
    content["training"] |= {"max_steps": 100_000, "eval_steps": 100_000, "save_steps": 100_000, "logging_steps": 1}
    content["training"]["torch_compile"] = False  # which so many steps would be worth, and takes a minute
    content["training"]["dataloader_num_workers"] = 1  # which gets the signal, too
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    process = Command(["train", recipe], apart=True)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.005)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C, and a scheduler
    assert process.wait() == 128 + number, process.errors()
    (line,) = process.errors().splitlines()
    assert line.startswith(f"mypt train: stopped by {number.name} after step")
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert str(checkpoint) in line and what_is_missing(checkpoint) is None
