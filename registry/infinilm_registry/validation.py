"""From JSON to checked values: every fault of a body at once (D14, D17)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from infinilm_registry import timestamps
from infinilm_registry.addresses import (
    Networks,
    base_url_problem,
    host_problem,
    same_host,
    url_problem,
)
from infinilm_registry.errors import MISSING, Fault, InvalidRequestError
from infinilm_registry.fields import CHECKS
from infinilm_registry.service import ANYBODY, Sender, Service

REQUIRED = ("name", "host", "port", "hostname", "url", "status")
OPTIONAL = ("timestamp", "metadata", "weight", "instance_id", "heartbeat_interval")
_SENDER = ("instance_id", "generation")
CHANGEABLE = ("host", "port", "hostname", "url", "status", "metadata", "weight")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a heartbeat, an update or a removal says about its sender."""

    status: str | None = None
    sender: Sender = ANYBODY


def parse_json(raw: bytes) -> object:
    """The value of a body.

    Raises:
        InvalidRequestError: not JSON (NaN and Infinity are not), nested beyond reason, or with a
            number that we could not write back (1e999).
    """
    try:
        return json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        fault = Fault("body", raw[:100].decode("utf-8", "replace"), "is not JSON")
        raise InvalidRequestError([fault], "Invalid JSON") from None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _refuse_constant(text: str) -> object:
    raise ValueError(text)


def parse_registration(body: object, allowed: Networks) -> Service:
    """The service that a POST describes; keys that are not ours are ignored.

    Raises:
        InvalidRequestError: with every fault.
    """
    given = _object(body)
    faults = [Fault(key, None, MISSING) for key in REQUIRED if given.get(key) is None]
    wrong = _field_faults(given, REQUIRED + OPTIONAL)
    faulty = {fault.key for fault in wrong}
    faults += wrong + _address_faults({k: v for k, v in given.items() if k not in faulty}, allowed)
    if faults:
        raise InvalidRequestError(faults)
    return _service(given)


def parse_update(body: object) -> dict[str, Any]:
    """The changes that a PUT asks for, each valid by itself.

    Raises:
        InvalidRequestError: with every fault.
    """
    given = _object(body)
    if faults := _field_faults(given, (*CHANGEABLE, *_SENDER)):
        raise InvalidRequestError(faults)
    return {key: given[key] for key in CHANGEABLE if given.get(key) is not None}


def updated(service: Service, changes: Mapping[str, Any], allowed: Networks) -> Service:
    """`service` with `changes`; a new host or port moves the URL along.

    Raises:
        InvalidRequestError: the parts do not fit together.
    """
    merged = replace(service, **changes)
    if "url" not in changes:
        merged = replace(merged, url=service.moved_url(merged.host, merged.port))
    if faults := address_faults(merged, allowed):
        raise InvalidRequestError(faults)
    return merged


def parse_heartbeat(body: object, query: Mapping[str, str]) -> Heartbeat:
    """What a body of `{status?, instance_id?, generation?}` says; what the query says wins.

    Raises:
        InvalidRequestError: with every fault.
    """
    given = {**_object(body), **{key: query[key] for key in _SENDER if key in query}}
    if query.get("generation", "").isdecimal():
        given["generation"] = int(query["generation"][:20])
    if faults := _field_faults(given, ("status", *_SENDER)):
        raise InvalidRequestError(faults)
    sender = Sender(given.get("instance_id"), given.get("generation"))
    return Heartbeat(given.get("status"), sender)


def address_faults(service: Service, allowed: Networks) -> list[Fault]:
    """What is wrong with the places that `service` names."""
    return _address_faults(service.as_record(), allowed)


def _address_faults(given: Mapping[str, Any], allowed: Networks) -> list[Fault]:
    """The same, as far as host, port, url and metadata are there and of the right type."""
    host, port, url = (given.get(key) for key in ("host", "port", "url"))
    found = []
    if host is not None:
        found.append(("host", host, host_problem(host, allowed)))
    if url is not None and host is not None and port is not None:
        found.append(("url", url, url_problem(url, host, port)))
    elif url is not None:
        found.append(("url", url, base_url_problem(url)))
    health_url = (given.get("metadata") or {}).get("health_url")
    if health_url is not None:
        found.append(("metadata.health_url", health_url, _health_url_problem(health_url, host)))
    return [Fault(key, value, problem) for key, value, problem in found if problem]


def _health_url_problem(url: object, host: str | None) -> str | None:
    if not isinstance(url, str):
        return "must be a URL"
    problem = base_url_problem(url)
    if not problem and host and not same_host(urlsplit(url).hostname or "", host):
        # Otherwise whoever may register could make the registry call any address.
        return f"must have the registered host {host!r}"
    return problem


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        fault = Fault("body", body, "must be a JSON object")
        raise InvalidRequestError([fault])
    return dict(body)


def _field_faults(given: Mapping[str, object], keys: tuple[str, ...]) -> list[Fault]:
    found = ((key, given[key]) for key in keys if given.get(key) is not None)
    problems = ((key, value, CHECKS[key](value)) for key, value in found)
    return [Fault(key, value, problem) for key, value, problem in problems if problem]


def _service(given: Mapping[str, Any]) -> Service:
    stamp = given.get("timestamp")
    return Service(
        **{key: given[key] for key in REQUIRED},
        timestamp=timestamps.now_text() if stamp is None else timestamps.normalised(stamp),
        metadata=given.get("metadata") or {},
        weight=1 if given.get("weight") is None else given["weight"],
        instance_id=given.get("instance_id"),
        heartbeat_interval=given.get("heartbeat_interval"),
    )
