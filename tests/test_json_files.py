"""A JSON file is what its type says, or one error of the caller's kind that names file, place, value and advice."""

import json
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import pytest

from mypt.errors import DataError
from mypt.json_files import Count, FileName, PartOf, Rule, Wrong, as_kind, read_json


@dataclass
class Part:
    name: FileName
    size: Count
    share: float | None = None

    def check_fields(self):
        if self.size == 13:
            raise Wrong("found 13, expected another", "size")


class Point(NamedTuple):
    x: int
    y: float = 0


class Whole(TypedDict):
    parts: list[Part]
    kind: Literal["a", "b"]
    pairs: dict[str, tuple[int, bool]]
    point: NotRequired[Annotated[Point, Rule(lambda point: point.x > 0, "a point to the right")]]
    free: NotRequired[Any]
    settings: NotRequired[Annotated[dict, PartOf(Part)]]
    even: NotRequired[Annotated[int, Rule(lambda n: n % 2 == 0, "an even number")]]


GOOD = {
    "parts": [{"name": "x", "size": 1}, {"name": "y", "size": 0, "share": 1}],
    "kind": "a",
    "pairs": {"p": [1, True]},
    "point": [1, 2],
    "free": {"any": [None]},
    "settings": {"size": 2, "other": "kept"},
    "even": 4,
    "unknown": 1,
}


def refusal(tmp_path, content) -> str:
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_json(path, Whole, DataError, "make it again", largest=1 << 20)
    message = str(caught.value)
    assert message.startswith(f"{path} ") and message.endswith("; make it again") and "\n" not in message
    return message


def test_what_fits_comes_as_its_types(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(GOOD))
    found = read_json(path, Whole)
    assert found == {
        **GOOD, "parts": [Part("x", 1), Part("y", 0, 1)], "pairs": {"p": (1, True)}, "point": Point(1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "value", "place", "words"),
    [
        (("parts", 1, "size"), "512", "parts[1].size", 'found "512", expected a whole number'),
        (("parts", 1, "size"), True, "parts[1].size", "found true, expected a whole number"),
        (("parts", 1, "size"), 1.0, "parts[1].size", "found 1.0, expected a whole number"),
        (("parts", 1, "size"), -1, "parts[1].size", "found -1, expected a whole number of 0 or more"),
        (("parts", 1, "size"), 2**63, "parts[1].size", "found 9223372036854775808, expected a whole number"),
        (("parts", 1, "size"), 13, "parts[1].size", "expected another"),
        (("parts", 0, "share"), float("nan"), "parts[0].share", "found NaN, expected a finite number or null"),
        (("parts", 0, "share"), -float("inf"), "parts[0].share", "found -Infinity"),
        (("parts", 0, "share"), 10**400, "parts[0].share", "expected a finite number"),
        (("parts", 0, "name"), "a\0b", "parts[0].name", r'found "a\u0000b"'),
        (("parts", 0, "name"), "../a", "parts[0].name", "the name of a file"),
        (("parts", 0, "name"), "\ud800", "parts[0].name", r'found "\ud800"'),
        (("parts", 0, "name"), "é" * 200, "parts[0].name", "the name of a file"),
        (("parts",), {}, "parts", "found an object of 0, expected a list"),
        (("parts", 0), None, "parts[0]", "found null, expected an object"),
        (("kind",), "c", "kind", 'found "c", expected "a" or "b"'),
        (("pairs", "p"), [1], "pairs.p", "found a list of 1, expected a list of 2"),
        (("pairs", "p"), [1, 1], "pairs.p[1]", "found 1, expected true or false"),
        (("pairs", "a b\x1b"), 0, r'pairs."a b\u001b"', "found 0"),
        (("point",), [1, "2"], "point[1]", 'found "2"'),
        (("settings", "size"), [], "settings.size", "found a list of 0"),
        (("even",), 3, "even", "found 3, expected an even number"),
        (("kind",), "x" * 10_000, "kind", '..."'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, keys, value, place, words):
    content = json.loads(json.dumps(GOOD))
    *way, last = keys
    inside = content
    for key in way:
        inside = inside[key]
    inside[last] = value
    message = refusal(tmp_path, json.dumps(content))
    assert f" at {place}: " in message and words in message and len(message) < 400


@pytest.mark.parametrize("key", ["parts", "kind", "pairs"])
def test_a_missing_key_is_named(tmp_path, key):
    assert f'the key "{key}" is missing' in refusal(tmp_path, json.dumps({k: GOOD[k] for k in GOOD if k != key}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (json.dumps(GOOD)[:-9].encode(), "not JSON"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "BOM"),
        (json.dumps(GOOD).encode("utf-16"), "byte 0 is not UTF-8"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "too deeply nested"),
        (json.dumps(GOOD)[:-1].encode() + b', "free": ' + b"[" * 90 + b"]" * 90 + b"}", "twice"),
        (b'{"free": ' + b"[" * 90 + b"]" * 90 + json.dumps(GOOD).replace('"free"', '"f"')[1:].join([",", ""]).encode(),
         "at free: nested more than"),
        (json.dumps(GOOD).replace('"size"', '"size": 5, "size"', 1).encode(), 'the key "size" is there twice'),
        (b"9" * 5_000, "not JSON"),
        (b" " * (1 << 20) + b"{}", "1,048,578 bytes, more than the 1,048,576"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_named(tmp_path, content, words):
    assert words in refusal(tmp_path, content)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, words in (("none", "No such file"), (".", "not a regular file"), ("fifo", "not a regular file"),
                        ("a\0b", "null byte"), ("a" * 300, "too long")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_json(tmp_path / name, dict, DataError)


def test_a_type_is_never_widened():
    for kind, value in ((int, False), (float, True), (bool, 1), (bool, 0.0), (str, 1), (Literal[1], True), (None, 0)):
        with pytest.raises(Wrong):
            as_kind(value, kind)
