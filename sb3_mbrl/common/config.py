"""Checks of configurations from files, before any object is made from them."""

import json
import sys
from collections.abc import Mapping, Set
from typing import Any

Kind = type | Set[str] | list["Kind"] | tuple["Kind", None] | Mapping[str, "Kind"]
"""
The kind of a value: ``int``, ``float`` (finite; an integer is accepted too), ``bool``, ``str`` or ``dict``; a set: one of
these names; ``[kind]``: a list; ``(kind, None)``: a value that may be null; a mapping: a mapping with exactly these keys.
"""
_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text", dict: "a mapping"}


def read_json(text: str | bytes, source: str) -> dict[str, Any]:
    """
    :param text: the content of a file
    :param source: the file, for the message
    :return: the mapping that it holds
    :raises ValueError: it is not JSON, or not a mapping
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is damaged: its configuration is not JSON ({error}).") from error
    _require(isinstance(config, dict), config, "a mapping", source, "its configuration")
    return config  # type: ignore[no-any-return]


def check_config(value: Any, kind: Kind, source: str, name: str = "its configuration") -> None:
    """
    :param value: a value from a file
    :param kind: the kind that it must have
    :param source: the file, for the message
    :param name: name of the value, for the message
    :raises ValueError: the value has another kind
    """
    if isinstance(kind, tuple):
        if value is not None:
            check_config(value, kind[0], source, name)
    elif isinstance(kind, Mapping):
        _require(isinstance(value, dict), value, "a mapping", source, name)
        _require(value.keys() == kind.keys(), sorted(value), f"a mapping of {sorted(kind)}", source, name)
        for key in kind:
            check_config(value[key], kind[key], source, key)
    elif isinstance(kind, list):
        _require(isinstance(value, list), value, "a list", source, name)
        for index, entry in enumerate(value):
            check_config(entry, kind[0], source, f"{name}[{index}]")
    elif isinstance(kind, Set):
        _require(isinstance(value, str) and value in kind, value, f"one of {sorted(kind)}", source, name)
    else:
        right = type(value) is kind
        if kind is float:
            right = type(value) in (int, float) and abs(value) <= sys.float_info.max
        _require(right, value, _WORDS[kind], source, name)


def _require(condition: bool, value: Any, expected: str, source: str, name: str) -> None:
    if not condition:
        raise ValueError(f"{source} is damaged: {name} must be {expected}, got {repr(value)[:200]}.")
