"""Who may write (D14, R33): the token, or the place a request comes from; and how fast."""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from infinilm_registry.errors import ForbiddenError, UnauthorizedError, WriteLimitError

_LOCAL_NETWORKS = (
    IPv4Network("127.0.0.0/8"),
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("::1/128"),
    IPv6Network("fc00::/7"),
)
_MOST_CLIENTS = 10_000


def token_problem(token: str) -> str | None:
    """Why a header cannot carry `token` as it is; None: it can."""
    if re.fullmatch(r"[!-~]+", token):
        return None
    return "must be of visible ASCII characters, without blanks and line ends"


def is_local(address: str | None) -> bool:
    """Whether a peer is this machine or sits in a private network."""
    try:
        peer = ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped:
        peer = peer.ipv4_mapped
    return any(peer in network for network in _LOCAL_NETWORKS)


class WriteAccess:
    """Decides about one write; holds only the token's hash."""

    def __init__(self, token: str | None) -> None:
        self._digest = _digest(token) if token else None

    @property
    def token_needed(self) -> bool:
        """Whether writers must show a token."""
        return self._digest is not None

    def check(self, peer: str | None, authorization: str, origin: str | None) -> None:
        """Let the write pass.

        Raises:
            UnauthorizedError: a token is set and this is not it.
            ForbiddenError: no token is set and the writer is not a program nearby.
        """
        if self._digest is not None:
            scheme, _, given = authorization.partition(" ")
            if (
                not hmac.compare_digest(_digest(given.strip()), self._digest)
                or scheme.lower() != "bearer"
            ):
                raise UnauthorizedError
        elif origin is not None:
            # A web page open in a browser on this machine can send requests to localhost.
            raise ForbiddenError("Without a registry token, writes from browsers are refused")
        elif not is_local(peer):
            raise ForbiddenError(
                "Without a registry token, writes are taken from loopback and private addresses "
                "only; set INFINILM_REGISTRY_TOKEN on the registry and on its clients"
            )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class WriteLimiter:
    """A token bucket for each client: `rate` writes a second, `burst` at once."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> None:
        """Count one write; WriteLimitError with the seconds to wait if there is none left."""
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._rate)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _MOST_CLIENTS:
            # The longest idle one; its bucket has most likely filled up again.
            del self._buckets[next(iter(self._buckets))]
        if left < 1:
            message = f"Too many writes: at most {self._rate:g} a second from one client"
            raise WriteLimitError(message, (1 - left) / self._rate)
