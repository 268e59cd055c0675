"""Datasets of the hub, through the real libraries and a hub on the loopback, in processes with a home of their own."""

import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from tests.processes import Command

TOKEN = "hf_loopbackOnly"
CARD = b"""---
configs:
- config_name: prose
  default: true
  data_files:
  - {split: train, path: prose/train-*.parquet}
  - {split: test, path: prose/test.parquet}
- config_name: code
  data_files:
  - {split: train, path: code.parquet}
---
"""
PROGRAM = """
import json, sys, time
from dataclasses import asdict
from mypt.errors import DataError
from mypt.text.sources import Unit, digest, find_units, read_documents, stamp
time.sleep = lambda seconds: None
answers = {}
for question in sys.argv[1:]:
    source, _, column = question.partition(" ")
    try:
        units = find_units([source], text_column=column or "text")
        texts = [[document.text for document in read_documents(Unit(**asdict(unit)))] for unit in units]
        names = [unit.name for unit in units]
        facts = {"digests": [*map(digest, units)], "stamps": [*map(stamp, units)]}
        answers[question] = {"texts": texts, "names": names, **facts}
    except DataError as error:
        answers[question] = str(error)
print(json.dumps(answers))
"""


def parquet(*texts):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": range(len(texts)), "text": texts}), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ask(hub, tmp_path_factory):
    """ask("hf://NAME", ...): what a new process reads of each source, or its error; and what it says meanwhile."""
    prose = {"prose/train-0.parquet": parquet("a", "b"), "prose/train-1.parquet": parquet("c")}
    files = {"README.md": CARD, "prose/test.parquet": parquet("t"), "code.parquet": parquet("x = 1"), **prose}
    old = {**files, "prose/train-1.parquet": parquet("old")}
    lines = {f"{name}.jsonl": b"".join(b'{"text": "%s%d"}\n' % (name.encode(), n) for n in range(3)) for name in "pq"}
    hub.datasets = {"me/public": {"main": files, "v1": old}, "me/lines": {"main": lines}}
    hub.datasets |= {name: {"main": files} for name in ("me/gated", "me/private")}
    hub.gated, hub.private = {"me/gated"}, {"me/private"}

    def ask(*questions, token=None, endpoint=hub.url):
        home = tmp_path_factory.mktemp("home")
        (home / "me" / "public").mkdir(parents=True)  # a local directory of that name is not what hf:// names
        environment = {key: None for key in os.environ if key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_TOKEN": token} if token else {}
        (home / "program.py").write_text(PROGRAM)
        process = Command(questions, script=home / "program.py", env=environment, apart=True, cwd=home)
        code, printed, said = process.wait(), process.output(), process.errors()
        assert code == 0, said
        assert TOKEN not in printed + said
        return json.loads(printed), said

    return ask


@pytest.fixture(scope="module")
def answers(ask, hub):
    """What someone who is not logged in gets."""
    found, _ = ask(
        *("hf://me/public", "hf://me/public:code", "hf://me/public:prose#test", "hf://me/public@v1", "hf://me/lines"),
        *(f"hf://me/public@{hub.commit('me/public', 'v1')}#train", "hf://me/public n", "hf://me/public body"),
        *("hf://me/public#dev", "hf://me/public:poems", "hf://me/public@v9", "hf://me/none"),
        *("hf://me/gated", "hf://me/private"),
    )
    return found


def test_shards_configurations_splits_and_revisions(answers, hub):
    texts = {source: answer["texts"] for source, answer in answers.items() if isinstance(answer, dict)}
    assert texts == {
        "hf://me/public": [["a", "b"], ["c"]],
        "hf://me/public:code": [["x = 1"]],
        "hf://me/public:prose#test": [["t"]],
        "hf://me/public@v1": [["a", "b"], ["old"]],
        f"hf://me/public@{hub.commit('me/public', 'v1')}#train": [["a", "b"], ["old"]],
        "hf://me/lines": [["p0", "p1", "p2"], ["q0", "q1", "q2"]],
    }


def test_units_are_fixed_to_a_commit(answers, hub):
    commits = {revision: hub.commit("me/public", revision) for revision in ("main", "v1")}
    main, tagged = answers["hf://me/public"], answers["hf://me/public@v1"]
    assert main["names"] == [f"hf://me/public@{commits['main']}#train[{n}:{n + 1}]" for n in range(2)]
    assert commits["main"] in main["stamps"][0] and commits["v1"] in tagged["stamps"][0]
    assert tagged == answers[f"hf://me/public@{commits['v1']}#train"]
    assert len({*main["digests"], *tagged["digests"], *answers["hf://me/public:prose#test"]["digests"]}) == 5


def test_what_is_not_there_is_named_with_what_is(answers, hub):
    assert answers["hf://me/public#dev"] == "hf://me/public#dev: no split 'dev'; add one of: #train, #test"
    assert answers["hf://me/public:poems"].endswith(": choose a configuration, one of: :prose, :code")
    assert "there is no revision 'v9'" in answers["hf://me/public@v9"]
    assert "no such dataset that you may read; check the name" in answers["hf://me/none"]
    assert "column 'n' holds int64, not text" in answers["hf://me/public n"]
    assert "no column 'body'; --text-column is one of: n, text" in answers["hf://me/public body"]


def test_gated_and_private_datasets_need_the_login_of_the_hub_library(answers, ask, hub):
    page = f"{hub.url}/datasets/me"
    assert answers["hf://me/gated"] == (
        f"hf://me/gated#train is gated: ask for access on {page}/gated, then run `hf auth login`"
    )
    assert "run `hf auth login`" in answers["hf://me/private"] and f"{page}/private" in answers["hf://me/private"]
    logged_in, _ = ask("hf://me/gated", "hf://me/private", token=TOKEN)
    assert [answer["texts"] for answer in logged_in.values()] == [[["a", "b"], ["c"]]] * 2


def test_a_connection_that_drops_loses_and_repeats_nothing(ask, hub):
    """Once: the hub library asks again. For longer than its patience: the datasets library does, and says so."""
    texts = [f"{n} {'word ' * 200}" for n in range(20_000)]
    hub.datasets["me/large"] = {"main": {"a.jsonl": "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()}}
    hub.breaks = {"prose/train-1.parquet": [True], "a.jsonl": [False, False, *[True] * 14]}
    found, said = ask("hf://me/public", "hf://me/large")
    assert found["hf://me/public"]["texts"] == [["a", "b"], ["c"]]
    assert found["hf://me/large"]["texts"] == [texts]
    assert not any(hub.breaks.values())
    assert "Retrying in 1s [Retry 1/5]" in said and "Got disconnected from remote data host. Retrying" in said


def test_a_hub_out_of_reach_is_one_clear_error(ask):
    (answer,) = ask("hf://me/public", endpoint="http://127.0.0.1:9")[0].values()
    assert answer.startswith("hf://me/public#train: the hub at http://127.0.0.1:9 can't be reached (")
