"""Services as a registry (and the saved list) writes them down -> `Service`, and back."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from infinilm_router.router.table import Service
from infinilm_router.utils import checks

T = TypeVar("T")

MAX_MODELS = 1000  # of one service; more is a broken answer, not an engine
MAX_DEPTH = 32
Models = tuple[tuple[str, ...], tuple[Mapping[str, Any], ...]]
"""Model ids, and the full OpenAI objects where known."""


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


def declared_models(metadata: Mapping[str, Any]) -> Models:
    """The models that metadata names.

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
        UnusableError: it can't be used; the text names the key.
    """
    if not isinstance(entry, dict):
        raise checks.UnusableError(f"not an object: {str(entry)[:80]!r}")
    metadata = entry.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if not _is_shallow(metadata, MAX_DEPTH):
        raise checks.UnusableError(f"metadata: nested deeper than {MAX_DEPTH} levels")
    models, models_list = declared_models(metadata)
    weight = entry.get("weight")
    name = _read(entry, "name", checks.service_name)
    host, port = _read(entry, "host", checks.host), _read(entry, "port", checks.port)
    status = entry.get("status")
    return Service(
        name=name,
        host=host,
        port=port,
        url=base_url(host, port),
        weight=max(0.0, float(weight)) if checks.is_number(weight) else 1.0,
        models=models,
        models_list=models_list,
        metadata=metadata,
        status=status[:40] if isinstance(status, str) and status else "running",
    )


def _is_shallow(value: object, levels: int) -> bool:
    """Whether it can be written as JSON again anywhere, without running out of stack."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


def _read(entry: Mapping[str, object], key: str, read: Callable[[object], T]) -> T:
    value = entry.get(key)
    try:
        return read(value)
    except ValueError as error:
        raise checks.UnusableError(f"{key}: {str(value)[:80]!r}: {error}") from None


def base_url(host: str, port: int) -> str:
    """`http://host:port`; what a registered `url` says beside that is not used for requests."""
    return f"http://{Service('', host, port).netloc(port)}"


def registry_entry(service: Service) -> dict[str, object]:
    """The service in the registry's words, to be read again by `service_from_registry`."""
    names = ("name", "host", "port", "url", "status", "weight", "metadata")
    return {name: getattr(service, name) for name in names}
