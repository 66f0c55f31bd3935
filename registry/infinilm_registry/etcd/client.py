"""Calls to etcd's JSON gateway (3.4 to 3.6): every call has a limit, and several members a turn."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import aiohttp

from infinilm_registry.etcd.wire import Json, LineSplitter

CALL_SECONDS = 2.0
_AT_ONCE = 64
_PREFIX = "/v3"
# gRPC's codes for what another member, or the same one later, may well do: cancelled, unknown,
# deadline exceeded, resource exhausted, internal, unavailable.
_PASSING = {1, 2, 4, 8, 13, 14}


class EtcdError(Exception):
    """etcd will not do what is asked, whichever member is asked."""


class EtcdUnavailableError(Exception):
    """No member answered; the text says why. `uncertain`: one may have done what was asked."""

    def __init__(self, reason: str, *, uncertain: bool = False) -> None:
        super().__init__(reason)
        self.uncertain = uncertain


class EtcdClient:
    """Stays with the member that answers and goes to the next one when it fails."""

    def __init__(self, endpoints: Sequence[str], seconds: float = CALL_SECONDS) -> None:
        self._endpoints = list(endpoints)
        self._seconds = seconds
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._moved = asyncio.Event()  # set once, when `endpoint` is another one
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    @property
    def endpoint(self) -> str:
        """The member that is asked first."""
        return self._endpoints[0]

    async def close(self) -> None:
        """Release the connections."""
        await self._session.close()

    async def left(self, endpoint: str) -> None:
        """Return when it is not the member that is asked first."""
        while self.endpoint == endpoint:
            await self._moved.wait()

    async def call(self, path: str, body: Json, seconds: float | None = None) -> Json:
        """The answer of the first member that gives one, within so many seconds for each.

        Raises:
            EtcdUnavailableError: none does.
            EtcdError: etcd refuses.
        """
        return await self._ask(path, body, seconds or self._seconds, only_once=False)

    async def call_once(self, path: str, body: Json) -> Json:
        """The same, but no other member is asked once one may have done what is asked."""
        return await self._ask(path, body, self._seconds, only_once=True)

    async def watch(self, endpoint: str, body: Json) -> AsyncGenerator[Json]:
        """What a member tells of a watch, message by message, until it ends.

        Raises:
            EtcdUnavailableError: it does not begin, or it broke.
            EtcdError: etcd refuses.
        """
        splitter = LineSplitter()
        with _telling(endpoint):
            # The gateway sends no head before there is a first message.
            async with asyncio.timeout(self._seconds):
                response = await self._post(endpoint, "/watch", body)
                if response.status != 200:
                    async with response:
                        _result(json.loads(await response.read()), response.status)
            with contextlib.closing(response):
                async for data in response.content.iter_any():
                    for message in splitter.feed(data):
                        yield _result(message, response.status)

    async def _ask(self, path: str, body: Json, seconds: float, *, only_once: bool) -> Json:
        reasons = []
        for _ in range(len(self._endpoints)):
            endpoint = self.endpoint
            try:
                async with self._slots:
                    return await self._answer(endpoint, path, body, seconds)
            except EtcdUnavailableError as error:
                self._leave(endpoint)
                if only_once and error.uncertain:
                    raise
                reasons.append(str(error))
        raise EtcdUnavailableError("; ".join(reasons))

    async def _answer(self, endpoint: str, path: str, body: Json, seconds: float) -> Json:
        with _telling(endpoint):
            async with asyncio.timeout(seconds):
                async with await self._post(endpoint, path, body) as response:
                    return _result(json.loads(await response.read()), response.status)

    async def _post(self, endpoint: str, path: str, body: Json) -> aiohttp.ClientResponse:
        url = endpoint + _PREFIX + path
        return await self._session.post(url, data=json.dumps(body), allow_redirects=False)

    def _leave(self, endpoint: str) -> None:
        """Ask another one first, unless somebody has seen to that already."""
        if self.endpoint == endpoint:
            self._endpoints.append(self._endpoints.pop(0))
            self._moved.set()
            self._moved = asyncio.Event()


@contextlib.contextmanager
def _telling(endpoint: str) -> Iterator[None]:
    """Every way in which a member can fail to answer is an EtcdUnavailableError."""
    try:
        yield
    except EtcdUnavailableError as error:
        raise EtcdUnavailableError(f"{endpoint}: {error}", uncertain=error.uncertain) from None
    except aiohttp.ClientConnectorError as error:
        reason = error.os_error.strerror or str(error.os_error)
        raise EtcdUnavailableError(f"{endpoint}: {reason}") from None
    except TimeoutError:
        raise EtcdUnavailableError(f"{endpoint}: no answer in time", uncertain=True) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise EtcdUnavailableError(f"{endpoint}: {reason}", uncertain=True) from None


def _result(body: Any, status: int) -> Json:
    """What an answer carries; streams wrap it, and errors differ between etcd's versions."""
    if not isinstance(body, dict):
        raise EtcdUnavailableError("the answer is no JSON object: is this etcd?", uncertain=True)
    error = body.get("error")
    if status == 200 and not error:
        result: Json = body.get("result", body)
        return result
    details = error if isinstance(error, dict) else body
    code = details.get("grpc_code", details.get("code"))
    message = str(details.get("message") or error or f"HTTP {status}")
    if code is None or code in _PASSING:
        raise EtcdUnavailableError(message, uncertain=True)
    raise EtcdError(message)
