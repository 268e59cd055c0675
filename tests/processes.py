"""Real processes that start at once: forked from a server that has imported the package already.

Importing torch and transformers takes a new interpreter seconds. A forked process is otherwise like a started one: it
has a pid, a process group, standard streams, signals and an exit code of its own.
"""

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.hub import hub_constants

ROOT = Path(__file__).parents[1]
WAIT = 300  # seconds after which a process counts as hanging

_printed = tempfile.TemporaryDirectory()
_numbers = itertools.count()
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["mypt.cli.main", "mypt.training.run", "mypt.training.model.lora", "datasets"])


class Command:
    """`mypt ARGUMENTS`, or a Python script with arguments, in a process group of its own.

    env: changes to the environment of the test; None for a variable that is not to be set. cwd: its folder, that of
    the test if None. apart: keep standard error apart from standard output. stdin: the file or terminal to read; a
    terminal becomes the controlling one. fresh: start an interpreter, which reads /dev/null.
    Curves are drawn, and reports written, where the test draws curves.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        script=None,
        env=None,
        cwd=None,
        apart=False,
        stdin=os.devnull,
        fresh=False,
    ):
        words, cwd = [str(word) for word in arguments], os.getcwd() if cwd is None else str(cwd)
        environment = {key: value for key, value in {**os.environ, **(env or {})}.items() if value is not None}
        number = next(_numbers)
        self._files = [Path(_printed.name, f"{number}.{stream}") for stream in ("out", "err")[: 1 + apart]]
        for file in self._files:
            file.touch()
        if fresh:
            program = [str(script)] if script else ["-m", "mypt"]
            self._process = subprocess.Popen(
                [sys.executable, *program, *words], stdin=subprocess.DEVNULL, stdout=_appending(self._files[0]),
                stderr=_appending(self._files[-1]), env=environment, cwd=cwd, process_group=0,
            )  # fmt: skip
        else:
            plots = sys.modules.get("matplotlib.figure", ...) is not None
            arguments = (words, script, cwd, environment, stdin, self._files, plots)
            self._process = _server.Process(target=_run, args=arguments)
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that killed it; None while it runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def wait(self) -> int:
        """As `poll`, when it has ended."""
        end = time.monotonic() + WAIT
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"process {self.pid} did not end: {self.output()}")
            time.sleep(0.005)
        return self.poll()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self.wait()

    def output(self) -> str:
        """What it has printed so far; with `apart`, on standard output."""
        return self._files[0].read_text(errors="replace")

    def errors(self) -> str:
        """What it has printed on standard error so far."""
        return self._files[-1].read_text(errors="replace")


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Draw no curves, as without the `plots` extra, and write no report.html: they are a half of a tiny run."""
    patch.setitem(sys.modules, "matplotlib.figure", None)
    patch.setattr("mypt.report.write.report_at_end", lambda run: contextlib.nullcontext())


def _appending(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND)


def _run(
    words: list[str],
    script: Path | None,
    folder: str,
    environment: dict,
    stdin: str | Path,
    files: list[Path],
    plots: bool,
) -> None:
    gc.freeze()  # as in conftest.py: what the server imported is in no garbage collection to come
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "HF_ENDPOINT" in environment:  # which the libraries have read when they were imported
        import datasets

        for name, value in hub_constants(environment["HF_ENDPOINT"], environment["HF_HOME"]).items():
            setattr(huggingface_hub.constants, name, value)
        huggingface_hub.constants.HF_TOKEN_PATH = str(Path(environment["HF_HOME"], "token"))
        datasets.config.HF_ENDPOINT = environment["HF_ENDPOINT"]
        datasets.config.HF_DATASETS_CACHE = str(Path(environment["HF_HOME"], "datasets"))
        datasets.config.HF_MODULES_CACHE = str(Path(environment["HF_HOME"], "modules"))
    if not plots:
        leave_out_pictures(pytest.MonkeyPatch())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # an interpreter's default here, for DataLoader workers
    for descriptor, file in ((1, files[0]), (2, files[-1])):
        os.dup2(_appending(file), descriptor)
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    if script is None:
        from mypt.cli.main import main

        sys.argv = ["mypt", *words]
        sys.exit(main(words))
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(str(script), run_name="__main__")


# Runs programs, one a line of standard input, each in a fork of its own.
_BARE = """
import gc, json, os, sys, traceback
import torch, torch.distributed.tensor, torch._dynamo, tokenizers, safetensors.torch
assert not {"transformers", "huggingface_hub", "mypt"} & {*sys.modules}
gc.freeze()
for line in sys.stdin:
    program = json.loads(line)
    if os.fork() == 0:
        os.chdir(program["cwd"])
        os.environ.clear()
        os.environ.update(program["env"])
        sys.argv = ["-c", *program["arguments"]]
        sys.path[0] = ""
        for descriptor, file in ((1, program["out"]), (2, program["err"])):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        try:
            exec(compile(program["code"], "<program>", "exec"), {"__name__": "__main__"})
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) else 1
            if not isinstance(error, SystemExit):
                traceback.print_exc()
        else:
            code = 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(status, flush=True)
"""
_bare: list[subprocess.Popen] = []


def bare_python(code: str, *arguments, cwd: Path | None = None, env: dict | None = None) -> subprocess.CompletedProcess:
    """What `python -c CODE ARGUMENTS` does where torch is imported already, but neither transformers nor mypt."""
    if not _bare:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _bare.append(subprocess.Popen([sys.executable, "-c", _BARE], **pipes))
    number = next(_numbers)
    files = {name: Path(_printed.name, f"{number}.{name}") for name in ("out", "err")}
    program = {"code": code, "arguments": arguments, "cwd": cwd or os.getcwd(), "env": env or dict(os.environ), **files}
    print(json.dumps(program, default=str), file=_bare[0].stdin, flush=True)
    status = int(_bare[0].stdout.readline())
    return subprocess.CompletedProcess(code, status, *(file.read_text() for file in files.values()))


def launch(config: str | Path, *arguments: str | Path, code: int = 0, script: Path | None = None) -> str:
    """What `accelerate launch --config_file CONFIG SCRIPT ARGUMENTS` does, in forked processes.

    config: a file, or the name of one in recipes/accelerate. script: scripts/train.py if it is None. Returns what all
    processes printed; fails unless they all end with 0, or one does not if `code` is not 0.
    """
    script = script or ROOT / "scripts" / "train.py"
    options = ["--config_file", str(ROOT / "recipes" / "accelerate" / config), str(script)]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    size = int(parsed.num_processes)
    shared = prepare_multi_gpu_env(parsed) | {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "OMP_NUM_THREADS": 1}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    processes = [
        Command(arguments, script=script, env={name: str(value) for name, value in rank.items()}) for rank in ranks
    ]
    codes = [process.wait() for process in processes]
    printed = "".join(process.output() for process in processes)
    assert any(codes) == bool(code), f"exit codes {codes}: {printed}"
    return printed


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
