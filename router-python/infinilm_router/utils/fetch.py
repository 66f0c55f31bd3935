"""One GET for the control loops (registry, probes, model lists): limits, and one kind of failure.

Each GET is a connection of its own: a kept connection to a service that has just died would fail
one probe too many, and a new one shows that the service still accepts.
"""

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from infinilm_router.utils.resources import is_shortage

_FIELDS = {"Connection": "close", "Accept-Encoding": "identity", "User-Agent": "infinilm-router"}
_REFUSED = f"[Errno {errno.ECONNREFUSED}]"


class FetchError(Exception):
    """No usable answer; `refused` when nothing listens at the address, `late` after the limit.

    `unasked` when the router could not ask for want of descriptors or memory.
    """

    def __init__(
        self, reason: str, *, refused: bool = False, late: bool = False, unasked: bool = False
    ) -> None:
        super().__init__(reason)
        self.refused = refused
        self.late = late
        self.unasked = unasked


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer."""

    status: int
    body: bytes


def control_session() -> aiohttp.ClientSession:
    """The one session of all control loops; made on the event loop, closed by its owner.

    Without a limit on connections: probes of engines that hang must not keep the others waiting.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    timeout: float,  # noqa: ASYNC109 - aiohttp's own limit covers every phase
    *,
    limit: int,
    headers: Mapping[str, str] | None = None,
) -> Fetched:
    """GET `url` within `timeout` seconds; the body may have `limit` bytes. Redirects are answers.

    Raises:
        FetchError: there is no whole answer.
    """
    try:
        async with session.get(
            url,
            headers={**_FIELDS, **(headers or {})},
            timeout=aiohttp.ClientTimeout(total=timeout),
            allow_redirects=False,
        ) as response:
            return Fetched(response.status, await _body(response, limit))
    except TimeoutError:
        raise FetchError(f"no answer within {timeout:g} s", late=True) from None
    except aiohttp.ClientConnectorError as error:
        # For a name with several addresses the texts of all attempts are put together.
        refused = _REFUSED in str(error.os_error)
        reason = error.os_error.strerror or str(error.os_error)
        if refused:
            host = f"[{error.host}]" if ":" in error.host else error.host
            reason = f"{host}:{error.port}: Connection refused"
        raise FetchError(reason, refused=refused, unasked=is_shortage(error.os_error)) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # ValueError: addresses that can't be put into a URL or a name look-up.
        raise FetchError(str(error) or type(error).__name__) from None


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise FetchError(f"answer larger than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def parse_json(body: bytes) -> object:
    """The JSON value of an answer; NaN and infinities, which JSON has not, become null.

    Raises:
        FetchError: it is no JSON.
    """
    try:
        return json.loads(body, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FetchError(f"not JSON: {error}") from None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
