"""What each field of a registration may hold: a check gives None, or what it must be instead."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from infinilm_registry import timestamps

_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}")
_INSTANCE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WORD = re.compile(r"[A-Za-z0-9._ -]{1,64}")
_METADATA_BYTES = 16 * 1024
_METADATA_DEPTH = 32
_MODELS = 256
# Fits three missed beats into any lease and keeps the memory of past beats small.
_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.1, 86_400


def _name(value: object) -> str | None:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return None
    return "must be 1 to 128 letters, digits, dots, dashes or underscores"


def _text(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= 2048 and value.isprintable():
        return None
    return "must be a text of 1 to 2048 printable characters"


def _port(value: object) -> str | None:
    if type(value) is int and 1 <= value <= 65_534:
        return None
    return "must be an integer from 1 to 65534 (the port after it belongs to the babysitter)"


def _status(value: object) -> str | None:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return None
    return "must be a word such as running, starting or draining"


def _timestamp(value: object) -> str | None:
    try:
        timestamps.normalised(value)
    except ValueError:
        return "must be an ISO 8601 time"
    return None


def _number(value: object) -> bool:
    # A comparison takes integers of any length; math.isfinite does not.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _weight(value: object) -> str | None:
    if _number(value) and 0 <= cast("float", value) <= 1e9:
        return None
    return "must be a number from 0 to 1e9"


def _heartbeat_interval(value: object) -> str | None:
    if _number(value) and _SHORTEST_INTERVAL <= cast("float", value) <= _LONGEST_INTERVAL:
        return None
    return f"must be seconds from {_SHORTEST_INTERVAL} to {_LONGEST_INTERVAL}"


def _instance_id(value: object) -> str | None:
    if isinstance(value, str) and _INSTANCE_ID.fullmatch(value):
        return None
    return "must be 1 to 128 letters, digits, dots, dashes, underscores or colons"


def _generation(value: object) -> str | None:
    if type(value) is int and value >= 1:
        return None
    return "must be an integer of 1 or more"


def _metadata(value: object) -> str | None:
    if not isinstance(value, dict):
        return "must be an object"
    if _deeper_than(value, _METADATA_DEPTH):
        return f"must not be nested deeper than {_METADATA_DEPTH} levels"
    try:
        size = len(json.dumps(value, separators=(",", ":"), allow_nan=False))
    except ValueError:
        return "must not hold numbers that JSON cannot write"
    if size > _METADATA_BYTES:
        return f"must be at most {_METADATA_BYTES} bytes, this is {size}"
    return _models(value)


def _models(metadata: dict[str, object]) -> str | None:
    for key, item in (("models", str), ("models_list", dict)):
        models = metadata.get(key, [])
        if not isinstance(models, list) or not all(isinstance(model, item) for model in models):
            kind = "model names" if item is str else "model objects"
            return f"must have a list of {kind} as {key}"
        if len(models) > _MODELS:
            return f"must name at most {_MODELS} models in {key}, this names {len(models)}"
    return None


def _deeper_than(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _children(outer)]
        if not layer:
            return False
    return True


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


CHECKS: Mapping[str, Callable[[object], str | None]] = {
    "name": _name,
    "host": _text,
    "port": _port,
    "hostname": _text,
    "url": _text,
    "status": _status,
    "timestamp": _timestamp,
    "metadata": _metadata,
    "weight": _weight,
    "instance_id": _instance_id,
    "generation": _generation,
    "heartbeat_interval": _heartbeat_interval,
}
