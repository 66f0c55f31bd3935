"""Reads the list of services from the first registry that answers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp

from infinilm_router.registry.entries import service_from_registry
from infinilm_router.router.table import Service
from infinilm_router.utils.checks import UnusableError
from infinilm_router.utils.fetch import FetchError, fetch, parse_json

log = logging.getLogger(__name__)

MAX_LIST_BYTES = 16 * 1024 * 1024
MAX_LOGGED = 1000  # texts about unusable entries, remembered so that each is logged once


class RegistryError(Exception):
    """No registry gave a usable answer; the text names each and why."""


@dataclass(frozen=True, slots=True)
class RegistryAnswer:
    """A list of services; `revision` is None for registries that know no watch."""

    services: tuple[Service, ...]
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class NotModified:
    """The list is still that of the revision asked about."""


class RegistryClient:
    """Stays with the registry that answers and goes to the next one when it fails."""

    def __init__(
        self, session: aiohttp.ClientSession, urls: Sequence[str], timeout: float = 2.0
    ) -> None:
        self._session = session
        self._urls = list(urls)
        self._timeout = timeout
        self._current = 0
        self._logged: set[str] = set()

    async def fetch(
        self, since: int | None = None, wait: float = 0.0
    ) -> RegistryAnswer | NotModified:
        """The healthy services; with `since` only once the list is not that of this revision.

        The registry holds its answer back for up to `wait` seconds. A revision means something to
        the registry that gave it alone, so the others are asked without.

        Raises:
            RegistryError: no registry answered.
        """
        query = {"healthy": "true"}
        watch = query if since is None else {**query, "since": str(since), "wait": f"{wait:g}"}
        return await self._ask(watch, query, wait)

    async def fetch_all(self) -> RegistryAnswer:
        """All services, the unhealthy and draining ones too.

        Raises:
            RegistryError: no registry answered.
        """
        answer = await self._ask({}, {}, 0.0)
        if isinstance(answer, NotModified):
            raise RegistryError("304 to a question without a revision")
        return answer

    async def _ask(
        self, first: dict[str, str], others: dict[str, str], wait: float
    ) -> RegistryAnswer | NotModified:
        """Ask the current registry `first`, then each of the others `others`."""
        reasons = []
        for attempt in range(len(self._urls)):
            index = (self._current + attempt) % len(self._urls)
            query, patience = (first, wait) if attempt == 0 else (others, 0.0)
            try:
                answer = await self._get(self._urls[index], query, patience + self._timeout)
            except FetchError as error:
                reasons.append(f"{self._urls[index]}: {error}")
                continue
            self._current = index
            return answer
        raise RegistryError("; ".join(reasons))

    async def _get(
        self, url: str, query: dict[str, str], limit: float
    ) -> RegistryAnswer | NotModified:
        target = f"{url}/services" + (f"?{urlencode(query)}" if query else "")
        fetched = await fetch(self._session, target, limit, limit=MAX_LIST_BYTES)
        if fetched.status == 304 and "since" in query:
            return NotModified()
        if fetched.status != 200:
            raise FetchError(f"answered {fetched.status}")
        return self._parse(parse_json(fetched.body))

    def _parse(self, content: object) -> RegistryAnswer:
        entries = content.get("services") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(entries, list):
            raise FetchError("the answer has no list of services")
        services: dict[str, Service] = {}
        for entry in entries:
            try:
                service = service_from_registry(entry)
            except UnusableError as error:
                self._log_once(str(error))
                continue
            services.setdefault(service.name, service)
        revision = content.get("revision")
        watchable = isinstance(revision, int) and revision >= 0
        return RegistryAnswer(tuple(services.values()), revision if watchable else None)

    def _log_once(self, text: str) -> None:
        if text not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(text)
            log.warning("registry entry skipped reason=%r", text)
