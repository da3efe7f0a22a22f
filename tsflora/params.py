"""YAML as DVC reads it: version 1.2, every key once, and nothing that two readers take for two different values."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tsflora.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
    "merge": re.compile("<<"),  # of YAML 1.1, and kept by every reader
}
"""What a plain scalar is in YAML 1.2 (its chapter 10.3); all else is text. PyYAML has the rules of YAML 1.1."""
_DIVIDED = re.compile(r"[-+]?0[0-9]+|[-+]0o[0-7]+|[-+]?\.[0-9]+[eE][0-9]+")
"""Octal to some readers, and not a number to others: what the two schemata alone do not show."""


def read_yaml(path: Path | str) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: as `parse_yaml`, or the file cannot be read or is not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for; `where` names the text in the error line.

    Raises:
        ConfigError: not YAML, a key twice in one mapping, or a plain scalar (`010`, `1_000`, `yes`, `1:30`) that is one
            value to a reader of YAML 1.1 and another to one of 1.2; the line is named.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{where}{_line(error)}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where} is not YAML{_line(error)}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply") from None


def _line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f", line {mark.line + 1}"


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.deep_construct = True  # an alias inside of what it stands for is then an error, not a circle

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + _sort(value)
        return super().resolve(kind, value, implicit)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        is_plain = self.peek_event().implicit[0]
        node = super().compose_scalar_node(anchor)
        if is_plain and self._is_ambiguous(node.value):
            raise _refused(
                f"{node.value} is read in different ways by YAML 1.1 and 1.2; write a plain number, true or false, "
                "or quote it as text",
                node,
            )
        return node

    def _is_ambiguous(self, value: str) -> bool:
        before = super().resolve(yaml.ScalarNode, value, (True, False)).removeprefix(_TAG)
        return (
            before not in ("str", _sort(value))
            or _DIVIDED.fullmatch(value) is not None
            or ("_" in value and _sort(value.replace("_", "")) in ("int", "float"))
        )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Before the base class lays merged mappings (`<<`) below the mapping's own keys, which may replace theirs.
        first: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = "<<" if key_node.tag == f"{_TAG}merge" else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _refused("a key is text or a number, not a list or a mapping", key_node)
            if key in first:
                raise _refused(f"key {key!r} is there twice, first in line {first[key]}", key_node)
            first[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # an explicit tag (`!!int x`), or a number without an end
            raise _refused(f"not a value of {node.tag.removeprefix(_TAG)!r}", node) from None


def _sort(value: str) -> str:
    """The name of a plain scalar's tag in YAML 1.2."""
    return next((tag for tag, pattern in _CORE_SCHEMA.items() if pattern.fullmatch(value)), "str")


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
