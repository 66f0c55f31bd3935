"""Header field rules: what ends at this hop and what the router writes itself (docs/HTTP.md)."""

import re
import secrets
from collections.abc import Callable

# RFC 9110 7.6.1: fields that are meant for one connection only. `Proxy-*` is matched by prefix.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"content-length",
        b"upgrade",
        b"http2-settings",
    )
)
# What a client may not claim unless it is a trusted proxy.
FORWARDED = frozenset(
    (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")
)
SAFE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def connection_tokens(value: bytes) -> list[bytes]:
    """The lower-case options of a `Connection` value; tokens that are none are left out."""
    return [t.lower() for part in value.split(b",") if _TOKEN.fullmatch(t := part.strip())]


def request_id_maker() -> Callable[[], bytes]:
    """A function that makes new ids: 12 random characters for this process, then a counter."""
    prefix = secrets.token_hex(6).encode()
    number = 0

    def make() -> bytes:
        nonlocal number
        number += 1
        return b"%b-%x" % (prefix, number)

    return make
