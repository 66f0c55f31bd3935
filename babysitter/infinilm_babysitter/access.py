"""Who may restart the engine, take it out, and read its log. Pure but for the token's variable."""

import hashlib
import hmac
import ipaddress
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

TOKEN_VARIABLE = "INFINILM_ADMIN_TOKEN"  # noqa: S105  # a name, not a secret
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
LOCAL_NAMES = frozenset({"localhost", "ip6-localhost"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is not allowed."""

    status: int
    reason: str


def refusal(token: str, peer: str | None, headers: Mapping[str, str]) -> Refusal | None:
    """None if the call is allowed: by the token where one is set, else from this machine only.

    Args:
        token: what callers have to know; empty if none is set.
        peer: the caller's address.
        headers: of its request.
    """
    if token:
        return _by_token(token, headers.get("Authorization", ""))
    reason = _not_local(peer, headers)
    if not reason:
        return None
    hint = f"set {TOKEN_VARIABLE} for the babysitter and send it as bearer token"
    return Refusal(403, f"{reason}: only this machine itself may do this; or {hint}")


def _by_token(token: str, authorization: str) -> Refusal | None:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        return Refusal(401, "send Authorization: Bearer TOKEN with the admin token")
    if not hmac.compare_digest(_digest(given.strip()), _digest(token)):
        return Refusal(401, "this is not the admin token")
    return None


def _digest(text: str) -> bytes:
    """Of one length for all, so that the comparison does not tell how long the token is."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _not_local(peer: str | None, headers: Mapping[str, str]) -> str:
    """Why this is no call of somebody on this machine; empty if it is one."""
    if not _is_loopback(peer or ""):
        return f"you call from {peer}"
    if any(name in headers for name in FORWARDED):
        return "a proxy passed this on"
    # A page from elsewhere, shown by a browser on this machine, is not this machine either.
    if "Origin" in headers or "Sec-Fetch-Site" in headers:
        return "a browser sends this"
    host = _host(headers.get("Host", ""))
    if host and host not in LOCAL_NAMES and not _is_loopback(host):
        return f"you call us {host}, not localhost"
    return ""


def _host(field: str) -> str:
    """The name in a `Host` field, without its port."""
    try:
        return urllib.parse.urlsplit(f"//{field}").hostname or ""
    except ValueError:
        return field


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
