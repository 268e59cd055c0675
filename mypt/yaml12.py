"""YAML 1.2 scalars on PyYAML, which reads 1.1: here `3e-4` is a number, `no` is a string, a key comes once."""

import re

import yaml

_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute, here without the 1.1 rules
    # YAML 1.2's core schema alone: no dates, sets or bytes, which no setting is.
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} comes twice", key_node.start_mark)
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
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Dumper.add_representer(str, _represent_str)


def load_yaml(text: str):
    """Parse one document into plain Python values. Raises yaml.YAMLError."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # A mapping as a key, `!!int x` or `!!bool x`, a number of thousands of digits, brackets nested too deep.
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None
    # Each value that is written takes a character; aliases can make more of them, of one in itself without end.
    unseen, count = [value], 0
    while unseen:
        item, count = unseen.pop(), count + 1
        if count > len(text) + 1:
            raise yaml.YAMLError("aliases (*name) repeat values too often or without end; write the values out")
        if isinstance(item, dict):
            unseen += item.values()
        elif isinstance(item, list):
            unseen += item
    return value


def dump_yaml(value) -> str:
    """Write plain values so that `load_yaml` gives them back, in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
