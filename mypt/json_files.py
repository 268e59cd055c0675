"""Read JSON files. The content of a file is checked once, against a type, before anything uses it.

A type is written as for a type checker: `int`, `float`, `str`, `bool`, `None`, `Any`, `Literal`, unions, `list`,
`tuple`, `dict`, NamedTuple (a list in the file), TypedDict and dataclass (objects), and `Annotated` with a `Rule`.
Nothing is converted: "512" is not an int, and neither is true. A float is finite, an int fits in 64 bits. Keys that a
type does not name are kept in a dict and dropped by a dataclass. A dataclass may have a method `check_fields`, which
raises `Wrong` if its fields do not fit together. `object` accepts every value unchecked.
A function may stand for a type: it takes the parsed value, and returns its own or raises `Wrong`. A type in
`Annotated` converts the value: `Annotated[float, float]` makes a float of a whole number.

Recipes are checked by these types, too, by `as_kind`. pydantic was tried for both (2.14): it takes 0.1 s to import and
build, and its messages need their own translation.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from mypt.errors import MyPTError
from mypt.files import is_inner_path

LARGEST = 64 << 20  # bytes of a file
LARGER = 512 << 20  # where a format allows more: of a tokenizer, or a million entries of a training log
DEEPEST = 50  # levels of lists and objects in a value of any type
_SHOWN = 60  # characters of a value in a message


class Wrong(Exception):
    """A value that does not fit its format. `place`: keys and positions that lead to it."""

    def __init__(self, reason: str, *place: str | int):
        super().__init__(reason)
        self.place = list(place)


class Unfit(Wrong):
    """A value of another type, or one that breaks a rule. `expected`: what the value should be."""

    def __init__(self, value: Any, expected: str):
        super().__init__(f"found {found(value)}, expected {expected}")
        self.value, self.expected = value, expected


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


# No half of a surrogate pair, which JSON can spell.
Text = Annotated[str, Rule(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text), "Unicode text")]
FileName = Annotated[str, Rule(is_file_name, "the name of a file in this folder")]
Count = Annotated[int, Rule(lambda number: number >= 0, "a whole number of 0 or more")]
InnerPath = Annotated[str, Rule(is_inner_path, "the path of a file in this folder")]
Positive = Annotated[int, Rule(lambda number: number >= 1, "a whole number of 1 or more")]


class Recorded(TypedDict):
    """Size and checksum of a file when it was saved or sent."""

    bytes: Count
    xxh3_128: Annotated[str, Rule(re.compile("[0-9a-f]{32}").fullmatch, "32 hex digits")]


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


def find_json(path: str | Path, kind: Any, *how: Any) -> Any:
    """As `read_json`, which has the arguments `how`, too; None if there is nothing at `path`."""
    return read_json(path, kind, *how) if Path(path).exists() else None


def parse_json(
    data: bytes | str, kind: Any, name: object, error: type[MyPTError] = MyPTError, advice: str = "restore it"
) -> Any:
    """The same for JSON that has been read; `name` is what the message calls it."""
    try:
        content = json.loads(data if isinstance(data, str) else data.decode("utf-8"), object_pairs_hook=_unique)
    except Wrong as problem:
        reason = str(problem)
    except UnicodeDecodeError as problem:
        reason = f"byte {problem.start} is not UTF-8"
    except ValueError as problem:
        reason = f"not JSON ({problem})"
    except RecursionError:
        reason = "too deeply nested"
    except MemoryError:
        reason = "too large for the memory"
    else:
        return check(content, kind, name, error, advice)
    raise error(f"{name} is damaged: {reason}; {advice}")


def check(content: Any, kind: Any, name: object, error: type[MyPTError] = MyPTError, advice: str = "restore it") -> Any:
    """The same for JSON that has been parsed."""
    try:
        return as_kind(content, kind)
    except Wrong as problem:
        place = f" at {at(problem.place)}" if problem.place else ""
        raise error(f"{name} is damaged{place}: {problem}; {advice}") from None


def as_kind(content: Any, kind: Any) -> Any:
    """The result of `json.loads` as a value of the type `kind`. Raises Wrong."""
    return _check_of(kind).fit(content)


def at(place: list[str | int]) -> str:
    """splits.train.shards[3].tokens"""
    steps = [
        f"[{step}]" if isinstance(step, int) else f".{step if step.isidentifier() and step.isascii() else found(step)}"
        for step in place
    ]
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


class _Check(NamedTuple):
    """The check of one type. fit: returns a value of the type, or raises Wrong. expected: the type in words."""

    fit: Callable[[Any], Any]
    expected: str


@cache
def _check_of(kind: Any) -> _Check:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if origin is Annotated:
        return _annotated(*inner)
    if origin in (Union, types.UnionType):
        return _union([_check_of(part) for part in inner])
    if origin is Literal:
        is_one = lambda value: any(type(value) is type(one) and value == one for one in inner)  # noqa: E731
        return _simple(is_one, " or ".join(map(found, inner)))
    if isinstance(kind, types.FunctionType):
        return _Check(kind, "another value")
    if list in (kind, origin):
        return _list(repeat(_check_of(*inner or (Any,)).fit), list)
    if origin is tuple and ... in inner:
        return _list(repeat(_check_of(inner[0]).fit), tuple)
    if origin is tuple:
        return _list([_check_of(part).fit for part in inner], tuple, len(inner))
    if dict in (kind, origin):
        return _dict(*(_check_of(part).fit for part in inner or (str, Any)))
    hints = _hints(kind)
    if is_typeddict(kind):
        return _Check(_object(hints, sorted(kind.__required_keys__), _anything), "an object")
    if is_dataclass(kind):
        return _dataclass(kind, hints)
    return _list([_check_of(hints[name]).fit for name in kind._fields], kind._make, len(kind._fields))  # a NamedTuple


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True).items()
    return {name: get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint for name, hint in hints}


def _simple(holds: Callable[[Any], bool], expected: str) -> _Check:
    def fit(value: Any) -> Any:
        if not holds(value):
            raise Unfit(value, expected)
        return value

    return _Check(fit, expected)


def _anything(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list | dict):
        if depth == DEEPEST:
            raise Wrong(f"nested more than {DEEPEST} levels deep")
        for part in value.values() if isinstance(value, dict) else value:
            _anything(part, depth + 1)
    return value


_FLOAT = sys.float_info.max
_NULL = _simple(lambda value: value is None, "null")
_SIMPLE: dict[Any, _Check] = {
    Any: _Check(_anything, "any value"),
    object: _Check(lambda value: value, "any value"),
    int: _simple(lambda value: type(value) is int and -(2**63) <= value < 2**63, "a whole number"),
    # Two comparisons that NaN fails.
    float: _simple(lambda value: type(value) in (int, float) and -_FLOAT <= value <= _FLOAT, "a finite number"),
    str: _simple(lambda value: type(value) is str, "text"),
    bool: _simple(lambda value: type(value) is bool, "true or false"),
    type(None): _NULL,
    None: _NULL,
}


def _annotated(base: Any, *notes: Any) -> _Check:
    check = _check_of(base)
    for note in notes:
        if isinstance(note, PartOf):
            check = _Check(_object(_hints(note.kind), (), _anything), "an object")
        elif isinstance(note, Rule):
            check = _both(check.fit, _simple(*note).fit, note.expected)
        elif isinstance(note, type):
            check = _both(check.fit, note, check.expected)
    return check


def _both(first: Callable[[Any], Any], second: Callable[[Any], Any], expected: str) -> _Check:
    return _Check(lambda value: second(first(value)), expected)


def _union(checks: list[_Check]) -> _Check:
    expected = " or ".join(check.expected for check in checks)

    def fit(value: Any) -> Any:
        deepest = None
        for check in checks:
            try:
                return check.fit(value)
            except Wrong as problem:
                if problem.place:
                    deepest = problem  # of the only type that goes so far
        raise deepest or Unfit(value, expected)

    return _Check(fit, expected)


def _list(checks: Iterable[Callable[[Any], Any]], make: Callable, length: int | None = None) -> _Check:
    """The check of a list by one check for each value, and what `make` makes of the values. length: None: any."""
    expected = "a list" if length is None else f"a list of {length}"

    def fit(value: Any) -> Any:
        if type(value) is not list or length not in (None, len(value)):
            raise Unfit(value, expected)
        results = []
        try:
            for part, check in zip(value, checks, strict=False):
                results.append(check(part))
        except Wrong as problem:
            problem.place.insert(0, len(results))
            raise
        return make(results)

    return _Check(fit, expected)


def _dict(fit_key: Callable[[Any], Any], inner: Callable[[Any], Any]) -> _Check:
    members = _object({}, (), inner)

    def fit(value: Any) -> dict:
        result = members(value)
        for key in result:
            fit_key(key)
        return result

    return _Check(fit, "an object")


def _object(
    hints: dict[str, Any], required: Iterable[str], other: Callable[[Any], Any] | None
) -> Callable[[Any], dict]:
    """The check of an object. other: checks the keys that `hints` does not name; None: they are dropped."""
    checks = {name: _check_of(hint).fit for name, hint in hints.items()}

    def fit(value: Any) -> dict:
        if type(value) is not dict:
            raise Unfit(value, "an object")
        for name in required:
            if name not in value:
                raise Wrong(f"the key {found(name)} is missing")
        result, name = {}, ""
        try:
            for name, part in value.items():
                if check := checks.get(name, other):
                    result[name] = check(part)
        except Wrong as problem:
            problem.place.insert(0, name)
            raise
        return result

    return fit


def _dataclass(kind: type, hints: dict[str, Any]) -> _Check:
    given = [field for field in fields(kind) if field.init]
    required = [f.name for f in given if f.default is MISSING and f.default_factory is MISSING]
    members = _object({field.name: hints[field.name] for field in given}, required, None)

    def fit(value: Any) -> Any:
        made = kind(**members(value))
        if hasattr(made, "check_fields"):
            made.check_fields()
        return made

    return _Check(fit, "an object")
