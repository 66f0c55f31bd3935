"""Services as others write them down (registry answers, static files, the saved list) -> Service."""

from collections.abc import Callable, Mapping
from typing import Any

from infinilm_router.router.table import ENGINE_TYPE, Service
from infinilm_router.utils import checks

Report = Callable[[str, object, str], None]
"""Takes a fault: key inside the entry, its value, and the reason."""

MISSING = object()
MAX_MODELS = 1000  # of one service; more is a broken answer, not an engine


def model_id(value: object) -> str | None:
    """The id if it is one that requests can name, else None."""
    if not isinstance(value, str) or len(value) > 512:
        return None
    try:
        return checks.text(value)
    except ValueError:
        return None


def model_objects(value: object) -> tuple[Mapping[str, Any], ...]:
    """The objects of an OpenAI model list that have a usable id; at most MAX_MODELS."""
    if not isinstance(value, list):
        return ()
    usable = (item for item in value if isinstance(item, dict) and model_id(item.get("id")))
    return tuple(usable)[:MAX_MODELS]


def declared_models(
    metadata: Mapping[str, Any],
) -> tuple[tuple[str, ...], tuple[Mapping[str, Any], ...]]:
    """The model ids that metadata names, and the full objects it has.

    Ids come from the first of `models` (list), `model` (text) and `models_list` (objects) that
    names any.
    """
    objects = model_objects(metadata.get("models_list"))
    listed = metadata.get("models")
    named = listed if isinstance(listed, list) else []
    for candidates in (named, [metadata.get("model")], [item["id"] for item in objects]):
        if ids := tuple(dict.fromkeys(i for item in candidates if (i := model_id(item)))):
            return ids[:MAX_MODELS], objects
    return (), objects


def service_from_registry(entry: object) -> Service:
    """A service as the registry describes it.

    Raises:
        ValueError: it can't be used; the text names the key.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"a service is not an object: {str(entry)[:80]!r}")  # noqa: TRY004
    metadata = entry.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    models, models_list = declared_models(metadata)
    weight = entry.get("weight")
    return Service(
        name=_field(entry, "name", checks.service_name),
        host=(host := _field(entry, "host", checks.host)),
        port=(port := _field(entry, "port", checks.port)),
        url=Service("", host, port).origin,
        weight=float(weight) if checks.is_number(weight) and weight >= 0 else 1.0,
        models=models,
        models_list=models_list,
        metadata=metadata,
        status=_status(entry.get("status")),
    )


def _field(entry: Mapping[str, object], key: str, read: Callable[[object], Any]) -> Any:
    try:
        return read(entry.get(key))
    except ValueError as error:
        raise ValueError(f"{key}: {str(entry.get(key))[:80]!r}: {error}") from None


def _status(value: object) -> str:
    return value[:40] if isinstance(value, str) and value else "running"


def registry_entry(service: Service) -> dict[str, object]:
    """The service in the registry's words, to be read again by `service_from_registry`."""
    return {
        "name": service.name,
        "host": service.host,
        "port": service.port,
        "url": service.url,
        "status": service.status,
        "weight": service.weight,
        "metadata": dict(service.metadata),
    }


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object, give one in braces")  # noqa: TRY004 - one error type
    return value


STATIC_KEYS: Mapping[str, Callable[[object], Any]] = {
    "name": checks.service_name,
    "host": checks.host,
    "port": checks.port,
    "weight": checks.decimal(0, 1e6, "a weight").read,
    "metadata": _object,
    "backup": checks.boolean,
    "max_fails": checks.whole(0, 1_000_000).read,
    "fail_timeout": checks.nginx_seconds,
}


def service_from_static(entry: object, report: Report) -> Service | None:
    """A service of a static file; every fault goes to `report`, and then the result is None."""
    if not isinstance(entry, dict):
        report("", entry, "not an object, give {name?, host, port, ...}")
        return None
    values: dict[str, Any] = {}
    sound = True
    for key in dict.fromkeys((*entry, "host", "port")):
        read = STATIC_KEYS.get(key)
        try:
            if read is None:
                known = ", ".join(STATIC_KEYS)
                raise ValueError(f"unknown key, use one of {known} (others belong in metadata)")  # noqa: TRY301
            if key not in entry:
                raise ValueError("missing, every service needs host and port")  # noqa: TRY301
            values[key] = read(entry[key])
        except ValueError as error:
            report(key, entry.get(key, MISSING), str(error))
            sound = False
    return _static_service(values) if sound else None


def _static_service(values: Mapping[str, Any]) -> Service:
    metadata = {"type": ENGINE_TYPE, **values.get("metadata", {})}
    models, models_list = declared_models(metadata)
    bare = Service("", values["host"], values["port"])
    return Service(
        name=values.get("name", bare.netloc(bare.port)),
        host=bare.host,
        port=bare.port,
        url=bare.origin,
        weight=values.get("weight", 1.0),
        models=models,
        models_list=models_list,
        metadata=metadata,
        source="static",
        # Files of the earlier version say it in metadata.
        backup=values.get("backup", metadata.get("backup") is True),
        max_fails=values.get("max_fails"),
        fail_timeout=values.get("fail_timeout"),
    )
