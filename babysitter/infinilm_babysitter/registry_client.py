"""Calls to a registry, or to the first of several that answers."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import aiohttp

TIMEOUT = 5.0
TOKEN_VARIABLE = "INFINILM_REGISTRY_TOKEN"  # noqa: S105  # a name, not a secret

log = logging.getLogger(__name__)


class RegistryUnavailableError(Exception):
    """No registry answered, or none but with a 5xx; worth trying again later."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A registry's answer below 500; a body that is no JSON object counts as an empty one."""

    status: int
    body: Mapping[str, object]

    @property
    def error(self) -> str:
        """The registry's own words, or the status."""
        return str(self.body.get("error", f"HTTP {self.status}"))


class RegistryClient:
    """Sends each call to the registry that answered last, then to the others in turn."""

    def __init__(self, session: aiohttp.ClientSession, urls: tuple[str, ...]) -> None:
        self._session = session
        self._urls = list(urls)
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def urls(self) -> tuple[str, ...]:
        """Preferred one first."""
        return tuple(self._urls)

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        within: float | None = None,
    ) -> Answer:
        """The answer of the first registry that is well; within `within` seconds each has its turn.

        One that is `degraded` is heard only if no other knows us: what it takes from us, it may not
        be able to pass on. Raises RegistryUnavailableError with the reason of every registry.
        """
        reasons, second_best = [], None
        for url, share in self._turns(within):
            try:
                async with asyncio.timeout(share):
                    answer = await self._send(method, url + path, body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                reasons.append(f"{url}: {str(error) or type(error).__name__}")
                continue
            if answer.status >= 500:
                reasons.append(f"{url}: {answer.error}")
            elif answer.body.get("degraded") is True:
                second_best = second_best or (url, answer)
            elif second_best is None or answer.status < 300:
                self._prefer(url)
                return answer
        if second_best is not None:
            self._prefer(second_best[0])
            return second_best[1]
        raise RegistryUnavailableError("; ".join(reasons))

    async def _send(self, method: str, url: str, body: Mapping[str, object] | None) -> Answer:
        async with self._session.request(
            method,
            url,
            json=body,
            headers=self._headers,
            allow_redirects=False,
            timeout=self._timeout,
        ) as answer:
            return Answer(answer.status, parse(await answer.read()))

    def _turns(self, within: float | None) -> Iterator[tuple[str, float | None]]:
        """The registries in turn, each with a fair share of the seconds that are left by then."""
        urls, now = self.urls, time.monotonic
        deadline = None if within is None else now() + within
        for number, url in enumerate(urls):
            yield url, None if deadline is None else (deadline - now()) / (len(urls) - number)

    def _prefer(self, url: str) -> None:
        if self._urls[0] != url:
            log.info("registry changed url=%s", url)
            self._urls.remove(url)
            self._urls.insert(0, url)


def parse(text: bytes) -> Mapping[str, object]:
    """A JSON object, empty for any other body."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
