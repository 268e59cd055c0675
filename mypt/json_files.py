"""Read JSON files. What a file holds is checked once, against a type, before anything uses it.

A type is written as for a type checker: `int`, `float`, `str`, `bool`, `None`, `Any`, `Literal`, unions, `list`,
`tuple`, `dict`, NamedTuple (a list in the file), TypedDict and dataclass (objects), and `Annotated` with a `Rule`.
Nothing is converted: "512" is not an int, and neither is true. A float is finite, an int fits in 64 bits. Keys that a
type does not name are kept in a dict and dropped by a dataclass. A dataclass that has a method `check_fields` is asked
whether its fields fit together; it raises `Wrong`. `object` is not looked at, for what is checked later.
A function may stand for a type: it takes the parsed value, and returns its own or raises `Wrong`.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from mypt.errors import MyPTError

LARGEST = 64 << 20  # bytes of a file
LARGER = 512 << 20  # where a format allows more: of a tokenizer, or a million entries of a training log
DEEPEST = 50  # levels of lists and objects in a value of any type
_MARKS = (Required, NotRequired)
_SHOWN = 60  # characters of a value in a message

Check = Callable[[Any], Any]


class Wrong(Exception):
    """A value that is not what its format says. `place`: keys and positions that lead to it."""

    def __init__(self, reason: str, *place: str | int):
        super().__init__(reason)
        self.place = list(place)


class Rule(NamedTuple):
    """A condition on a value of the annotated type, and what to call a value that meets it."""

    holds: Callable[[Any], bool]
    expected: str


class PartOf(NamedTuple):
    """For a dict: its keys may be absent, and those that are fields of this dataclass have the fields' types."""

    kind: type


def is_file_name(name: str) -> bool:
    """Whether a name stands for a file in the folder itself: no separator, and nothing unprintable."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable() and len(name.encode()) <= 255


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


Text = Annotated[str, Rule(_is_unicode, "Unicode text")]  # no half of a surrogate pair, which JSON can spell
FileName = Annotated[str, Rule(is_file_name, "the name of a file in this folder")]
Count = Annotated[int, Rule(lambda number: number >= 0, "a whole number of 0 or more")]
Positive = Annotated[int, Rule(lambda number: number >= 1, "a whole number of 1 or more")]


def read_json(
    path: str | Path,
    kind: Any,
    error: type[MyPTError] = MyPTError,
    advice: str = "restore it",
    largest: int = LARGEST,
) -> Any:
    """The content of a JSON file, as a value of the type `kind`.

    Raises `error` in one line, which ends in `advice`, if the file is missing, larger than `largest` bytes or not a
    regular file, is not UTF-8 or not JSON, names a key twice, or holds anything that `kind` does not allow.
    """
    try:
        data = _read(path, largest)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror or problem}); {advice}") from None
    except (ValueError, Wrong) as problem:  # ValueError: a NUL in the path
        raise error(f"{path} cannot be read ({problem}); {advice}") from None
    return parse_json(data, kind, path, error, advice)


def parse_json(
    data: bytes | str, kind: Any, name: object, error: type[MyPTError] = MyPTError, advice: str = "restore it"
) -> Any:
    """The same for JSON that has been read; `name` is what the message calls it."""
    return check(_parsed(data, name, error, advice), kind, name, error, advice)


def check(content: Any, kind: Any, name: object, error: type[MyPTError] = MyPTError, advice: str = "restore it") -> Any:
    """The same for JSON that has been parsed."""
    try:
        return as_kind(content, kind)
    except Wrong as problem:
        place = f" at {at(problem.place)}" if problem.place else ""
        raise error(f"{name} is damaged{place}: {problem}; {advice}") from None


def _parsed(data: bytes | str, name: object, error: type[MyPTError], advice: str) -> Any:
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique)
    except Wrong as problem:
        raise error(f"{name} is damaged: {problem}; {advice}") from None
    except UnicodeDecodeError as problem:
        raise error(f"{name} is damaged: byte {problem.start} is not UTF-8; {advice}") from None
    except ValueError as problem:
        raise error(f"{name} is damaged: not JSON ({problem}); {advice}") from None
    except (RecursionError, MemoryError) as problem:
        what = "too deeply nested" if isinstance(problem, RecursionError) else "too large for the memory"
        raise error(f"{name} is damaged: {what}; {advice}") from None


def as_kind(content: Any, kind: Any) -> Any:
    """What `json.loads` gave as a value of the type `kind`. Raises Wrong."""
    return _check_of(kind)(content)


def at(place: list[str | int]) -> str:
    """splits.train.shards[3].tokens"""
    steps = [f"[{step}]" if isinstance(step, int) else f".{_shown_key(step)}" for step in place]
    return "".join(steps).removeprefix(".")


def found(value: Any) -> str:
    """A value as a message shows it: in JSON and short; of a list or an object only that it is one."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        text = json.dumps(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...", ensure_ascii=False)
        return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _shown_key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else found(key)


def _read(path: str | Path, largest: int) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise Wrong("not a regular file")
    if status.st_size > largest:
        raise Wrong(f"{status.st_size:,} bytes, more than the {largest:,} that such a file may have")
    with open(path, "rb") as file:
        return file.read(status.st_size)  # as many bytes are allocated first


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Wrong(f"the key {found(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return content


# ---- types ----


def _refuse(value: Any, expected: str) -> Wrong:
    return Wrong(f"found {found(value)}, expected {expected}")


@cache
def _check_of(kind: Any) -> Check:
    """The function that checks a value of a type and returns it; made once."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(inner[0], inner[1:])
    if origin in (Union, types.UnionType):
        return _union(inner)
    if origin is Literal:
        return _literal(inner)
    if isinstance(kind, types.FunctionType):
        return kind
    if kind is list or origin is list:
        return _list(_check_of(inner[0] if inner else Any))
    if origin is tuple:
        return _tuple(inner)
    if kind is dict or origin is dict:
        return _dict(*map(_check_of, inner or (str, Any)))
    if is_typeddict(kind):
        return _typed_dict(kind)
    if is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = get_type_hints(kind, include_extras=True)
        return _tuple(tuple(hints[name] for name in kind._fields), kind._make)
    return _SIMPLE[kind]


def _one(holds: Callable[[Any], bool], expected: str) -> Check:
    def check(value: Any) -> Any:
        if not holds(value):
            raise _refuse(value, expected)
        return value

    check.expected = expected
    return check


def _anything(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list | dict):
        if depth == DEEPEST:
            raise Wrong(f"nested more than {DEEPEST} levels deep")
        for part in value.values() if isinstance(value, dict) else value:
            _anything(part, depth + 1)
    return value


_anything.expected = "any value"
_FLOAT = sys.float_info.max
_SIMPLE: dict[Any, Check] = {
    Any: _anything,
    object: _one(lambda value: True, "any value"),
    int: _one(lambda value: type(value) is int and -(2**63) <= value < 2**63, "a whole number"),
    # Two comparisons that NaN fails.
    float: _one(lambda value: type(value) in (int, float) and -_FLOAT <= value <= _FLOAT, "a finite number"),
    str: _one(lambda value: type(value) is str, "text"),
    bool: _one(lambda value: type(value) is bool, "true or false"),
    type(None): _one(lambda value: value is None, "null"),
    None: _one(lambda value: value is None, "null"),
}


def _annotated(base: Any, notes: tuple) -> Check:
    check = _check_of(base)
    for note in notes:
        if isinstance(note, PartOf):
            return _part_of(note.kind)
        if isinstance(note, Rule):
            check = _ruled(check, note)
    return check


def _ruled(inner: Check, rule: Rule) -> Check:
    holds, expected = rule

    def check(value: Any) -> Any:
        result = inner(value)
        if not holds(result):
            raise _refuse(value, expected)
        return result

    check.expected = expected
    return check


def _union(kinds: tuple) -> Check:
    checks = [_check_of(kind) for kind in kinds]
    expected = " or ".join(check.expected for check in checks)

    def check(value: Any) -> Any:
        deepest = None
        for one in checks:
            try:
                return one(value)
            except Wrong as problem:
                if problem.place:
                    deepest = problem  # of the only kind that goes so far
        raise deepest or _refuse(value, expected)

    check.expected = expected
    return check


def _literal(values: tuple) -> Check:
    return _one(
        lambda value: any(type(value) is type(one) and value == one for one in values), " or ".join(map(found, values))
    )


def _list(inner: Check) -> Check:
    def check(value: Any) -> list:
        if type(value) is not list:
            raise _refuse(value, "a list")
        result = []
        try:
            for part in value:
                result.append(inner(part))
        except Wrong as problem:
            problem.place.insert(0, len(result))
            raise
        return result

    check.expected = "a list"
    return check


def _tuple(kinds: tuple, make: Callable = tuple) -> Check:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        many = _list(_check_of(kinds[0]))
        check = lambda value: tuple(many(value))  # noqa: E731
        check.expected = "a list"
        return check
    checks = [_check_of(kind) for kind in kinds]

    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise _refuse(value, f"a list of {len(checks)}")
        return make([_inside(index, one, part) for index, (one, part) in enumerate(zip(checks, value, strict=True))])

    check.expected = f"a list of {len(checks)}"
    return check


def _inside(step: str | int, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except Wrong as problem:
        problem.place.insert(0, step)
        raise


def _dict(key_check: Check, inner: Check) -> Check:
    def check(value: Any) -> dict:
        if type(value) is not dict:
            raise _refuse(value, "an object")
        for key in value:
            key_check(key)
        return {key: _inside(key, inner, part) for key, part in value.items()}

    check.expected = "an object"
    return check


def _members(hints: dict[str, Any], required: set[str], extras: bool) -> Callable[[Any], dict]:
    checks = [(name, _check_of(hint), name in required) for name, hint in hints.items()]

    def check(value: Any) -> dict:
        if type(value) is not dict:
            raise _refuse(value, "an object")
        result = {**value} if extras else {}
        for name, one, needed in checks:
            if name in value:
                try:
                    result[name] = one(value[name])
                except Wrong as problem:
                    problem.place.insert(0, name)
                    raise
            elif needed:
                raise Wrong(f"the key {found(name)} is missing")
        if extras and len(value) > len(checks):
            for name in value.keys() - hints.keys():
                _inside(name, _anything, value[name])
        return result

    check.expected = "an object"
    return check


def _typed_dict(kind: Any) -> Check:
    hints = get_type_hints(kind, include_extras=True)
    return _members(_plain(hints), set(kind.__required_keys__), extras=True)


def _part_of(kind: type) -> Check:
    return _members(_plain(get_type_hints(kind, include_extras=True)), set(), extras=True)


def _dataclass(kind: type) -> Check:
    hints = get_type_hints(kind, include_extras=True)
    given = [field for field in fields(kind) if field.init]
    needed = {f.name for f in given if f.default is MISSING and f.default_factory is MISSING}
    members = _members({field.name: hints[field.name] for field in given}, needed, extras=False)

    def check(value: Any) -> Any:
        made = kind(**members(value))
        if hasattr(made, "check_fields"):
            made.check_fields()
        return made

    check.expected = "an object"
    return check


def _plain(hints: dict[str, Any]) -> dict[str, Any]:
    """Hints without Required and NotRequired."""
    return {name: get_args(hint)[0] if get_origin(hint) in _MARKS else hint for name, hint in hints.items()}
