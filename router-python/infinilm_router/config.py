"""Flags, environment and JSON file -> one checked, frozen `RouterConfig`.

Flags win over the environment, the environment over the file. All faults are found at once, each
with where it stands, its key, its value, and what to do. Nothing later sees a raw value.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, NoReturn, cast

from infinilm_router.registry.entries import MISSING, service_from_static
from infinilm_router.router.table import Service
from infinilm_router.utils import checks
from infinilm_router.utils.checks import Check

REPOSITORY = Path(__file__).resolve().parents[2]
POLICIES = (
    "round_robin", "least_loaded", "power_of_two", "consistent_hash", "ip_hash", "random",
)  # fmt: skip
PROXY_TIMEOUTS = ("first_byte_timeout", "response_timeout", "idle_timeout")
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the configuration: where (flags, environment or file), key, value, why."""

    where: str
    key: str
    value: object
    reason: str

    def __str__(self) -> str:
        shown = "missing" if self.value is MISSING else json.dumps(self.value, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ": ".join(part for part in (self.where, self.key, shown, self.reason) if part)


class ConfigError(Exception):
    """The configuration can't be used; `faults` holds every reason."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a field of RouterConfig is read: its check, help, flag, file keys and variable."""

    check: Check
    about: str
    flag: str | None = None
    file_key: str | None = None
    variable: str | None = None


def _setting(default: object, check: Check, about: str, **names: str) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"setting": _Setting(check, about, **names)})


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
    engine_api_key_file: Path | None = _setting(
        None, checks.path(), "file with the API key that the router shows to engines"
    )
    state_dir: Path | None = _setting(
        None, checks.path(), 'folder for the last known services; "" or none = off (default: logs/)'
    )
    log_level: str = _setting(
        "info", checks.one_of("debug", "info", "warning", "error"), "least level that is logged"
    )
    access_log: str = _setting(
        "all", checks.one_of("all", "errors", "off"), "requests that get a log line"
    )
    static_services: tuple[Service, ...] = ()
    engine_api_key: str | None = field(default=None, repr=False)

    def to_json(self) -> str:
        """The effective settings as JSON with sorted keys; the API key is left out."""
        shown = {name: s.check.to_json(getattr(self, name)) for name, s in SETTINGS.items()}
        shown["static_services"] = [_service_to_json(s) for s in self.static_services]
        return json.dumps(shown, indent=2, sort_keys=True)


SETTINGS: Mapping[str, _Setting] = {
    f.name: cast("_Setting", f.metadata["setting"])
    for f in dataclasses.fields(RouterConfig)
    if "setting" in f.metadata
}
_PROXY_TIMEOUT = _Setting(
    checks.seconds(),
    "sets first-byte-timeout, response-timeout and idle-timeout together",
    variable="PROXY_TIMEOUT_SECONDS",
)


def _service_to_json(service: Service) -> dict[str, object]:
    names = ("name", "host", "port", "weight", "metadata", "backup", "max_fails", "fail_timeout")
    return {name: getattr(service, name) for name in names}


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line asks for."""

    config: RouterConfig
    check_only: bool


def load_config(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """Read the configuration.

    Raises:
        ConfigError: something is wrong with it; holds all faults.
        SystemExit: `--help` was asked for.
    """
    return _Loader().load(argv, environ)


class _Loader:
    """Collects values, each layer over the one before, and faults."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.values: dict[str, Any] = {}

    def load(self, argv: Sequence[str], environ: Mapping[str, str]) -> Command:
        flags = self._parse(argv)
        if flags.config is not None:
            self._file(Path(flags.config))
        self._layer("environment", _named_text(environ, lambda _, s: s.variable))
        self._layer("flags", _named_text(vars(flags), lambda name, _: name))
        if flags.static_services is not None:
            self._static_file(Path(flags.static_services))
        self._state_dir()
        self._api_key()
        if self.faults:
            raise ConfigError(self.faults)
        return Command(RouterConfig(**self.values), flags.check_config)

    def _fault(self, where: str, key: str, value: object, reason: str) -> None:
        self.faults.append(Fault(where, key, value, reason))

    def _parse(self, argv: Sequence[str]) -> argparse.Namespace:
        flags, unknown = _parser().parse_known_args(argv)
        for word in unknown:
            self._fault("flags", word, MISSING, "unknown, see --help for the flags")
        return flags

    def _layer(self, where: str, given: "Iterator[_Given]") -> None:
        """Check all values of one origin; the ones that are fine replace earlier ones."""
        explicit: dict[str, Any] = {}
        for name, setting, key, value, shown in given:
            try:
                checked = setting.check.read(value)
            except ValueError as error:
                self._fault(where, key, shown, str(error))
                continue
            if setting is _PROXY_TIMEOUT:
                self.values.update(dict.fromkeys(PROXY_TIMEOUTS, checked))
            else:
                explicit[name] = checked
        self.values.update(explicit)

    def _read(self, file: Path, flag: str) -> object:
        try:
            return checks.read_json(file)
        except ValueError as error:
            self._fault(str(file), flag, MISSING, str(error))
            return MISSING

    def _file(self, file: Path) -> None:
        content = self._read(file, "")
        if content is MISSING:
            return
        if not isinstance(content, dict):
            self._fault(str(file), "", content, 'not an object, give {"router": {...}}')
            return
        for key in content.keys() - {"router", "static_services"}:
            self._fault(str(file), key, content[key], "unknown key, use router and static_services")
        self._router_section(file, content.get("router", {}))
        section = content.get("static_services", {})
        if isinstance(section, dict):
            self._services_object(str(file), "static_services", section, required=False)
        else:
            self._fault(str(file), "static_services", section, 'give {"services": [...]}')

    def _router_section(self, file: Path, section: object) -> None:
        if not isinstance(section, dict):
            self._fault(str(file), "router", section, "not an object, give the settings in braces")
            return
        keys = _file_keys()
        seen: dict[str, str] = {}
        given: list[_Given] = []
        for key, value in section.items():
            name = keys.get(key)
            if name is None:
                self._fault(
                    str(file), f"router.{key}", value, f"unknown key, use one of {_known()}"
                )
            elif name in seen:
                reason = f"the same setting as {seen[name]}, keep one of them"
                self._fault(str(file), f"router.{key}", value, reason)
            else:
                seen[name] = key
                given.append((name, _setting_of(name), f"router.{key}", value, value))
        self._layer(str(file), iter(given))

    def _static_file(self, file: Path) -> None:
        """The three shapes of `--static-services`; a whole router_config.json is one of them."""
        where, content = str(file), self._read(file, "")
        if content is MISSING:
            return
        if isinstance(content, list):
            self._services(where, "", content)
        elif not isinstance(content, dict):
            self._fault(
                where, "", content, 'give [...], {"services": [...]} or a router_config.json'
            )
        elif "static_services" in content:
            for key in content.keys() - {"router", "static_services"}:
                self._fault(where, key, content[key], "unknown key, use router and static_services")
            section = content["static_services"]
            if isinstance(section, dict):
                self._services_object(where, "static_services", section, required=True)
            else:
                self._fault(where, "static_services", section, 'give {"services": [...]}')
        else:
            self._services_object(where, "", content, required=True)

    def _services_object(
        self, where: str, prefix: str, section: dict[str, object], *, required: bool
    ) -> None:
        path = f"{prefix}." if prefix else ""
        for key in section.keys() - {"services"}:
            self._fault(where, path + key, section[key], "unknown key, use services")
        if "services" in section or required:
            self._services(where, path + "services", section.get("services", MISSING))

    def _services(self, where: str, path: str, entries: object) -> None:
        if not isinstance(entries, list):
            self._fault(where, path, entries, "not a list, give the services in square brackets")
            return
        services: dict[str, Service] = {}
        for index, entry in enumerate(entries):
            place = f"{path}[{index}]"

            def report(key: str, value: object, reason: str, place: str = place) -> None:
                self._fault(where, f"{place}.{key}" if key else place, value, reason)

            service = service_from_static(entry, report)
            if service is not None and service.name in services:
                report("name", service.name, "used by another service, names must differ")
            elif service is not None:
                services[service.name] = service
        self.values["static_services"] = tuple(services.values())

    def _state_dir(self) -> None:
        """Default: logs/ beside the programs, but not for a port that nobody will come back to."""
        if "state_dir" in self.values:
            folder = self.values["state_dir"]
            if folder is not None and folder.exists() and not folder.is_dir():
                self._fault("flags or file", "state_dir", str(folder), "not a folder, give one")
        elif self.values.get("router_port") != 0:
            folder = REPOSITORY / "logs"
            usable = folder if folder.exists() else folder.parent
            self.values["state_dir"] = folder if os.access(usable, os.W_OK) else None

    def _api_key(self) -> None:
        file = self.values.get("engine_api_key_file")
        if file is None:
            return
        try:
            key = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = f"can't be read as a key ({error}), give a readable file"
            self._fault("flags or file", "engine_api_key_file", str(file), reason)
            return
        if not key or not all("!" <= char <= "~" for char in key):
            reason = "holds no usable key, put one line of printable ASCII without blanks into it"
            self._fault("flags or file", "engine_api_key_file", str(file), reason)
        self.values["engine_api_key"] = key


_Given = tuple[str, _Setting, str, object, object]
"""Field name, setting, key as it was written, JSON value, value as it was written."""


def _all_settings() -> dict[str, _Setting]:
    return {"proxy_timeout": _PROXY_TIMEOUT, **SETTINGS}


def _setting_of(name: str) -> _Setting:
    return _all_settings()[name]


def _file_keys() -> dict[str, str]:
    """Every key that may stand under "router" -> the field that it sets."""
    keys = {name: name for name in _all_settings()}
    return keys | {s.file_key: name for name, s in SETTINGS.items() if s.file_key}


def _known() -> str:
    return ", ".join(sorted(_file_keys()))


def _flag(name: str, setting: _Setting) -> str:
    return setting.flag or "--" + name.replace("_", "-")


def _named_text(
    texts: Mapping[str, Any], key_of: Callable[[str, _Setting], str | None]
) -> Iterator[_Given]:
    """The settings that `texts` (environment or parsed flags) gives under their `key_of`."""
    for name, setting in _all_settings().items():
        key = key_of(name, setting)
        value = texts.get(key) if key else None
        if value is None or (key == setting.variable and not value):
            continue  # a variable set to nothing counts as not set
        shown = key if key == setting.variable else _flag(name, setting)
        yield name, setting, cast("str", shown), setting.check.from_text(value), value


class _Parser(argparse.ArgumentParser):
    """Reports a flag without its value as a fault like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([Fault("flags", "", MISSING, f"{message}, see --help")])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distributed_router.py",
        description="One OpenAI-compatible endpoint in front of many engines.",
        epilog="Times are seconds, fractions allowed. Flags win over the environment "
        "(PROXY_TIMEOUT_SECONDS, CACHE_TYPE_ROUTING_THRESHOLD), the environment over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="JSON file with settings under router")
    parser.add_argument(
        "--static-services", metavar="FILE", help="JSON file with services beside the registry's"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective settings as JSON and exit"
    )
    defaults = {f.name: f.default for f in dataclasses.fields(RouterConfig)}
    for name, setting in _all_settings().items():
        default = defaults.get(name)
        shown = "" if default in (None, ()) else f" (default: {default})"
        parser.add_argument(
            _flag(name, setting), dest=name, metavar="X", help=setting.about + shown
        )
    return parser
