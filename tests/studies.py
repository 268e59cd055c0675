"""The recipe of a small sweep over a text of several documents, and a PostgreSQL server."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml

from tests.processes import free_port

TEXTS = [text[:800] for _, text in sorted(topics.items()) if len(text) > 800][:40]


@pytest.fixture
def sweep_recipe(tmp_path):
    """sweep_recipe(section={key: value}): the file of a recipe whose trials take a few seconds, on 40 documents."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": item}) + "\n" for item in TEXTS), encoding="utf-8")

    def write(**sections):
        content = {
            "model": {
                "preset": "modern-nano", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64,
            },
            "tokenizer": {"name": "char"},
            "data": {"train": str(text), "block_size": 32},
            "coverage": {"confirm": False},
            "forgetting": {"eval_windows": 20},
            "training": {
                "output_dir": str(tmp_path / "runs" / "full"), "max_steps": 100, "warmup_steps": 30,
                "per_device_train_batch_size": 4, "bf16": False, "torch_compile": False,
            },
            "sweep": {"samples": 12, "trials": 3, "space": {"training.learning_rate": {"log": [1e-4, 1e-2]}}},
        }  # fmt: skip
        for name, values in sections.items():
            content[name] = content.get(name, {}) | values
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a server of its own on the loopback, which a user other than root runs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (the dev extra has it)")
    options = {}
    if os.geteuid() == 0:
        try:
            options = {"user": pwd.getpwnam("postgres").pw_uid, "group": pwd.getpwnam("postgres").pw_gid}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="mypt-postgresql-"))
    if options:
        os.chown(folder, options["user"], options["group"])
    options |= {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    data, port = folder / "data", free_port()
    made = subprocess.run(
        [found[-1], "-D", data, "-A", "trust", "-U", "mypt", "--no-sync"], capture_output=True, text=True, **options
    )
    assert made.returncode == 0, made.stderr
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [found[-1].parent / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"],
            stdout=log, stderr=log, **options,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while "ready to accept connections" not in (folder / "log").read_text():
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"postgresql://mypt:secret@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
