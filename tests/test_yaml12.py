"""YAML 1.2 scalars are read as the standard says, and everything written is read back."""

import math
import random

import pytest
import yaml

from mypt.yaml12 import dump_yaml, load_yaml

NASTY = [
    *["", " ", "a ", " a", "~", "null", "no", "yes", "on", "off", "y", "true", "True", "3e-4", "010", "0o10", "0x1F"],
    *["1_000", "1:30", "2024-01-01", "=", "<<", "*a", "&a", "!a", "|", ">", "%a", "@a", "`a", "'", '"', "?", "#"],
    *["a #b", "a: b", "- a", "---", "...", "{a}", "[a]", "\t", "\n", "a\nb", "a\r\nb", "\x07", "\0", "\x85"],
    *["a\u2028b", "\u2029", "\ufeff", "é", "漢字", "😀", "x" * 300, "a " * 200, ".inf", "-.5", "+1", "\\", "C:\\data"],
    "hf://a:b@c#train",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("0.1E+5", 1e4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("010", 10),
        ("-010", -10),
        ("+5", 5),
        ("0o10", 8),
        ("0x1F", 31),
        *((word, word) for word in ("no", "yes", "on", "off", "y", "n", "tRUE", "1_000", "1:30", "0b1", "1e", "<<")),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("{<<: {a: 1}, b: 2}", {"<<": {"a": 1}, "b": 2}),
    ],
)
def test_scalars(text, value):
    read = load_yaml(text)
    assert read == value
    assert type(read) is type(value)


def test_nan():
    assert math.isnan(load_yaml(".nan"))
    assert math.isnan(load_yaml(dump_yaml(math.nan)))


@pytest.mark.parametrize("text", ["a: 1\na: 2", "{x: {1: a, 1: b}}", "- {b: 1, a: 1, 'b': 2}"])
def test_a_key_comes_once(text):
    with pytest.raises(yaml.YAMLError, match="comes twice"):
        load_yaml(text)


@pytest.mark.parametrize(
    "text",
    ["[1", "{[1]: 2}", "{{a}}", "!!int x", "!!python/object:os.system x", "9" * 5_000, "[" * 5_000, "a: *b", "\0"],
    ids=range(9),
)
def test_what_cannot_be_read_is_one_kind_of_error(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


@pytest.mark.parametrize("text", NASTY)
def test_every_string_comes_back_as_itself(text):
    for value in (text, [text], {text: text}, {"a": {"b": [text, {text: None}]}}):
        assert load_yaml(dump_yaml(value)) == value


def test_any_nested_value_comes_back():
    rng = random.Random(0)
    alphabet = [*"ab01e.-+:#&*!|>%@`'\"?{}[],~ \t\n\r\\=<nNy_", "\x85", "\u2028", "é", "😀", "---", ": ", " #"]

    def value(depth):
        kind = rng.randrange(8 if depth else 6)
        if kind == 0:
            return rng.choice([None, True, False])
        if kind == 1:
            return rng.randint(-(10**12), 10**12)
        if kind == 2:
            return rng.choice([rng.gauss(0, 1) * 10.0 ** rng.randint(-30, 30), math.inf, -math.inf, 0.0, 1e16, 1e-7])
        if kind < 6:
            return "".join(rng.choices(alphabet, k=rng.randrange(9)))
        if kind == 6:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {str(value(0)): value(depth - 1) for _ in range(rng.randrange(4))}

    for _ in range(1_500):
        original = value(3)
        read = load_yaml(dump_yaml(original))
        assert repr(read) == repr(original)  # repr: 1 is not 1.0, and the order of keys counts
