"""Sums by hand: a source is one by the fingerprints of its sizes, or by its name where it has none."""

import pytest

from mypt.checkpoints.lineage import (
    describe_runs,
    describe_start,
    find_lineage,
    recognized,
    seen_sources,
    start_lineage,
    tokens_seen,
    with_run,
    write_lineage,
)
from mypt.errors import CheckpointError

SCRATCH = {"base": None, "runs": [], "seen": []}


def seen(name, tokens, *fingerprints, size=1_000, estimated=False):
    return {"name": name, "samples": tokens // 10, "tokens": tokens, "source_tokens": size, "estimated": estimated,
            "fingerprints": [*fingerprints]}  # fmt: skip


def after(*runs):
    """The lineage after runs that saw these entries each."""
    lineage = SCRATCH
    for step, entries in enumerate(runs, start=1):
        lineage = with_run(lineage, {"name": f"run-{step}", "step": step}, entries)
    return lineage


def test_the_same_source_is_summed_wherever_it_lies_and_another_at_its_place_is_not():
    lineage = after([seen("data/a", 100, "f1")], [seen("moved/a", 50, "f1"), seen("data/a", 7, "other")])
    assert lineage["seen"] == [seen("moved/a", 100, "f1") | {"tokens": 150, "samples": 15}, seen("data/a", 7, "other")]
    assert [run["step"] for run in lineage["runs"]] == [1, 2]


def test_a_streamed_text_is_known_by_its_name_and_a_counted_size_wins():
    first, then = seen("a.jsonl", 100, size=5_000, estimated=True), seen("a.jsonl", 100, size=4_000)
    for order in ([first, then], [then, first]):
        [entry] = after(*([each] for each in order))["seen"]
        assert (entry["tokens"], entry["source_tokens"], entry["estimated"]) == (200, 4_000, False)
    assert len(after([first], [seen("a.jsonl", 1, "f")])["seen"]) == 2, "prepared, it is another source"


def test_a_source_that_grew_in_a_run_is_the_old_one_and_the_new_one():
    """And whoever connects two entries makes them one."""
    grown = seen("a", 60, "f1", "f2", size=2_000)
    [entry] = after([seen("a", 100, "f1")], [grown], [seen("b", 5, "f2", size=2_000)])["seen"]
    assert (entry["tokens"], entry["source_tokens"], entry["name"]) == (165, 2_000, "b")
    [entry] = after([seen("a", 100, "f1"), seen("b", 20, "f2")], [grown])["seen"]
    assert entry["tokens"] == 180


def test_a_source_that_grew_between_two_runs_is_recognized_by_its_dataset():
    """f3 is the dataset now; its first 1 and 2 shards have the fingerprints f1 and f2."""
    shards_of = {"f1": 1, "f2": 2, "f3": 3}.get
    start = recognized(after([seen("a", 100, "f1")], [seen("a", 20, "f2"), seen("b", 9, "x")]), {"f3": shards_of})
    assert tokens_seen(start, "elsewhere", ["f3"]) == 120
    assert tokens_seen(start, "b", ["x"]) == 9
    assert tokens_seen(start, "a", ["y"]) == tokens_seen(start, "a", []) == 0


def test_entries_come_from_the_state_of_a_stream():
    state = {
        "sources": [{"name": "a", "tokens": 100, "fingerprint": "f1"}, {"name": "b", "tokens": 0}],
        "events": [
            {"sample": 3, "appended": {"source": 0, "tokens": 150, "shards": 2, "fingerprint": "f2"}},
            {"sample": 4, "weights": [1.0, 2.0]},
        ],
    }
    ledger = [{"samples": 4, "tokens": 40}, {"samples": 1, "tokens": 10, "estimated": True}]
    assert seen_sources(state, ledger) == [
        seen("a", 40, "f1", "f2", size=150),
        seen("b", 10, size=0, estimated=True),
    ]


def test_words():
    lineage = after([seen("a", 2_500, "f"), seen("b", 10, size=0), seen("c", 500, estimated=True)])
    line = "the start model has seen before: a 2.50x (2,500 tokens), b unknown (10 tokens), c about 0.50x (500 tokens)"
    assert describe_start(lineage) == line
    assert describe_start(lineage | {"base": "gpt2"}) == f"{line}; what gpt2 was trained on is not known"
    assert describe_start(SCRATCH) is None
    assert describe_start(SCRATCH | {"base": "gpt2"}).startswith("what gpt2 was trained on is not known")
    assert describe_runs(lineage) == "random weights -> run-1 (step 1)"


def test_on_disk_and_on_the_hub(tmp_path, monkeypatch):
    lineage = after([seen("a", 10, "f")])
    assert start_lineage(tmp_path) == SCRATCH | {"base": str(tmp_path)}
    assert start_lineage(None) == SCRATCH
    write_lineage(tmp_path, lineage)
    assert find_lineage(tmp_path) == start_lineage(tmp_path) == lineage
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert start_lineage("nobody/nothing") == SCRATCH | {"base": "nobody/nothing"}
    for content in ("{", "[]", '{"base": null, "runs": [{"name": "a", "step": -1}], "seen": []}', '{"runs": NaN}'):
        (tmp_path / "lineage.json").write_text(content)
        with pytest.raises(CheckpointError, match="damaged"):
            find_lineage(tmp_path)
