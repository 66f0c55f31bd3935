"""Compare what came with what a case expects: pure functions that return a list of differences.

In expected JSON an object is a subset, a list has the same length, and these stand for values:
{"$type": "string" | "int" | "number" | "bool" | "object" | "list"}, {"$matches": REGEX},
{"$contains": [values that must be in the list]}, {"$length": N}, {"$any": true} (must be there).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "int": int,
    "number": (int, float),
    "bool": bool,
    "object": dict,
    "list": list,
}


def differences(expected: Any, actual: Any, where: str = "$") -> list[str]:
    """Why `actual` is not what `expected` describes."""
    if isinstance(expected, dict):
        if matcher := next((key for key in expected if key.startswith("$")), None):
            return MATCHERS[matcher](expected[matcher], actual, where)
        return _object(expected, actual, where)
    if isinstance(expected, list):
        return _list(expected, actual, where)
    same = expected == actual and isinstance(expected, bool) == isinstance(actual, bool)
    return [] if same else [f"{where}: {actual!r} instead of {expected!r}"]


def _object(expected: dict[str, Any], actual: Any, where: str) -> list[str]:
    if not isinstance(actual, dict):
        return [f"{where}: {actual!r} is no object"]
    found = []
    for key, value in expected.items():
        if key not in actual:
            found.append(f"{where}.{key}: missing in {sorted(actual)}")
        else:
            found += differences(value, actual[key], f"{where}.{key}")
    return found


def _list(expected: list[Any], actual: Any, where: str) -> list[str]:
    if not isinstance(actual, list) or len(actual) != len(expected):
        return [f"{where}: {actual!r} instead of {len(expected)} elements {expected!r}"]
    found = []
    for index, (left, right) in enumerate(zip(expected, actual, strict=True)):
        found += differences(left, right, f"{where}[{index}]")
    return found


def _type(name: str, actual: Any, where: str) -> list[str]:
    wrong_bool = isinstance(actual, bool) and name != "bool"
    right = isinstance(actual, TYPES[name]) and not wrong_bool
    return [] if right else [f"{where}: {actual!r} is no {name}"]


def _matches(pattern: str, actual: Any, where: str) -> list[str]:
    found = isinstance(actual, str) and re.search(pattern, actual)
    return [] if found else [f"{where}: {actual!r} does not match {pattern!r}"]


def _contains(values: list[Any], actual: Any, where: str) -> list[str]:
    if not isinstance(actual, list):
        return [f"{where}: {actual!r} is no list"]
    missing = [value for value in values if all(differences(value, item) for item in actual)]
    return [f"{where}: {value!r} is not in {actual!r}" for value in missing]


def _length(count: int, actual: Any, where: str) -> list[str]:
    right = isinstance(actual, list | dict | str) and len(actual) == count
    return [] if right else [f"{where}: {actual!r} has not {count} elements"]


MATCHERS: dict[str, Callable[[Any, Any, str], list[str]]] = {
    "$type": _type,
    "$matches": _matches,
    "$contains": _contains,
    "$length": _length,
    "$any": lambda *_: [],
}


def header_differences(
    expected: dict[str, Any], actual: Sequence[tuple[str, str]], where: str = "header"
) -> list[str]:
    """Chosen fields: text, a matcher, a list (every value, in order) or null (absent)."""
    found = []
    for name, value in expected.items():
        values = [text for key, text in actual if key.lower() == name.lower()]
        wanted = [] if value is None else value if isinstance(value, list) else [value]
        found += differences(wanted, values, f"{where} {name}")
    return found


def order_differences(expected: Sequence[str], actual: Sequence[tuple[str, str]]) -> list[str]:
    """The names given, in this order and spelling, among the fields (others may stand between)."""
    wanted = {name.lower() for name in expected}
    names = [name for name, _ in actual if name.lower() in wanted]
    return [] if names == list(expected) else [f"header order {names} instead of {expected}"]
