"""The world of `scripts/faults.py`: commands in processes of their own, what they read, and a hub of the loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

LIMIT = 60  # seconds after which a command counts as hanging
MEMORY = 8 << 30  # bytes a command may allocate
TIMES = re.compile(r"time|seconds|MB/s|memory|tokens/s|docs/s")  # lines of a report that differ from run to run
# Files of a result that hold times, pictures or what other files say, or are copied from what the user gave.
UNCOMPARED = re.compile(
    r"/((incomplete-)?checkpoint-.*|environment\.json|result\.json|metrics\.jsonl|[^/]*\.png|report\.html|diagnosis\.json|recipe\.yaml"
    r"|speed\.json|prepare_report\.json|tokenizer_config\.json|generation_config\.json)$"
)
READ_KEYS = ("dtype", "eos_token_id", "tokenizer_hash", "splits")  # of a manifest: how tokens are read

MODEL = {"preset": "modern-nano", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODEL |= {"num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64}
TRAINING = {"max_steps": 6, "per_device_train_batch_size": 2, "save_steps": 2, "eval_steps": 2, "save_total_limit": 3}
RECIPE = {
    "model": MODEL,
    "data": {"train": "data", "block_size": 32},
    "coverage": {"confirm": False},
    "training": {"output_dir": "run", "use_cpu": True, "seed": 1} | TRAINING,
}
ADAPTER = RECIPE | {"model": {"init_from": "run"}, "lora": {"r": 2}}
ADAPTER["training"] = RECIPE["training"] | {"output_dir": "lora", "max_steps": 2}


@dataclass(frozen=True)
class Case:
    """One command: its words, the parts of the world that it reads, and the names that it may write."""

    words: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    again: tuple[str, ...] = ()  # added when the same command is run once more

    def __str__(self) -> str:
        return "mypt " + " ".join(self.words)


def case(command: str, reads: str, writes: str = "", again: str = "") -> Case:
    return Case(tuple(command.split()), tuple(reads.split()), tuple(writes.split()), tuple(again.split()))


PREPARE = "prepare --source text.txt --out new --vocab-size 384 --document block --tokens-per-shard 3000"
CASES = {
    "prepare": case(PREPARE, "text.txt", "new"),
    "prepare by two": case(PREPARE + " --workers 2", "text.txt", "new"),
    "prepare again": case("prepare --source more.jsonl --out new --tokenizer data", "more.jsonl data", "new"),
    "verify": case("verify data", "data"),
    "verify run": case("verify run", "run"),
    "append": case("append data --source more.jsonl", "data more.jsonl", "data"),
    "subset": case("subset data --out new --tokens 4000", "data", "new"),
    "tokenizer": case("tokenizer data", "data"),
    "new tokenizer": case("tokenizer --source text.txt --out new --vocab-size 384", "text.txt", "new"),
    "plan": case("plan recipe.yaml", "recipe.yaml data"),
    "plan run": case("plan run", "run"),
    "estimate": case("estimate run", "run"),
    "train": case("train recipe.yaml --training.output_dir=new", "recipe.yaml data", "new", "--resume"),
    "resume": case("train run --resume", "half data", "run"),
    "adapt": case("train lora.yaml --training.output_dir=new", "lora.yaml run data", "new", "--resume"),
    "evaluate": case("evaluate run --data d=data", "run data"),
    "generate": case("generate run --prompt The --greedy --max-new-tokens 8", "run"),
    "inspect": case("inspect run", "run"),
    "inspect adapter": case("inspect lora", "lora run"),
    "inspect data": case("inspect data", "data"),
    "export": case("export run --to qwen3 --out new", "run", "new"),
    "merge": case("merge lora --out new", "lora run", "new"),
    "use adapter": case("generate lora --prompt The --greedy --max-new-tokens 8", "lora run"),
    "convert": case("convert nano --dtype uint16 --out new", "nano", "new"),
    "download": case("download hf://me/run new", "", "new"),
    "hub model": case("generate me/run --prompt The --greedy --max-new-tokens 8", ""),
    "hub text": case("prepare --source hf://me/texts --out new --tokenizer char", "", "new"),
}


# ---- running commands ----


def import_all() -> None:
    """Import what commands do, once for all forks. No pictures are drawn, and a hub is asked again at once."""
    sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
    import datasets
    import torch
    from huggingface_hub.utils import _http as http

    import mypt.cli.main
    import mypt.conversion.export
    import mypt.conversion.merge
    import mypt.evaluation.compare
    import mypt.generation.engine
    import mypt.preparation.prepare
    import mypt.storage.hub
    import mypt.training.model.lora
    import mypt.training.run

    torch.set_num_threads(1)
    mypt.storage.hub.WAITS = (0, 0, 0)
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0  # seconds, 20 times
    http.time = SimpleNamespace(sleep=lambda seconds: None)


@dataclass
class Ended:
    """A command that ended. code: minus the signal's number if one ended it, None if its time was over."""

    code: int | None
    out: str
    err: str


def start(words: Sequence[str], folder: Path, log: Path) -> int:
    """The pid of a process that runs `mypt WORDS` in `folder` and prints into LOG.out and LOG.err.

    Forked from this one, which has imported the package: a new interpreter would need seconds for that.
    """
    if pid := os.fork():
        os.setpgid(pid, pid)  # before a kill of the group may come
        return pid
    code = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(f"{log}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sys.argv = ["mypt", *words]
        from mypt.cli.main import main

        code = main(list(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(pid: int, log: Path, limit: float = LIMIT, only_parent: bool = False) -> Ended:
    """Wait for the end, at most `limit` seconds; then it is killed, with all that it started or alone."""
    end = time.monotonic() + limit
    code = None
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            (os.kill if only_parent else os.killpg)(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.003)
    else:
        code = os.waitstatus_to_exitcode(found[1])
    return Ended(code, *(Path(f"{log}{suffix}").read_text(errors="replace") for suffix in (".out", ".err")))


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder: a hash for each file, a word for the rest."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                entry = f"-> {os.readlink(path)}"
            elif path.is_file():
                entry = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                entry = "folder" if path.is_dir() else "other"
            found[str(path.relative_to(folder))] = entry
    return found


# ---- the world ----


class World:
    """`pristine`: what real commands made; `here`: the folder in which tries run; `beyond`: what they may not touch."""

    def __init__(self, root: Path):
        self.root, self.trial, self.pristine, self.hub = root, root / "trial", root / "pristine", root / "hub"
        self.here, self.beyond, self.log = self.trial / "here", self.trial / "beyond", root / "log"
        self.wanted: dict[Case, Result] = {}
        self.seconds: dict[Case, float] = {}
        self.grown: dict[Case, int] = {}  # bytes
        self.shown = False
        self.clear()
        pages = list(topics.values())
        (self.here / "text.txt").write_text("\n\n".join(pages)[:24_000])
        (self.here / "more.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages[30:50]))
        for name, content in {"recipe.yaml": RECIPE, "lora.yaml": ADAPTER}.items():
            (self.here / name).write_text(json.dumps(content, indent=1))  # which is YAML, too
        for words in (PREPARE.replace("new", "data"), "train recipe.yaml", "train lora.yaml"):
            ended = self.run(words.split())
            assert ended.code == 0, ended.err
        self._nanogpt()
        shutil.copytree(self.here / "run", self.here / "half" / "run")
        half = self.here / "half" / "run"  # killed while it trained step 5
        for path in (half / "checkpoint-6", half / "best"):
            shutil.rmtree(path)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
            (half / name).unlink()
        shutil.move(self.here, self.pristine)
        self._fill_hub()

    def _nanogpt(self) -> None:
        folder, letters = self.here / "nano", "abcdefgh\n"
        folder.mkdir()
        ids = {letter: number for number, letter in enumerate(letters)}
        state = {"vocab_size": 9, "stoi": ids, "itos": dict(enumerate(letters))}
        (folder / "meta.pkl").write_bytes(pickle.dumps(state))
        for split in ("train", "val"):
            (folder / f"{split}.bin").write_bytes(b"".join((n * n % 9).to_bytes(2, "little") for n in range(1_000)))

    def _fill_hub(self) -> None:
        for kind, name, files in (
            ("models", "run", [path for path in (self.pristine / "run").iterdir() if path.is_file()]),
            ("datasets", "texts", [self.pristine / "more.jsonl"]),
        ):
            folder = self.hub / kind / "me" / name
            (folder / "files").mkdir(parents=True)
            for path in files:
                shutil.copy2(path, folder / "files")
            tree = [hub_entry(path) for path in sorted(files)]
            info = {"id": f"me/{name}", "sha": "5" * 40, "private": False, "gated": False, "tags": [], "downloads": 0}
            info["siblings"] = [{"rfilename": entry["path"]} for entry in tree]
            (folder / "info.json").write_text(json.dumps(info))
            (folder / "tree.json").write_text(json.dumps(tree))
        shutil.copytree(self.hub, self.root / "hub.whole")

    def clear(self, reads: Sequence[str] = ()) -> None:
        """A new trial folder with copies of these parts."""
        shutil.rmtree(self.trial, ignore_errors=True)
        self.here.mkdir(parents=True)
        self.beyond.mkdir()
        (self.beyond / "kept.txt").write_text("not a command's business")
        self.fill(reads)

    def fill(self, reads: Sequence[str]) -> None:
        """Copies of these parts."""
        for name in reads:
            path = self.pristine / name
            if name == "half":
                shutil.copytree(path / "run", self.here / "run")
            elif path.is_dir():
                shutil.copytree(path, self.here / name)
            else:
                shutil.copy2(path, self.here)

    def run(self, words: Sequence[str]) -> Ended:
        ended = wait(start(words, self.here, self.log), self.log)
        if self.shown:
            print(f"$ mypt {' '.join(words)}\n{ended.out}{ended.err}exit code {ended.code}")
        return ended

    def result(self, tried: Case, ended: Ended, before: dict[str, str]) -> Result:
        """What a command gave: the files that it may write, by their hashes, or the lines of its report."""
        if not tried.writes:
            lines = [line for line in ended.out.splitlines() if not TIMES.search(line)]
            found = {f"line {number}": line for number, line in enumerate(lines)}
            return Result(found, set(found))
        after = {name: entry for name, entry in snapshot(self.trial).items() if not UNCOMPARED.search(name)}
        after = {name: entry for name, entry in after.items() if entry != "folder" and name.startswith("here/")}
        changed = {name for name in after if after[name] != before.get(name)}
        for name in after:
            if name.endswith("dataset_metadata.json") and (self.trial / name).is_file():  # a FIFO would wait
                with contextlib.suppress(ValueError, AttributeError, RecursionError):  # damaged, and compared as text
                    content = json.loads((self.trial / name).read_text())
                    after[name] = json.dumps({key: content.get(key) for key in READ_KEYS}, sort_keys=True)
        return Result(after, changed)

    def want(self, tried: Case) -> Result:
        """The result of the undamaged command; it is run once."""
        if tried not in self.wanted:
            self.clear(tried.reads)
            before, size, begin = snapshot(self.trial), bytes_in(self.trial), time.monotonic()
            ended = self.run(tried.words)
            assert ended.code == 0, f"{tried}: {ended.err}"
            self.seconds[tried] = time.monotonic() - begin
            self.grown[tried] = bytes_in(self.trial) - size
            self.wanted[tried] = self.result(tried, ended, before)
        return self.wanted[tried]


@dataclass
class Result:
    """Files or lines by name, and which of them the command made or changed."""

    entries: dict[str, str]
    changed: set[str]

    def differs(self, got: Result) -> str:
        """The first difference in words, empty if there is none."""
        for name in sorted(self.changed | got.changed):
            if self.entries.get(name) != got.entries.get(name):
                wanted, found = self.entries.get(name), got.entries.get(name)
                return f"{name} should be {str(wanted)[:150]!r}, is {str(found)[:150]!r}"
        return ""


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- a hub of the loopback ----


def hub_entry(path: Path) -> dict:
    """A file as the hub's listing has it."""
    data = path.read_bytes()
    large = path.suffix in (".safetensors", ".png")
    oid = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": path.name, "size": len(data), "oid": oid}
    return entry | ({"lfs": {"oid": oid, "size": len(data), "pointerSize": 130}} if large else {})


class Hub(BaseHTTPRequestHandler):
    """Serves what lies in `folder`, as a hub would; the file `way` says what is wrong with it."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        words = path.removeprefix("/api").strip("/").split("/")
        kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
        there, action = self.folder / kind / "/".join(words[:2]), (words[2:] or ["revision"])[0]
        way = (self.folder / "way").read_text() if (self.folder / "way").exists() else ""
        if not there.is_dir() or way == "404":
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound" if there.is_dir() else "RepoNotFound"})
        elif way in ("500", "a page", "a loop", "file://", "nothing"):
            status = {"500": 500, "a loop": 302, "file://": 302}.get(way, 200)
            to = self.path if way == "a loop" else "file:///etc/passwd"
            self.reply(status, b"" if way == "nothing" else b"<html>", {"Location": to} if status == 302 else {})
        elif not path.startswith("/api/"):
            self.file(there, "/".join(words[4:]), way)
        else:
            content = (there / ("info.json" if action == "revision" else "tree.json")).read_bytes()
            if action == "paths-info":
                paths = parse_qs(body.decode()).get("paths", [])
                with contextlib.suppress(ValueError, TypeError, AttributeError):
                    content = json.dumps([one for one in json.loads(content) if one.get("path") in paths]).encode()
            self.reply(200, content, {"Content-Type": "application/json"})

    do_HEAD = do_POST = do_GET

    def file(self, there: Path, name: str, way: str) -> None:
        path = there / "files" / name.rpartition("/")[2]
        if not path.is_file() and json.dumps(name) not in (there / "tree.json").read_text(errors="replace"):
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        entry = hub_entry(path) if path.is_file() else {"oid": "0" * 40}
        data = path.read_bytes() if path.is_file() else b"{}"
        headers = {"X-Repo-Commit": "5" * 40, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data))}
        data = bytes(len(data)) if way == "other bytes" else data
        self.reply(200, data, headers, len(data) // 2 if way == "half of each file" else None)

    def reply(self, status: int, data: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])
        self.close_connection |= sent is not None


def serve_hub(folder: Path) -> tuple[int, dict[str, str]]:
    """Start a hub of the loopback in a process of its own; its pid, and the variables that lead to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"folder": folder}))
    url, cache = f"http://127.0.0.1:{server.server_port}", str(folder.parent / "cache")
    parent, server.timeout = os.getpid(), 1
    if not (pid := os.fork()):
        while os.getppid() == parent:
            server.handle_request()
        os._exit(0)
    return pid, {"HF_ENDPOINT": url, "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
