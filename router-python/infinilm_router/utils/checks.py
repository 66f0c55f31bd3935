"""Checks that turn raw values of flags, variables and JSON files into typed ones.

A check takes a JSON value and returns the typed one, or raises UnusableError with a text that
says what is wrong and what to give instead.
"""

import ipaddress
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

# Names and ids end up in header fields and log lines: no control characters, no line breaks.
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_HEADER_SAFE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_NGINX_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_TIME_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class UnusableError(ValueError):
    """A value can't be used; the text says why and what to give instead."""


MAX_PORT = 65535
MAX_ENGINE_PORT = 65534  # its babysitter listens on the port after it
DAY = 86400.0


@dataclass(frozen=True)
class Check:
    """How one setting is read: from a JSON value, from text, and back to JSON for display."""

    read: Callable[[object], Any]
    from_text: Callable[[str], object] = str
    to_json: Callable[[Any], object] = lambda value: value


def _number_from_text(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _list_from_text(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def is_number(value: object) -> TypeGuard[int | float]:
    """True for finite JSON numbers (true and false are none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # whole numbers may be larger; NaN is not less


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnusableError(f"not a whole number, give one from {low} to {high}")
        if not low <= value <= high:
            raise UnusableError(f"out of range, give a whole number from {low} to {high}")
        return value

    return Check(read, _number_from_text)


def decimal(low: float, high: float, unit: str) -> Check:
    """A number from `low` to `high`, fractions allowed, as float."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnusableError(f"not a number, give {unit} from {low:g} to {high:g}, such as 2.5")
        if not low <= value <= high:
            raise UnusableError(f"out of range, give {unit} from {low:g} to {high:g}")
        return float(value)

    return Check(read, _number_from_text)


def seconds(low: float = 0.01, high: float = DAY) -> Check:
    """A time in seconds."""
    return decimal(low, high, "seconds")


def one_of(*choices: str, aliases: dict[str, str] | None = None) -> Check:
    """One of the words `choices`; an alias is read as the word it stands for."""
    known = {word: word for word in choices} | (aliases or {})

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise UnusableError(f"not known, give one of {', '.join(known)}")
        return known[value]

    return Check(read)


def nginx_seconds(value: object) -> float:
    """Seconds as a number or as nginx writes them: "30s", "500ms", "1m"."""
    if isinstance(value, str) and (match := _NGINX_TIME.fullmatch(value)):
        value = float(match[1]) * _TIME_UNITS[match[2]]
    try:
        return float(seconds().read(value))
    except ValueError:
        raise UnusableError(
            'not a time over 0, give seconds such as 30 or text such as "30s"'
        ) from None


def text(value: object) -> str:
    """Text without control characters, not empty."""
    if not isinstance(value, str) or not _PRINTABLE.fullmatch(value):
        raise UnusableError("not usable text, give text without control characters")
    return value


def service_name(value: object) -> str:
    """A name that may stand in a header field: printable ASCII, no blanks at its ends."""
    if not isinstance(value, str) or not _HEADER_SAFE.fullmatch(value) or len(value) > 200:
        raise UnusableError("not a usable name, give 1 to 200 printable ASCII characters")
    return value


def host(value: object) -> str:
    """A host name or IP address, without scheme, port or brackets."""
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise UnusableError("not a host, give a name or IP address without scheme and port")
    return value


def port(value: object) -> int:
    """The port of an engine."""
    return int(whole(1, MAX_ENGINE_PORT).read(value))


def boolean(value: object) -> bool:
    """True or false, nothing else."""
    if not isinstance(value, bool):
        raise UnusableError("not a boolean, give true or false")
    return value


def many(item: Callable[[object], Any], to_json: Callable[[Any], object] = str) -> Check:
    """A list (in text: separated by commas) of values that `item` reads, as tuple."""

    def read(value: object) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = _list_from_text(value)
        if not isinstance(value, list):
            raise UnusableError("not a list, give a list or text separated by commas")
        return tuple(dict.fromkeys(item(part) for part in value))

    return Check(read, _list_from_text, lambda items: [to_json(part) for part in items])


def registry_url(value: object) -> str:
    """The base URL of a registry, without the slash at its end."""
    hint = "give a URL such as http://10.0.0.1:18000"
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise UnusableError(f"not a URL, {hint}")
    try:
        parts = urlsplit(value)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number or out of range
        raise UnusableError(f"not a URL, {hint}") from None
    if not fine or parts.query or parts.fragment:
        raise UnusableError(f"not a URL of a registry, {hint}")
    if "@" in parts.netloc:
        raise UnusableError(f"holds credentials, which would be shown by /health; {hint}")
    return value.rstrip("/")


def path_prefix(value: object) -> str:
    """The start of a URL path."""
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value) or set(value) & set("?#"):
        raise UnusableError("not a path prefix, give one that starts with /, such as /v2/")
    return value


def network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network in CIDR form; a plain address is the network of that address alone."""
    try:
        # A zone (fe80::1%eth0) means something on one machine only.
        return ipaddress.ip_network(text(value).replace("%", "no zones"))
    except ValueError:
        raise UnusableError("not a network, give CIDR form such as 10.0.0.0/8") from None


def _path(value: object) -> Path | None:
    if value is None or value in ("", "none"):
        return None
    return Path(text(value))


def path() -> Check:
    """A file or folder; "", "none" and null mean none."""
    return Check(_path, str, lambda value: None if value is None else str(value))


def _unique_keys(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise UnusableError(f"key {key!r} stands twice in one object, keep one of them")
        result[key] = value
    return result


def _no_number(name: str) -> object:
    raise UnusableError(f"{name} is no JSON number, give a finite one")


def read_json(file: Path) -> object:
    """The JSON value in `file`.

    Raises:
        UnusableError: it can't be read, is no JSON, or repeats a key; the text says where.
    """
    try:
        return json.loads(
            file.read_text("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_number
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UnusableError(f"not JSON ({error.msg}, {where}), correct it there") from None
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 (byte {error.start}), save it as UTF-8") from None
    except RecursionError:
        raise UnusableError("nested too deeply, give a flatter file") from None
    except OSError as error:
        raise UnusableError(f"can't be read ({error.strerror}), give a readable file") from None
