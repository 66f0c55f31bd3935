#!/usr/bin/env python3
"""Write an nginx configuration that spreads requests over engines, or over several routers.

Engines come from a file (`[...]`, `{"services": [...]}` or a router_config.json), from --services,
or from both. Streams pass unbuffered. Exit codes: 0 written, 64 faults in flags or files (all are
reported), 74 the output cannot be written.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config_tools import ConfigError, Parser, Rule, entry_faults, is_integer, read_json, write

METHODS = ("round_robin", "least_conn", "ip_hash")
NAME = r"[A-Za-z0-9._-]{1,128}"
HOST = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"
TIME = r"(?=.)([0-9]+y)?([0-9]+M)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s?)?"
SPECIFICATION = re.compile(r"([^:]+):(\[[^\]]*\]|[^:\[\]]+):([0-9]+)(?::([0-9]+))?")
PIECE = 3000  # bytes of one parameter; nginx takes 4096


@dataclass(frozen=True)
class Service:
    """One server of the upstream group; the last three mean what they mean to nginx."""

    name: str
    host: str
    port: int
    weight: int = 1
    max_fails: int = 3
    fail_timeout: str = "30s"
    backup: bool = False


@dataclass(frozen=True)
class Settings:
    """What the whole configuration is made from; timeouts are in seconds."""

    router_port: int
    upstream_name: str
    method: str
    proxy_timeout: int
    proxy_connect_timeout: int
    services: tuple[Service, ...]


def matches(value: object, pattern: str) -> bool:
    """Whether `value` is a string that the whole pattern describes."""
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


RULES: Mapping[str, Rule] = {
    "name": Rule(lambda value: matches(value, NAME), "1 to 128 letters, digits and . _ -", False),
    "host": Rule(lambda value: matches(value, HOST), "a host name or an address"),
    "port": Rule(lambda value: is_integer(value, 1, 65535), "an integer from 1 to 65535"),
    "weight": Rule(lambda value: is_integer(value, 0, 65535), "an integer from 0 to 65535", False),
    "max_fails": Rule(
        lambda value: is_integer(value, 0, 65535), "an integer from 0 to 65535", False
    ),
    "fail_timeout": Rule(
        lambda value: is_integer(value, 0, 10**6) or matches(value, TIME),
        'seconds or a time as nginx writes it, like "30s"',
        False,
    ),
    "backup": Rule(lambda value: isinstance(value, bool), "true or false", False),
    "metadata": Rule(lambda value: isinstance(value, dict), "an object", False),
}


def to_service(entry: Mapping[str, object], number: int) -> Service:
    """The service of an entry without faults; one without a name is called by its number."""
    known = {key: value for key, value in entry.items() if key != "metadata"}
    if is_integer(known.get("fail_timeout"), 0, 10**6):
        known["fail_timeout"] = f"{known['fail_timeout']}s"
    return Service(**{"name": f"service_{number}", **known})  # type: ignore[arg-type]  # checked


def read_services(path: Path) -> list[object]:
    """The service entries of a file, unchecked; ConfigError if it has none of the three shapes."""
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("static_services", content)
    if isinstance(content, dict):
        content = content.get("services")
    if not isinstance(content, list):
        raise ConfigError([f'{path}: no list of services; expected [...] or {{"services": [...]}}'])
    return content


def parse_specification(text: str) -> dict[str, object]:
    """`name:host:port[:weight]` as a service entry, unchecked. IPv6 hosts stand in brackets.

    Raises:
        ConfigError: it has another shape.
    """
    parts = SPECIFICATION.fullmatch(text)
    if parts is None:
        reason = "must be name:host:port or name:host:port:weight, IPv6 hosts in brackets"
        raise ConfigError([f"--services: {text}: {reason}"])
    entry: dict[str, object] = {"name": parts[1], "host": parts[2], "port": int(parts[3])}
    return entry if parts[4] is None else {**entry, "weight": int(parts[4])}


def collect_services(config_file: Path | None, specifications: str | None) -> tuple[Service, ...]:
    """The services of file and flag; ConfigError with the faults of both."""
    sources: list[tuple[str, object]] = []
    faults: list[str] = []
    if config_file is not None:
        try:
            entries = read_services(config_file)
            sources += [(f"{config_file}: services[{i}]", entry) for i, entry in enumerate(entries)]
        except ConfigError as error:
            faults += error.faults
    for text in filter(None, map(str.strip, (specifications or "").split(","))):
        try:
            sources.append((f"--services: {text}", parse_specification(text)))
        except ConfigError as error:
            faults += error.faults
    for where, entry in sources:
        faults += entry_faults(where, entry, RULES)
    if not sources and not faults:
        faults.append("no services; name them with --config-file or --services name:host:port,...")
    if faults:
        raise ConfigError(faults)
    return tuple(
        to_service(entry, number)
        for number, (_, entry) in enumerate(sources, 1)
        if isinstance(entry, dict)
    )


def group_faults(settings: Settings) -> list[str]:
    """What nginx would refuse in the group as a whole."""
    faults = []
    backups = [service.name for service in settings.services if service.backup]
    if settings.method == "ip_hash" and backups:
        faults.append(
            f"--load-balancing ip_hash: nginx has no backup servers with it; "
            f"remove backup from {', '.join(backups)} or choose another method"
        )
    if settings.services and len(backups) == len(settings.services):
        faults.append("services: all are backup; nginx needs at least one that is not")
    return faults


def server_line(service: Service) -> str:
    """The `server` directive of one service; one of weight 0 takes no requests."""
    parameters = [f"max_fails={service.max_fails}", f"fail_timeout={service.fail_timeout}"]
    parameters.insert(0, f"weight={service.weight}" if service.weight else "down")
    if service.backup:
        parameters.append("backup")
    return f"server {service.host}:{service.port} {' '.join(parameters)};  # {service.name}"


def upstream_block(settings: Settings) -> str:
    """The group of engines. The method must stand before `keepalive`."""
    lines = [] if settings.method == "round_robin" else [f"{settings.method};"]
    lines += [server_line(service) for service in settings.services]
    lines += ["keepalive 64;", "keepalive_timeout 3s;  # engines close idle connections at 5 s"]
    return "\n".join(f"        {line}" for line in lines)


def services_json(settings: Settings) -> str:
    """What `GET /services` answers: the group as it was when this file was written."""
    services = [
        {"name": service.name, "host": service.host, "port": service.port, "weight": service.weight}
        for service in settings.services
    ]
    return json.dumps({"upstream": settings.upstream_name, "services": services})


def services_answer(settings: Settings) -> str:
    """The directives that answer with it: in pieces, since nginx limits each parameter."""
    text = services_json(settings)
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    lines = [f"set $services_{number} '{piece}';" for number, piece in enumerate(pieces)]
    lines.append(f'return 200 "{"".join(f"$services_{n}" for n in range(len(pieces)))}";')
    return "\n            ".join(lines)


def proxy_location(settings: Settings) -> str:
    """Where everything but the answers of nginx itself goes."""
    return f"""        location / {{
            proxy_pass http://{settings.upstream_name};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;

            # Tokens reach the client as they come.
            proxy_buffering off;
            proxy_connect_timeout {settings.proxy_connect_timeout}s;
            proxy_send_timeout {settings.proxy_timeout}s;
            proxy_read_timeout {settings.proxy_timeout}s;

            # Another engine is tried once. nginx does not for a POST that it has begun to send, so
            # no answer is generated twice.
            proxy_next_upstream error timeout;
            proxy_next_upstream_tries 2;
        }}"""


def nginx_config(settings: Settings) -> str:
    """The whole configuration."""
    return f"""# Written by generate_nginx_config.py.
events {{
    worker_connections 4096;
}}

http {{
    upstream {settings.upstream_name} {{
{upstream_block(settings)}
    }}

    server {{
        listen {settings.router_port};
        server_name _;
        client_max_body_size 64m;

        location = /health {{
            access_log off;
            default_type text/plain;
            return 200 "healthy\\n";
        }}

        location = /services {{
            access_log off;
            default_type application/json;
            {services_answer(settings)}
        }}

        location = /backend-health {{
            access_log off;
            proxy_pass http://{settings.upstream_name}/health;
            proxy_connect_timeout 5s;
            proxy_read_timeout 5s;
        }}

{proxy_location(settings)}
    }}
}}
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; types are checked here, ranges in `flag_faults`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router-port", type=int, default=8080, help="port that nginx listens on")
    parser.add_argument("--upstream-name", default="infinilm_backend")
    parser.add_argument("--config-file", type=Path, help="JSON file with services")
    parser.add_argument("--services", help="name:host:port[:weight],...")
    parser.add_argument("--output", "-o", type=Path, help="default: standard output")
    parser.add_argument("--load-balancing", choices=METHODS, default="round_robin")
    parser.add_argument("--proxy-timeout", type=int, default=300, help="seconds without a byte")
    parser.add_argument("--proxy-connect-timeout", type=int, default=60, help="seconds")
    return parser.parse_args(argv)


def flag_faults(arguments: argparse.Namespace) -> list[str]:
    """Every flag whose value is out of range."""
    bounds = {
        "router_port": (1, 65535),
        "proxy_timeout": (1, 10**6),
        "proxy_connect_timeout": (1, 75),
    }
    faults = [
        f"--{key.replace('_', '-')} is {getattr(arguments, key)}; it must be from {least} to {most}"
        for key, (least, most) in bounds.items()
        if not least <= getattr(arguments, key) <= most
    ]
    if not matches(arguments.upstream_name, NAME):
        faults.append(
            f"--upstream-name is {arguments.upstream_name!r}; it must be {RULES['name'].wanted}"
        )
    return faults


def build_settings(arguments: argparse.Namespace) -> Settings:
    """The checked settings; ConfigError with every fault of flags and file."""
    faults = flag_faults(arguments)
    services: tuple[Service, ...] = ()
    try:
        services = collect_services(arguments.config_file, arguments.services)
    except ConfigError as error:
        faults += error.faults
    settings = Settings(
        router_port=arguments.router_port,
        upstream_name=arguments.upstream_name,
        method=arguments.load_balancing,
        proxy_timeout=arguments.proxy_timeout,
        proxy_connect_timeout=arguments.proxy_connect_timeout,
        services=services,
    )
    faults += group_faults(settings)
    if faults:
        raise ConfigError(faults)
    return settings


def main() -> int:
    """Build and write; returns the exit code."""
    arguments = parse_arguments()
    return write(lambda: nginx_config(build_settings(arguments)), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
