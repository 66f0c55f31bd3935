"""Every setting of the router, with its default, check and help: one frozen value."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal, cast

from infinilm_router.router.table import MAX_CONCURRENCY, Service
from infinilm_router.utils import checks
from infinilm_router.utils.checks import Check

POLICIES = (
    "round_robin", "least_loaded", "power_of_two", "consistent_hash", "ip_hash", "random",
)  # fmt: skip
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field of RouterConfig is read: its check, help, flag, file keys and variable."""

    check: Check
    about: str
    flag: str | None = None
    file_key: str | None = None
    variable: str | None = None


def _setting(default: object, check: Check, about: str, **names: str) -> Any:
    return field(default=default, metadata={"setting": Setting(check, about, **names)})


@dataclass(frozen=True)
class RouterConfig:
    """Every setting of the router. Times are seconds, sizes bytes."""

    host: str = _setting("0.0.0.0", Check(checks.host), "address to listen on")  # noqa: S104 - a service
    router_port: int = _setting(
        8080,
        checks.whole(0, checks.MAX_PORT),
        "port to listen on; 0 = any free one",
        file_key="port",
    )
    registry_urls: tuple[str, ...] = _setting(
        (), checks.many(checks.registry_url), "registries, separated by commas",
        flag="--registry-url", file_key="registry_url",
    )  # fmt: skip
    policy: str = _setting(
        "round_robin",
        checks.one_of(*POLICIES, aliases={"least_conn": "least_loaded"}),
        f"how to choose among engines: {', '.join(POLICIES)}",
        file_key="load_balancing_method",
    )
    cache_type_routing_threshold: int = _setting(
        51200, checks.whole(0, 2**40), "prompt size (bytes) over which engines with a static cache "
        "are preferred", variable="CACHE_TYPE_ROUTING_THRESHOLD",
    )  # fmt: skip
    health_interval: float = _setting(5.0, checks.seconds(), "time between probes of an engine")
    health_timeout: float = _setting(2.0, checks.seconds(), "limit of one probe")
    health_fall: int = _setting(3, checks.whole(1, 100), "failed probes that take an engine out")
    health_rise: int = _setting(2, checks.whole(1, 100), "good probes that bring it back")
    max_errors: int = _setting(
        3, checks.whole(0, 1000), "failed requests in a row that eject an engine; 0 = never"
    )
    max_concurrency: int = _setting(
        256, checks.whole(1, MAX_CONCURRENCY), "most requests at one engine at once; "
        "metadata.max_concurrency is an engine's own",
    )  # fmt: skip
    queue_size: int = _setting(
        128, checks.whole(0, 1_000_000), "most requests for a model that wait for an engine"
    )
    queue_timeout: float = _setting(30.0, checks.seconds(), "longest wait for an engine")
    queue_bytes: int = _setting(
        256 * MEBIBYTE, checks.whole(0, 2**40), "most memory of all waiting requests' bodies"
    )
    slow_start: float = _setting(
        10.0, checks.seconds(0), "time in which an engine that comes (back) takes up its share"
    )
    registry_sync_interval: float = _setting(
        5.0, checks.seconds(), "time between registry polls (beside the watch)"
    )
    service_removal_grace_period: float = _setting(
        60.0, checks.seconds(0), "time that a service gone from the registry is kept"
    )
    proxy_connect_timeout: float = _setting(
        2.0, checks.seconds(), "limit of connecting to an engine"
    )
    first_byte_timeout: float = _setting(300.0, checks.seconds(), "limit to a stream's first byte")
    response_timeout: float = _setting(
        600.0, checks.seconds(), "limit to the first byte of other answers"
    )
    idle_timeout: float = _setting(120.0, checks.seconds(), "longest silence inside an answer")
    stream_timeout: float = _setting(0.0, checks.seconds(0), "limit of a whole stream; 0 = none")
    sse_ping_interval: float = _setting(
        15.0, checks.seconds(0), "silence after which a stream gets a comment; 0 = never"
    )
    drain_delay: float = _setting(
        5.0, checks.seconds(0), "time between /health turning 503 and the port closing"
    )
    drain_timeout: float = _setting(120.0, checks.seconds(0), "time for running requests to end")
    head_timeout: float = _setting(10.0, checks.seconds(), "limit of reading a request's head")
    body_timeout: float = _setting(
        30.0, checks.seconds(), "longest silence inside a request's body"
    )
    keep_alive_timeout: float = _setting(75.0, checks.seconds(), "time an idle client may stay")
    write_timeout: float = _setting(60.0, checks.seconds(), "time a client may take no bytes")
    pool_idle_timeout: float = _setting(
        3.0, checks.seconds(0), "time an idle engine connection is kept"
    )
    max_body_bytes: int = _setting(64 * MEBIBYTE, checks.whole(1, 2**40), "largest request body")
    max_connections: int = _setting(4096, checks.whole(1, 1_000_000), "most client connections")
    proxy_paths: tuple[str, ...] = _setting(
        (), checks.many(checks.path_prefix), "further path prefixes that reach engines"
    )
    retry_on: tuple[str, ...] = _setting(
        (),
        checks.many(checks.one_of("reset-before-headers").read),
        "what else is sent a second time",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        (), checks.many(checks.network), "networks whose X-Forwarded-* fields are believed"
    )
    engine_api_key_file: Path | None = _setting(  # noqa: RUF009 - makes a field
        None, checks.path(), "file with the API key that the router shows to engines"
    )
    state_dir: Path | None = _setting(  # noqa: RUF009 - makes a field
        None, checks.path(), 'folder for the last known services; "" or none = off (default: logs/)'
    )
    handover: Path | None = _setting(  # noqa: RUF009 - makes a field
        None,
        checks.path(),
        "Unix socket at which a successor takes over the port (--take-over); none = off",
    )
    log_level: str = _setting(
        "info", checks.one_of("debug", "info", "warning", "error"), "least level that is logged"
    )
    access_log: Literal["all", "errors", "off"] = _setting(
        "all", checks.one_of("all", "errors", "off"), "requests that get a log line"
    )
    static_services: tuple[Service, ...] = ()
    engine_api_key: str | None = field(default=None, repr=False)
    take_over: bool = False  # the port of the router that runs: a way to start, not a setting

    def to_json(self) -> str:
        """The effective settings as JSON with sorted keys; the API key is left out."""
        shown = {name: s.check.to_json(getattr(self, name)) for name, s in SETTINGS.items()}
        shown["static_services"] = [_service_to_json(s) for s in self.static_services]
        return json.dumps(shown, indent=2, sort_keys=True)


SETTINGS: Mapping[str, Setting] = {
    f.name: cast("Setting", f.metadata["setting"])
    for f in dataclasses.fields(RouterConfig)
    if "setting" in f.metadata
}
PROXY_TIMEOUT = Setting(
    checks.seconds(),
    "sets first-byte-timeout, response-timeout and idle-timeout together",
    variable="PROXY_TIMEOUT_SECONDS",
)


def _service_to_json(service: Service) -> dict[str, object]:
    names = ("name", "host", "port", "weight", "metadata", "backup", "max_fails", "fail_timeout")
    return {name: getattr(service, name) for name in names}
