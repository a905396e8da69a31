"""YAML that people write and programs must not trust: small, shallow, without aliases, every key once."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from qxcompiler.errors import TargetError

__all__ = ["Lines", "parse_yaml", "read_yaml", "read_yaml_with_lines"]

Lines = dict[tuple[str | int, ...], int]
"""The line of a file, counted from 1, of every value, by the keys and indices that lead to it."""

LARGEST_FILE = 4 << 20
DEEPEST = 16


class _Loader(yaml.SafeLoader):
    """Refuses keys that repeat, of which the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key is not a name")
            if key in found:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {str(key)!r} is there twice")
            found.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The values of a YAML document.

    Raises:
        ValueError: it is not valid YAML, nested deeper than 16 levels, has aliases, or a key twice in one mapping.
    """
    return _parsed(text)[0]


def _parsed(text: str) -> tuple[Any, yaml.Node | None]:
    """The values of a document, and the nodes they were made of."""
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):  # before anything is built, which takes recursion
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"aliases (*{event.anchor}) are not taken")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"nested deeper than {DEEPEST} levels")
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except Exception as error:  # a value that is not what its tag says can raise anything
        raise ValueError(str(error) or type(error).__name__) from error


def read_yaml(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
        path: the file, of 4 MiB at most.
        what: what it should be, for messages: "a plan".
        remedy: what to do about a file that is none.

    Raises:
        TargetError: it cannot be read, is no mapping of names to values, or as `parse_yaml` says.
    """
    return _read(path, what, remedy)[0]


def read_yaml_with_lines(path: Path, what: str, remedy: str) -> tuple[dict[str, Any], Lines]:
    """As `read_yaml`, and on which line each value stands."""
    fields, root = _read(path, what, remedy)
    lines: Lines = {}
    waiting: list[tuple[tuple[str | int, ...], yaml.Node]] = [((), root)]
    while waiting:
        place, node = waiting.pop()
        lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*place, key.value)
                lines[inner] = key.start_mark.line + 1
                waiting.append((inner, value))
        elif isinstance(node, yaml.SequenceNode):
            waiting += [((*place, index), value) for index, value in enumerate(node.value)]
    return fields, lines


def _read(path: Path, what: str, remedy: str) -> tuple[dict[str, Any], yaml.Node]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise TargetError(path, f"cannot be read ({error.strerror or error})", "check the file") from error
    if len(data) > LARGEST_FILE:
        raise TargetError(path, f"larger than {LARGEST_FILE >> 20} MiB, too large for {what}", remedy)
    try:
        fields, root = _parsed(data.decode("utf-8-sig"))
    except ValueError as error:
        raise TargetError(path, f"not readable YAML ({error})", "correct the file") from error
    if root is None or not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise TargetError(path, "not a mapping of fields", remedy)
    return fields, root
