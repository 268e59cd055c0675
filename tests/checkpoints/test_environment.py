"""environment.json: what a run began with, later sessions that differ, and no secret."""

import json
import subprocess

import pytest

from mypt.checkpoints.environment import masked, read_environment, this_session, write_environment

HEAD = {"run": "0" * 64, "identity": {"data": []}}


def test_a_session_names_versions_machine_and_code(monkeypatch):
    import torch
    import transformers

    monkeypatch.setenv("MY_TOKEN", "very-secret-value")
    session = this_session(processes=2)
    assert session["packages"]["torch"] == torch.__version__
    assert session["packages"]["transformers"] == transformers.__version__
    assert session["machine"]["processes"] == 2 and session["machine"]["threads"] >= 1 and session["machine"]["model"]
    assert "very-secret-value" not in json.dumps(session)


def test_the_commit_is_that_of_git_and_dirty_after_a_change(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *words], capture_output=True, text=True, check=True).stdout.strip()

    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert number or this_session()["git"]["folder"] is None
        git("init", "-q")
        (folder / "file").write_text("1")
        git("add", "file")
        git("commit", "-q", "-m", "first")
        (folder / "untracked").write_text("1")
        if number:
            (folder / "file").write_text("2")
            assert this_session()["git"]["folder"] == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    (tmp_path / "b" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "b" / "below")
    assert this_session()["git"]["folder"]["commit"] == git("rev-parse", "HEAD")


def test_only_a_session_that_differs_is_added(tmp_path):
    session = this_session()
    write_environment(tmp_path, HEAD, session, [], 0)
    first = (tmp_path / "environment.json").read_bytes()
    write_environment(tmp_path, HEAD, session, [], 4)
    assert (tmp_path / "environment.json").read_bytes() == first
    other = session | {"python": "3.99.0"}
    for step in (8, 12):
        write_environment(tmp_path, HEAD, other, [], step)
    found = read_environment(tmp_path)
    assert [later["step"] for later in found["resumed"]] == [8] and found["resumed"][0]["python"] == "3.99.0"
    write_environment(tmp_path, HEAD, session, [], 16)
    assert [later["step"] for later in read_environment(tmp_path)["resumed"]] == [8, 16]
    assert found["python"] == session["python"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a.txt", "s3://bucket/a.txt"),
        ("https://ann:pw@host/a.txt", "https://***@host/a.txt"),
        ("az://box/a?sv=1&sig=x%2F", "az://box/a?***"),
        ("--source=https://h/a?token=x", "--source=https://h/a?***"),
        ("hf_" + "a" * 34, "***"),
        ("hf://org/name:config@main#train", "hf://org/name:config@main#train"),
        ("data/mail@home/what?.txt", "data/mail@home/what?.txt"),
        ("github_pat_" + "A1" * 20, "***"),
        ("https://u:pa/ss@host/x and https://u:p@ss@host/x", "https://***@host/x and https://***@host/x"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("sk-ant-api03-" + "a_1-" * 8, "***"),
        ("AccountName=me;AccountKey=abc==;x=1", "AccountName=me;AccountKey=***;x=1"),
        ("https://h/a#access_token=abc", "https://h/a#access_token=***"),
    ],
)
def test_what_is_secret_is_masked(text, shown):
    assert masked({"a": [text]}) == {"a": [shown]}
