"""datatrove's executors write the bytes of `mypt prepare`, killed in between or not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("datatrove", reason="the extra `datatrove` is not installed")
pytest.importorskip("orjson", reason="the extra `datatrove` is not installed")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader

from mypt.errors import DataError
from mypt.preparation.datatrove import MyPTMerger, MyPTWriter
from mypt.preparation.prepare import prepare_dataset
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.shards.publishing import STAGING
from tests.datasets import output

TASKS = 4
SETTINGS = {"tokens_per_shard": 20_000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file for each task, some of it in several, a tokenizer, and what `mypt prepare` makes of it."""
    root = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 8))) for _ in range(2_000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 80))) for _ in range(2_000)]
    (root / "text").mkdir()
    files = [root / "text" / f"{task}.jsonl" for task in range(TASKS)]
    for path in files:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in draw.sample(texts, 800)))
    prepare_dataset(files[0], root / "bpe", "bpe", vocab_size=300, progress=False)
    prepare_dataset(files, root / "expected", root / "bpe", progress=False, **SETTINGS)
    return root


def executors(corpus, out, workers, logs, read=(), tasks=TASKS):
    """The pipeline that writes and the one that merges."""
    write = [JsonlReader(str(corpus / "text")), *read, MyPTWriter(out, corpus / "bpe", **SETTINGS)]
    writing = LocalPipelineExecutor(write, tasks=tasks, workers=workers, logging_dir=f"{logs}/write")
    merging = LocalPipelineExecutor([MyPTMerger(out)], depends=writing, workers=1, logging_dir=f"{logs}/merge")
    return writing, merging


def test_two_workers_killed_and_started_again(corpus, tmp_path):
    """Every process of the first run ends by kill -9 when a task is done and others are not."""
    out, logs = tmp_path / "out", tmp_path / "logs"
    code = f"""
import time
from pathlib import Path
from tests.preparation.test_datatrove import executors
def slow(document):
    time.sleep(0.002)
    return True
if __name__ == "__main__":
    from datatrove.pipeline.filters import LambdaFilter
    executors(Path({str(corpus)!r}), {str(out)!r}, 2, {str(logs)!r}, [LambdaFilter(slow)])[1].run()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    with open(tmp_path / "output", "w") as printed:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            start_new_session=True,
            stdout=printed,
            stderr=printed,
        )
        deadline = time.monotonic() + 120
        while not list(logs.glob("write/completions/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    units = out / STAGING / "units"
    done = {units / f"{mark.name}.json" for mark in logs.glob("write/completions/*")}
    times = {path: path.stat().st_mtime_ns for path in done}
    missing = TASKS - len(list(units.glob("0000?.json")))
    assert missing > 0 and not (out / METADATA_NAME).exists()
    with pytest.raises(DataError, match=rf"{missing} of {TASKS} ranks are not finished: .*3;"):
        MyPTMerger(out).run()
    writing, merging = executors(corpus, out, 2, logs)
    writing.run()
    assert times == {path: path.stat().st_mtime_ns for path in done}  # done once
    merging.run()
    assert output(out, metadata=False) == output(corpus / "expected", metadata=False)
    assert not (out / STAGING).exists()
    executors(corpus, out, 2, logs)[1].run()  # the same script once more
    assert output(out, metadata=False) == output(corpus / "expected", metadata=False)


def test_one_worker_and_filters_of_datatrove(corpus, tmp_path):
    lines = [line for task in range(2) for line in (corpus / "text" / f"{task}.jsonl").read_text().splitlines()]
    rows = [json.loads(line)["text"] for line in lines]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows if len(text) > 100))
    prepare_dataset(tmp_path / "some.jsonl", tmp_path / "expected", corpus / "bpe", progress=False, **SETTINGS)
    read = [lambda data, rank, tasks: data if rank < 2 else (), LambdaFilter(lambda document: len(document.text) > 100)]
    stats = executors(corpus, tmp_path / "out", 1, tmp_path / "logs", read)[1].run()
    assert output(tmp_path / "out", metadata=False) == output(tmp_path / "expected", metadata=False)
    found = {name: stat.total for name, stat in stats.stats[0].stats.items()}
    assert found["train_tokens"] == read_manifest(tmp_path / "out").splits["train"].tokens


def test_a_merger_is_one_task_and_out_a_folder(tmp_path):
    with pytest.raises(DataError, match="run by 3 tasks"):
        MyPTMerger(tmp_path).run(None, 0, 3)
    with pytest.raises(DataError, match="s3://bucket/out is an address"):
        MyPTMerger("s3://bucket/out")
