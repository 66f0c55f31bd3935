"""Flags, environment and file become one checked `RegistryConfig`; all faults at once (D17)."""

import argparse
import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NoReturn

from infinilm_registry.access import token_problem
from infinilm_registry.addresses import host_problem, literal_address
from infinilm_registry.errors import Fault
from infinilm_registry.etcd.place import SCHEME, Place

DEFAULT_STORE = str(Path(__file__).resolve().parents[2] / "logs" / "registry.sqlite3")
_ENVIRONMENT_PREFIX = "INFINILM_REGISTRY_"
_TOKEN_VARIABLE = "INFINILM_REGISTRY_TOKEN"  # noqa: S105 - the variable's name
_FLAGS = "command line"


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Checked settings. Times in seconds. `store` is a file, `memory` or `etcd://...`."""

    host: str = "0.0.0.0"  # noqa: S104 - engines on other machines register here
    port: int = 8081
    health_interval: float = 30.0
    health_timeout: float = 5.0
    cleanup_interval: float = 60.0
    heartbeat_timeout: float = 120.0
    removal_timeout: float = 300.0
    store: str = DEFAULT_STORE
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    write_rate: float = 50.0
    write_burst: int = 1_000
    max_services: int = 10_000
    store_chosen: bool = False  # a store that somebody asked for is used, or the start fails
    token: str | None = None

    def as_json(self) -> dict[str, object]:
        """What `--check-config` prints: everything, but of the token only whether there is one."""
        values = {option.key: getattr(self, option.key) for option in OPTIONS}
        networks = [str(network) for network in self.allowed_networks]
        return {**values, "allowed_networks": networks, "token_set": self.token is not None}


class ConfigError(Exception):
    """Every fault of the settings."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(_fault_line, faults)))
        self.faults = tuple(faults)


def _fault_line(fault: Fault) -> str:
    key = f": {fault.key} = {json.dumps(fault.value, default=str)}" if fault.key else ""
    return f"{fault.where}{key}: {fault.reason}"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: `parse` takes a text or a JSON value and raises ValueError with the reason."""

    key: str
    parse: Callable[[object], Any]
    help: str

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.key.replace("_", "-")


def _seconds(value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number <= 1e7:
        raise ValueError("must be a number above 0")
    return number


def _integer(lowest: int, highest: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        text = str(value)
        if isinstance(value, str | int) and text.isascii() and text.isdigit():
            number = int(text[:20])
            if lowest <= number <= highest:
                return number
        raise ValueError(f"must be an integer from {lowest} to {highest}")

    return parse


def _listen_host(value: object) -> str:
    # Listening everywhere is fine; only a registered address must name one machine.
    if isinstance(value, str) and (literal_address(value) or not host_problem(value, ())):
        return value
    raise ValueError("must be the IP address or name to listen on")


def _store(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a file, 'memory' or etcd://HOST:2379,HOST:2379,HOST:2379")
    if value.startswith(SCHEME):
        Place.parse(value)
        return value
    if "://" in value:
        raise ValueError(
            "must be a file, 'memory' or etcd://... (plain HTTP; TLS is not supported)"
        )
    if Path(value).is_dir():
        raise ValueError("is a folder; name a file in it")
    return value


def _networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be networks such as 10.0.0.0/8,192.168.0.0/16")
    return tuple(ip_network(part.strip()) for part in parts if part.strip())


OPTIONS = (
    Option("host", _listen_host, "address to listen on"),
    Option("port", _integer(0, 65_535), "port to listen on; 0 takes any free one and prints it"),
    Option("health_interval", _seconds, "seconds between two health probes of a service"),
    Option("health_timeout", _seconds, "seconds that a probe may take"),
    Option("cleanup_interval", _seconds, "seconds between two clean-ups of silent services"),
    Option("heartbeat_timeout", _seconds, "seconds of silence until a service is not healthy"),
    Option("removal_timeout", _seconds, "seconds of silence until a service is removed"),
    Option(
        "store",
        _store,
        "what keeps registrations: a file, 'memory', or etcd://HOST:2379,...[/CLUSTER] for several "
        "registries",
    ),
    Option(
        "allowed_networks", _networks, "networks (CIDR,...) that engines must be in; empty: all"
    ),
    Option("write_rate", _seconds, "writes a second that one client may send"),
    Option("write_burst", _integer(1, 1_000_000), "writes that one client may send at once"),
    Option("max_services", _integer(1, 1_000_000), "services that may be registered"),
)
_BY_KEY = {option.key: option for option in OPTIONS}
_DEFAULTS = {item.name: item.default for item in fields(RegistryConfig)}


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the command line asks for."""

    config: RegistryConfig
    check_only: bool


@dataclass(frozen=True, slots=True)
class _Given:
    """One raw setting and where it stands."""

    where: str
    name: str
    key: str
    value: object


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Invocation:
    """Flags win over the environment, the environment over the file, the file over the defaults.

    Raises:
        ConfigError: with every fault of all three.
    """
    flags, unknown = _parser().parse_known_args(arguments)
    faults = [Fault("", text, f"{text}: is not a flag of this program", _FLAGS) for text in unknown]
    given: list[_Given] = []
    if flags.config:
        given += _from_file(flags.config, faults)
    given += _from_environment(environment)
    given += _from_flags(vars(flags))
    values = _checked(given, faults)
    _check_together(values, faults)
    token = _token(environment, faults)
    if faults:
        raise ConfigError(faults)
    config = RegistryConfig(**values, store_chosen="store" in values, token=token)
    return Invocation(config, flags.check_config)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([Fault("", None, message, _FLAGS)])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="service_registry.py",
        description="Keeps the list of engines and babysitters, and whether they are alive.",
        epilog="Settings may also stand in the environment (INFINILM_REGISTRY_PORT, ...) or in the "
        f"file. Writes need the token in {_TOKEN_VARIABLE}, if it is set.",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        default = _DEFAULTS[option.key] or "none"
        parser.add_argument(option.flag, dest=option.key, help=f"{option.help} (default {default})")
    parser.add_argument("--config", metavar="FILE", help='JSON file: {"registry": {"port": ...}}')
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective settings as JSON and end"
    )
    return parser


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for option in OPTIONS:
        if flags[option.key] is not None:
            yield _Given(_FLAGS, option.flag, option.key, flags[option.key])


def _from_environment(environment: Mapping[str, str]) -> Iterator[_Given]:
    for option in OPTIONS:
        name = _ENVIRONMENT_PREFIX + option.key.upper()
        value = environment.get(name)
        # Kubernetes sets ..._PORT=tcp://... for a service that is called infinilm-registry.
        if value and not (option.key == "port" and value.startswith("tcp://")):
            yield _Given("environment", name, option.key, value)


def _from_file(path: str, faults: list[Fault]) -> Iterator[_Given]:
    section = _section(path, faults)
    for key, value in section.items():
        if key in _BY_KEY:
            yield _Given(path, f"registry.{key}", key, value)
        else:
            faults.append(Fault(f"registry.{key}", value, _unknown(key, _BY_KEY), path))


def _section(path: str, faults: list[Fault]) -> Mapping[str, object]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(Fault("", None, f"cannot be read: {error.strerror}", path))
        return {}
    except (ValueError, RecursionError) as error:
        faults.append(Fault("", None, f"is not JSON: {error}", path))
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("registry"), dict):
        faults.append(Fault("", None, 'must look like {"registry": {...}}', path))
        return {}
    others = (key for key in content if key != "registry")
    faults += [Fault(key, content[key], _unknown(key, ["registry"]), path) for key in others]
    section: dict[str, object] = content["registry"]
    return section


def _unknown(key: str, known: Mapping[str, Option] | Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    return "is not a known key" + (f", did you mean {close[0]}?" if close else "")


def _checked(given: Sequence[_Given], faults: list[Fault]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in given:
        try:
            values[item.key] = _BY_KEY[item.key].parse(item.value)
        except ValueError as error:
            faults.append(Fault(item.name, item.value, str(error), item.where))
    return values


def _token(environment: Mapping[str, str], faults: list[Fault]) -> str | None:
    token = environment.get(_TOKEN_VARIABLE) or None
    if token and (problem := token_problem(token)):
        faults.append(Fault("", None, f"{_TOKEN_VARIABLE} {problem}", "environment"))
    return token


def _check_together(values: Mapping[str, Any], faults: list[Fault]) -> None:
    silent = values.get("heartbeat_timeout", _DEFAULTS["heartbeat_timeout"])
    removed = values.get("removal_timeout", _DEFAULTS["removal_timeout"])
    if removed < silent:
        reason = f"must not be shorter than heartbeat_timeout ({silent:g})"
        faults.append(Fault("removal_timeout", removed, reason, "settings together"))
