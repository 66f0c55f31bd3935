"""`register_service.py`: register, list and remove services by hand."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from infinilm_registry.access import token_problem
from infinilm_registry.addresses import base_url_problem, host_problem, netloc
from infinilm_registry.client import (
    TOKEN_VARIABLE,
    RegistryClient,
    RegistryClientError,
    RegistryRefusedError,
)

DEFAULT_REGISTRY = "http://localhost:8081"
_OK, _FAILED, _BAD_USAGE = 0, 1, 64


class UsageError(Exception):
    """Faulty arguments: one line for each fault."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 1 refused or no registry there, 64 faulty arguments."""
    try:
        parsed = _parser().parse_args(arguments)
        _check(parsed)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return _BAD_USAGE
    try:
        with RegistryClient(parsed.registry) as client:
            return _COMMANDS[parsed.command](client, parsed)
    except RegistryRefusedError as error:
        sys.stderr.write(f"refused: {error}\n")
        for fault in error.faults[1:]:
            sys.stderr.write(f"         {fault.get('key')}: {fault.get('reason')}\n")
        return _FAILED
    except RegistryClientError as error:
        sys.stderr.write(f"failed: {error}\n")
        return _FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage()}error: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="register_service.py", description="Register services by hand.")
    parser.add_argument(
        "--registry", default=DEFAULT_REGISTRY, metavar="URL", help="default %(default)s"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    register = commands.add_parser("register", help="add a service or replace it")
    for name, text in (
        ("name", "its name"),
        ("host", "where others reach it"),
        ("port", "its port"),
    ):
        register.add_argument(name, metavar=name.upper(), help=text)
    register.add_argument("--hostname", help="name for people (default: HOST)")
    register.add_argument(
        "--metadata",
        default="{}",
        metavar="JSON",
        help='such as \'{"type": "openai-api", "models": ["m"]}\' for an engine',
    )
    unregister = commands.add_parser("unregister", help="remove a service")
    unregister.add_argument("name", metavar="NAME")
    commands.add_parser("list", help="show all services")
    commands.add_parser("health", help="show the registry's own health")
    return parser


def _check(parsed: argparse.Namespace) -> None:
    """Turn port and metadata into values; UsageError with every fault."""
    faults = []
    if problem := base_url_problem(parsed.registry):
        faults.append(f"--registry {parsed.registry}: {problem}")
    if (token := os.environ.get(TOKEN_VARIABLE)) and (problem := token_problem(token)):
        faults.append(f"{TOKEN_VARIABLE} {problem}")
    if parsed.command == "register":
        faults += _registration_faults(parsed)
    if faults:
        raise UsageError("\n".join(f"error: {fault}" for fault in faults))


def _registration_faults(parsed: argparse.Namespace) -> list[str]:
    faults = []
    if problem := host_problem(parsed.host, ()):
        faults.append(f"HOST {parsed.host}: {problem}")
    if not (
        parsed.port.isascii() and parsed.port.isdigit() and 1 <= int(parsed.port[:9]) <= 65_534
    ):
        faults.append(f"PORT {parsed.port}: must be an integer from 1 to 65534")
    try:
        parsed.metadata = json.loads(parsed.metadata)
        if not isinstance(parsed.metadata, dict):
            faults.append("--metadata: must be a JSON object")
    except (ValueError, RecursionError) as error:
        faults.append(f"--metadata: is not JSON: {error}")
    return faults


def _register(client: RegistryClient, parsed: argparse.Namespace) -> int:
    port = int(parsed.port)
    service: dict[str, Any] = {
        "name": parsed.name,
        "host": parsed.host,
        "port": port,
        "hostname": parsed.hostname or parsed.host,
        "url": f"http://{netloc(parsed.host, port)}",
        "status": "running",
        "metadata": parsed.metadata,
    }
    answer = client.register(service)
    sys.stdout.write(f"registered {parsed.name} at {service['url']}\n")
    sys.stdout.write(
        f"it stays while it answers health probes or sends heartbeats (limit {answer['ttl']:g} s)\n"
    )
    return _OK


def _unregister(client: RegistryClient, parsed: argparse.Namespace) -> int:
    client.unregister(parsed.name)
    sys.stdout.write(f"unregistered {parsed.name}\n")
    return _OK


def _list(client: RegistryClient, _: argparse.Namespace) -> int:
    services = client.services()
    for service in services:
        health = "healthy" if service["is_healthy"] else "not healthy"
        kind = service["metadata"].get("type", "-")
        columns = (service["name"], service["url"], service["status"], health, str(kind))
        sys.stdout.write("\t".join(columns) + "\n")
    sys.stdout.write(f"{len(services)} services\n")
    return _OK


def _health(client: RegistryClient, _: argparse.Namespace) -> int:
    health = client.health()
    sys.stdout.write(json.dumps(health, indent=2) + "\n")
    return _OK


_COMMANDS = {"register": _register, "unregister": _unregister, "list": _list, "health": _health}
