"""Reads typed fields out of a request's JSON object; a wrong one is a 400 that names it."""

import json
from collections.abc import Mapping
from typing import Any

from infinilm_babysitter.mock_engine.errors import ApiError, Fault


def parse_object(raw: bytes) -> Mapping[str, Any]:
    """The request body as a JSON object.

    Raises:
        ApiError: the body is no JSON, or is JSON but no object.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(Fault.INVALID_JSON, f"The request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        kind = type(body).__name__
        raise ApiError(Fault.INVALID_JSON, f"The request body must be a JSON object, not {kind}.")
    return body


def invalid(param: str, expected: str, value: object) -> ApiError:
    """The error for a field that is there but unusable."""
    shown = json.dumps(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = f"Invalid value for '{param}': expected {expected}, got {shown}."
    return ApiError(Fault.INVALID_VALUE, message, param)


def missing(param: str) -> ApiError:
    """The error for a required field that is not there."""
    return ApiError(Fault.MISSING_FIELD, f"Missing required parameter: '{param}'.", param)


class Fields:
    """Typed access to one JSON object; `null` counts as absent, unknown fields are ignored.

    Every reader raises ApiError, naming the field, for a value that it cannot take.
    """

    def __init__(self, body: Mapping[str, Any], prefix: str = "") -> None:
        self._body = body
        self._prefix = prefix

    def raw(self, key: str) -> Any:
        """The value as it came; None where it is absent."""
        return self._body.get(key)

    def name(self, key: str) -> str:
        """The field as an error names it."""
        return self._prefix + key

    def boolean(self, key: str) -> bool:
        """True or false; absent is false."""
        value = self.raw(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise invalid(self.name(key), "true or false", value)
        return value

    def integer(self, key: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`."""
        value = self.raw(key)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise invalid(self.name(key), f"an integer from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`."""
        value = self.raw(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(self.name(key), "a number", value)
        if not low <= value <= high:
            raise invalid(self.name(key), f"a number from {low:g} to {high:g}", value)
        return value

    def text(self, key: str) -> str | None:
        """A string."""
        value = self.raw(key)
        if value is not None and not isinstance(value, str):
            raise invalid(self.name(key), "a string", value)
        return value

    def strings(self, key: str, most: int) -> tuple[str, ...]:
        """A string or a list of at most `most` strings, none of them empty."""
        value = self.raw(key)
        if value is None:
            return ()
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) > most:
            raise invalid(self.name(key), f"a string or a list of at most {most} strings", value)
        if not all(isinstance(item, str) and item for item in items):
            raise invalid(self.name(key), "strings that are not empty", value)
        return tuple(items)

    def nested(self, key: str) -> "Fields | None":
        """The fields of an object inside this one."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid(self.name(key), "an object", value)
        return Fields(value, prefix=f"{self.name(key)}.")
