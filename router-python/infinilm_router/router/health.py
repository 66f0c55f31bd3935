"""Probes engines: three bad answers in a row take one out, two good ones bring it back."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import aiohttp

from infinilm_router.config import RouterConfig
from infinilm_router.router.table import Service, ServiceTable, TableStore
from infinilm_router.utils.fetch import FetchError, fetch
from infinilm_router.utils.tasks import Job, TaskSet

log = logging.getLogger(__name__)

JITTER = 0.1  # of the interval, so that many routers and engines do not probe in step
FAST_INTERVAL = 1.0  # seconds, at most, while the verdict is changing
MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a models list may be the probe
NOT_HERE = frozenset((404, 405, 501))
NEEDS_KEY = frozenset((401, 403))

Key = tuple[str, tuple[str, ...]]
"""A service's name and where it is probed: at another address it is another engine."""


@dataclass(slots=True)
class RiseFall:
    """Turns single results into a verdict. The first result of all counts by itself."""

    fall: int
    rise: int
    up: bool = True
    streak: int = 0  # results in a row that speak against the verdict
    judged: bool = False

    def count(self, *, good: bool) -> bool:
        """Take in a result; True when it changed the verdict."""
        first, self.judged = not self.judged, True
        if good == self.up:
            self.streak = 0
            return False
        self.streak += 1
        needed = 1 if first else self.fall if self.up else self.rise
        if self.streak < needed:
            return False
        self.up, self.streak = good, 0
        return True

    @property
    def changing(self) -> bool:
        """True while results speak against the verdict: the next one is worth having soon."""
        return self.streak > 0


class HealthProber:
    """One task and at most one probe in flight for each engine.

    A new engine is up until its first probe, at once, says otherwise. Only `down` of the table is
    written here: what the registry says and what traffic shows are kept apart (D5).
    """

    def __init__(
        self,
        config: RouterConfig,
        session: aiohttp.ClientSession,
        store: TableStore,
        on_change: Callable[[Service, bool], None],
    ) -> None:
        self._session = session
        self._store = store
        self._on_change = on_change
        self._last_checks: dict[str, float] = {}
        self._tasks: TaskSet[Key] = TaskSet()
        self.configure(config)

    def configure(self, config: RouterConfig) -> None:
        """Probe by these settings from now on."""
        self._config = config
        key = config.engine_api_key
        # For the engine itself only: a health_url may lead anywhere.
        self._key = {"Authorization": f"Bearer {key}"} if key else {}

    def last_check(self, name: str) -> float | None:
        """Wall time of the last finished probe, None before the first."""
        return self._last_checks.get(name)

    async def run(self) -> None:
        """Keep a probe task for each engine, until cancelled."""
        try:
            while True:
                table = self._store.current
                self._tasks.keep(self._wanted(table))
                self._forget(table)
                await self._store.changed(table)
        finally:
            await self._tasks.close()

    def _wanted(self, table: ServiceTable) -> Mapping[Key, Job]:
        return {
            (engine.name, engine.health_urls): partial(self._watch, engine)
            for engine in table.engines
        }

    def _forget(self, table: ServiceTable) -> None:
        gone = self._last_checks.keys() - {engine.name for engine in table.engines}
        for name in gone:
            del self._last_checks[name]

    async def _watch(self, engine: Service) -> None:
        """Probe one engine for ever."""
        verdict = RiseFall(self._config.health_fall, self._config.health_rise)
        self._store.set_down(engine.name, down=False)  # said of the engine that had the name before
        while True:
            fault = await self._probe(engine)
            self._last_checks[engine.name] = time.time()
            if verdict.count(good=fault is None):
                self._change(engine, fault)
            config = self._config
            verdict.fall, verdict.rise = config.health_fall, config.health_rise
            interval = config.health_interval
            if verdict.changing or not verdict.up:
                interval = min(interval, FAST_INTERVAL)
            await asyncio.sleep(interval * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311

    def _change(self, engine: Service, fault: str | None) -> None:
        if fault is None:
            log.info("engine up name=%s", engine.name)
        else:
            log.warning("engine down name=%s reason=%r", engine.name, fault)
        self._store.set_down(engine.name, down=fault is not None)
        self._on_change(engine, fault is None)

    async def _probe(self, engine: Service) -> str | None:
        """One probe: None when the engine is well, else what is wrong."""
        try:
            return await self._ask(engine)
        except FetchError as error:
            return str(error)

    async def _ask(self, engine: Service) -> str | None:
        first, *own = engine.health_urls
        if not own:
            return _verdict(first, await self._status(first))
        if not self._has_neighbour(engine):
            try:
                return _verdict(first, await self._status(first))
            except FetchError as error:
                if not error.refused:
                    raise
        return await self._ask_itself(own)

    def _has_neighbour(self, engine: Service) -> bool:
        """Whether the next port belongs to another engine, and so not to a babysitter."""
        after = (engine.host, engine.port + 1)
        return any(other.address == after for other in self._store.current.engines)

    async def _ask_itself(self, urls: list[str]) -> str | None:
        """An engine without a babysitter: its health call, or its models list where it has none."""
        health, *lists = urls
        status = await self._status(health, self._key)
        if status not in NOT_HERE:
            return _verdict(health, status)
        for url in lists:
            status = await self._status(url, self._key)
            if status not in NOT_HERE:
                # It asks for a key that only its clients have: it is there and works.
                return None if status in NEEDS_KEY else _verdict(url, status)
        return f"{health} and {lists[-1]} answered {status}; set metadata.health_url"

    async def _status(self, url: str, headers: Mapping[str, str] | None = None) -> int:
        timeout = self._config.health_timeout
        answer = await fetch(self._session, url, timeout, limit=MAX_ANSWER_BYTES, headers=headers)
        return answer.status


def _verdict(url: str, status: int) -> str | None:
    return None if 200 <= status <= 299 else f"{url} answered {status}"
