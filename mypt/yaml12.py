"""Read and write YAML 1.2 with PyYAML, which reads 1.1: here `3e-4` is a number, `no` is text, a key comes once."""

import copy
import re
from functools import lru_cache

import yaml

_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
# YAML 1.2's core schema: the scalars that are not text, and the characters they begin with.
_SCALARS = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (_FLOAT, list("-+0123456789.")),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute, here without the 1.1 rules
    yaml_constructors = {  # noqa: RUF012 - no dates, sets or bytes, which no setting is
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")))
    }

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, ValueError) as error:  # `!!int x`, or a number of thousands of digits
            problem = f"a value cannot be read: {error}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            is_scalar = isinstance(key_node, yaml.ScalarNode)
            if not is_scalar or key in seen:
                problem = f"the key {key!r} comes twice" if is_scalar else "a list or a mapping cannot be a key"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012


def _construct_int(loader: yaml.Loader, node: yaml.Node) -> int:
    text = loader.construct_scalar(node)
    number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    str(number)  # ValueError for a hexadecimal one of more digits than Python writes
    return number


def _represent_str(dumper: yaml.Dumper, text: str) -> yaml.Node:
    # PyYAML folds these line breaks away in every style but the escaped one.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style)


for _class in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Dumper.add_representer(str, _represent_str)


def load_yaml(text: str):
    """Parse one document into plain Python values.

    Raises yaml.YAMLError: one line that names the problem, with its line and column.
    """
    return copy.deepcopy(_parsed(text)) if len(text) <= _KEPT else _parse(text)


def _parse(text: str):
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        begin = f", {error.context} from {_place(error.context_mark)}" if error.context_mark else ""
        raise yaml.YAMLError(f"{error.problem} in {_place(error.problem_mark)}{begin}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise yaml.YAMLError(" ".join(str(error).split())) from None
    except RecursionError:
        raise yaml.YAMLError("lists or mappings are nested too deeply") from None
    # Every value takes a character of the text, unless aliases repeat it: exponentially often, or without end.
    unseen, count = [value], 0
    while unseen:
        item, count = unseen.pop(), count + 1
        if count > len(text) + 1:
            raise yaml.YAMLError("aliases (*name) repeat values too often or without end; write the values out")
        unseen += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return value


_KEPT = 20_000  # characters up to which a parsed text is kept: a run's recipe is read again by its card and report
_parsed = lru_cache(maxsize=16)(_parse)


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def dump_yaml(value) -> str:
    """Write plain values so that `load_yaml` gives them back, in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flow_yaml(value) -> str:
    """As `dump_yaml`, in one line: `{key: value}`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31, default_flow_style=True)[
        :-1
    ]
