"""Services of static files: the three shapes of the file, and each entry -> `Service`."""

from collections.abc import Callable, Mapping
from typing import Any

from infinilm_router.registry.entries import base_url, declared_models
from infinilm_router.router.table import ENGINE_TYPE, Service
from infinilm_router.utils import checks

Report = Callable[[str, object, str], None]
"""Takes a fault: the key, its value (MISSING when there is none), the reason and what to do."""

MISSING = object()
LIST_HINT = "not a list, give the services in square brackets"


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise checks.UnusableError("not an object, give one in braces")
    return value


ENTRY_KEYS: Mapping[str, Callable[[object], Any]] = {
    "name": checks.service_name,
    "host": checks.host,
    "port": checks.port,
    "weight": checks.decimal(0, 1e6, "a weight").read,
    "metadata": _object,
    "backup": checks.boolean,
    "max_fails": checks.whole(0, 1_000_000).read,
    "fail_timeout": checks.nginx_seconds,
}


def services_of_file(content: object, report: Report) -> tuple[Service, ...]:
    """Read `[...]`, `{"services": [...]}` or a whole router_config.json."""
    if isinstance(content, list):
        return _services(content, "", report)
    if isinstance(content, dict) and "static_services" in content:
        for key in sorted(content.keys() - {"router", "static_services"}):
            report(key, content[key], "unknown key, use router and static_services")
        return services_of_section(content["static_services"], report)
    if isinstance(content, dict):
        return _services_of_object(content, "", report)
    report("", content, 'give [...], {"services": [...]} or a router_config.json')
    return ()


def services_of_section(section: object, report: Report) -> tuple[Service, ...]:
    """Read the `static_services` of a router_config.json."""
    if isinstance(section, dict):
        return _services_of_object(section, "static_services.", report)
    report("static_services", section, 'not an object, give {"services": [...]}')
    return ()


def _services_of_object(
    section: dict[str, object], prefix: str, report: Report
) -> tuple[Service, ...]:
    for key in sorted(section.keys() - {"services"}):
        report(prefix + key, section[key], "unknown key, use services")
    return _services(section.get("services", MISSING), f"{prefix}services", report)


def _services(entries: object, path: str, report: Report) -> tuple[Service, ...]:
    if not isinstance(entries, list):
        report(path, entries, LIST_HINT)
        return ()
    services: dict[str, Service] = {}
    for index, entry in enumerate(entries):
        service = _service(entry, f"{path}[{index}]", report)
        if service is not None and service.name in services:
            report(f"{path}[{index}].name", service.name, "used twice, names must differ")
        elif service is not None:
            services[service.name] = service
    return tuple(services.values())


def _service(entry: object, path: str, report: Report) -> Service | None:
    """One entry; every fault goes to `report`, and then the result is None."""
    if not isinstance(entry, dict):
        report(path, entry, "not an object, give {name?, host, port, ...}")
        return None
    values: dict[str, Any] = {}
    keys = dict.fromkeys((*entry, "host", "port"))
    for key in keys:
        try:
            values[key] = _value(entry, key)
        except checks.UnusableError as error:
            report(f"{path}.{key}", entry.get(key, MISSING), str(error))
    return _build(values) if len(values) == len(keys) else None


def _value(entry: Mapping[str, object], key: str) -> object:
    if key not in entry:
        raise checks.UnusableError("every service needs host and port")
    if key not in ENTRY_KEYS:
        known = ", ".join(ENTRY_KEYS)
        raise checks.UnusableError(f"unknown key, use one of {known}; others go into metadata")
    return ENTRY_KEYS[key](entry[key])


def _build(values: Mapping[str, Any]) -> Service:
    metadata = {"type": ENGINE_TYPE, **values.get("metadata", {})}
    models, models_list = declared_models(metadata)
    host, port = values["host"], values["port"]
    return Service(
        name=values.get("name", Service("", host, port).netloc(port)),
        host=host,
        port=port,
        url=base_url(host, port),
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
