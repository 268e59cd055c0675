"""Errors of the hub: one line that says what to do, whatever was in the way, and no secret in it."""

import httpx2
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from mypt.errors import CheckFailed, MyPTError, without_secrets
from mypt.hub_errors import explained, may_pass

TOKEN = "hf_" + "aB3" * 12


def test_a_lost_connection_may_pass_and_offline_mode_may_not():
    assert may_pass(httpx2.ConnectError("refused")) and may_pass(ConnectionResetError())
    assert not may_pass(OfflineModeIsEnabled("offline")) and not may_pass(ValueError("wrong"))
    lost = RuntimeError("while uploading")
    lost.__cause__ = httpx2.ReadTimeout("slow")
    assert may_pass(lost)
    with pytest.raises(CheckFailed, match=r"can't be reached \(while uploading\)"), explained("hf://me/x"):
        raise lost


def test_what_is_no_error_of_the_hub_is_one_line(monkeypatch):
    with pytest.raises(MyPTError, match=r"^hf://me/x: first second$"), explained("hf://me/x"):
        raise ValueError("first\n\n  second.\nthird")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"https://ann:{TOKEN}@hub.example.org")
    with pytest.raises(CheckFailed, match=r"hub at https://hub\.example\.org can't") as error, explained("hf://me/x"):
        raise ConnectionError(f"no way to https://ann:secret@hub.example.org/x?X-Signature=abc with {TOKEN}")
    assert not any(word in str(error.value) for word in ("secret", "abc", TOKEN))


def test_addresses_without_a_login_stay_as_they_are():
    for text in ("hf://me/x@branch", "https://hub.example.org:8080/a@b", "hf://squad@main", "the file hf_hub.py"):
        assert without_secrets(text) == text


def test_a_login_with_a_slash_in_its_password_and_a_key_are_not_repeated():
    text = "no way to https://ann:pa/ss@hub.example.org/x?sig=abc with AccountKey=abc== and " + TOKEN
    assert without_secrets(text) == "no way to https://hub.example.org/x with AccountKey=*** and ***"
