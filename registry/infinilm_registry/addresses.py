"""Which addresses may be registered (D14, R34). Pure: no name is resolved here."""

import re
from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from urllib.parse import SplitResult, urlsplit

IPAddress = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0[xX][0-9A-Fa-f]*)")
_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_RESERVED = IPv4Network("240.0.0.0/4")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def literal_address(host: str) -> IPAddress | None:
    """The IP address that `host` spells, or None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def address_problem(address: IPAddress, allowed: Networks) -> str | None:
    """Why no engine can be at `address`, or None. An empty `allowed` allows every network."""
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.scope_id):
        return "must be a plain IPv4 or IPv6 address, without IPv4 inside IPv6 and without a zone"
    if address.is_unspecified or address in _THIS_NETWORK:
        return (
            "is where an engine listens, not where others reach it; "
            "register this machine's name or address instead"
        )
    if address.is_link_local:
        return "must not be a link-local address"
    if address.is_multicast or address in _RESERVED:
        return "must not be a multicast, broadcast or reserved address"
    if allowed and not any(address in network for network in allowed):
        return "is outside the allowed networks " + ", ".join(map(str, allowed))
    return None


def host_problem(host: str, allowed: Networks) -> str | None:
    """Why `host` cannot be registered, or None. Names are not resolved."""
    if address := literal_address(host):
        return address_problem(address, allowed)
    if _ENDS_IN_A_NUMBER.fullmatch(host):
        return "must be an IP address in its usual form (like 192.168.1.10) or a host name"
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        return "must be a host name or an IP address, without scheme, port or path"
    return None


def url_problem(url: str, host: str, port: int) -> str | None:
    """Why `url` is not a base URL of the engine at `host`:`port`, or None."""
    if problem := base_url_problem(url):
        return problem
    parts = urlsplit(url)
    if not same_host(parts.hostname or "", host):
        return f"must have the registered host {host!r}"
    if (parts.port or _DEFAULT_PORTS[parts.scheme]) != port:
        return f"must have the registered port {port}"
    return None


def base_url_problem(url: str) -> str | None:
    """Why `url` is not a plain http(s) URL whose path can be extended, or None."""
    if not re.fullmatch(r"[!-\[\]-~]+", url):
        return "must be printable ASCII without blanks and backslashes"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is not a URL: {error}"
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == 0:
        return "must look like http://HOST:PORT or https://HOST:PORT"
    return _extra_parts_problem(url, parts)


def _extra_parts_problem(url: str, parts: SplitResult) -> str | None:
    if "@" in parts.netloc:
        return "must not carry a user name or password"
    if "#" in url or "?" in url:
        return "must not have a query or a fragment"
    if not _BASE_PATH.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")):
        return "must have a plain path without dot segments and percent signs"
    return None


def same_host(one: str, other: str) -> bool:
    """Whether two spellings mean one host: equal addresses, or names that differ only in case."""
    first, second = literal_address(one), literal_address(other)
    if first or second:
        return first == second
    return one.lower() == other.lower()


def netloc(host: str, port: int) -> str:
    """`host:port` as a URL writes it: IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
