"""Probes engines: three bad answers in a row take one out, two good ones bring it back.

A refused connection at the engine's own port takes it out at once: nobody is there. An answer that
is late says nothing while requests get theirs: the engine is busy.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import NamedTuple

import aiohttp

from infinilm_router.config import RouterConfig
from infinilm_router.router.spread import Spread
from infinilm_router.router.table import Service, ServiceTable, TableStore
from infinilm_router.utils.fetch import Fetched, FetchError, fetch, parse_json
from infinilm_router.utils.tasks import Job, TaskSet

log = logging.getLogger(__name__)

FAST_INTERVAL = 1.0  # seconds, at most, while the verdict is changing
MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a models list may be the probe
NOT_HERE = frozenset((404, 405, 501))
NEEDS_KEY = frozenset((401, 403))
_WORD = re.compile(r"[a-z_]{1,32}")

Key = tuple[str, tuple[str, ...]]
"""A service's name and where it is probed: at another address it is another engine."""


class ProbeResult(Enum):
    """What a probe found."""

    OK = "ok"
    FAILED = "failed"
    REFUSED = "refused"  # nothing listens at the engine's own port
    TIMEOUT = "timeout"
    BUSY = "busy"  # no answer in time, but requests get theirs


class Finding(NamedTuple):
    """A finished probe, and what is wrong with the engine."""

    result: ProbeResult
    reason: str = ""


@dataclass(slots=True)
class RiseFall:
    """Turns single results into a verdict. The first result of all counts by itself."""

    fall: int
    rise: int
    up: bool = True
    streak: int = 0  # results in a row that speak against the verdict
    judged: bool = False

    def count(self, *, good: bool, conclusive: bool = False) -> bool:
        """Take in a result; True when it changed the verdict, as a `conclusive` one always does."""
        first, self.judged = not self.judged, True
        if good == self.up:
            self.streak = 0
            return False
        self.streak += 1
        needed = 1 if first or conclusive else self.fall if self.up else self.rise
        if self.streak < needed:
            return False
        self.up, self.streak = good, 0
        return True

    @property
    def changing(self) -> bool:
        """True while results speak against the verdict: the next one is worth having soon."""
        return self.streak > 0


@dataclass(slots=True)
class ProbeView:
    """What is known of an engine's probes: `last_check` is wall time, None before the first."""

    last_check: float | None = None
    down_reason: str | None = None
    results: Counter[str] = field(default_factory=Counter)


class HealthProber:
    """One task and at most one probe in flight for each engine.

    A new engine is up until its first probe, at once, says otherwise. Only `down` of the table is
    written here: what the registry says and what traffic shows are kept apart (D5). Of traffic it
    asks one thing, `heard_since(name, moment)`: has a byte of an answer come from that engine?
    """

    def __init__(
        self,
        config: RouterConfig,
        session: aiohttp.ClientSession,
        store: TableStore,
        on_change: Callable[[Service, bool], None],
        heard_since: Callable[[str, float], bool],
    ) -> None:
        self._session = session
        self._store = store
        self._on_change = on_change
        self._heard_since = heard_since
        self._views: dict[str, ProbeView] = {}
        self._spread = Spread()
        self._tasks: TaskSet[Key] = TaskSet()
        self.configure(config)

    def configure(self, config: RouterConfig) -> None:
        """Probe by these settings from now on."""
        self._config = config
        key = config.engine_api_key
        # For the engine itself only: a health_url may lead anywhere.
        self._key = {"Authorization": f"Bearer {key}"} if key else {}

    def view(self, name: str) -> ProbeView:
        """What is known of one engine's probes."""
        return self._views.get(name) or ProbeView()

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
        for name in self._views.keys() - {engine.name for engine in table.engines}:
            del self._views[name]

    async def _watch(self, engine: Service) -> None:
        """Probe one engine for ever."""
        loop = asyncio.get_running_loop()
        verdict = RiseFall(self._config.health_fall, self._config.health_rise)
        self._store.set_down(engine.name, down=False)  # said of the engine that had the name before
        self._views[engine.name] = ProbeView()
        while True:
            finding = await self._probe(engine, loop.time())
            self._take_in(engine, verdict, finding)
            config = self._config
            verdict.fall, verdict.rise = config.health_fall, config.health_rise
            interval = config.health_interval
            if verdict.changing or not verdict.up or finding.result is ProbeResult.BUSY:
                interval = min(interval, FAST_INTERVAL)
            moment = self._spread.next(loop.time(), interval)
            try:
                await asyncio.sleep(moment - loop.time())
            finally:
                self._spread.done(moment)

    def _take_in(self, engine: Service, verdict: RiseFall, finding: Finding) -> None:
        view = self._views[engine.name]
        view.last_check = time.time()
        view.results[finding.result.value] += 1
        if finding.result is ProbeResult.BUSY:
            return
        good = finding.result is ProbeResult.OK
        if verdict.count(good=good, conclusive=finding.result is ProbeResult.REFUSED):
            self._change(engine, finding)
        if verdict.up:
            view.down_reason = None
        elif not good:
            view.down_reason = finding.reason

    def _change(self, engine: Service, finding: Finding) -> None:
        up = finding.result is ProbeResult.OK
        if up:
            log.info("engine up name=%s", engine.name)
        else:
            log.warning("engine down name=%s reason=%r", engine.name, finding.reason)
        self._store.set_down(engine.name, down=not up)
        self._on_change(engine, up)

    async def _probe(self, engine: Service, began: float) -> Finding:
        """One probe, and what it found."""
        try:
            fault = await self._ask(engine)
        except FetchError as error:
            # Only the engine's own port ends here as refused.
            if error.refused and _ends_at_own_port(engine):
                return Finding(ProbeResult.REFUSED, str(error))
            if not (error.late or error.unasked):
                return Finding(ProbeResult.FAILED, str(error))
            busy = error.unasked or self._heard_since(engine.name, began)
            return Finding(ProbeResult.BUSY if busy else ProbeResult.TIMEOUT, str(error))
        return Finding(ProbeResult.OK) if fault is None else Finding(ProbeResult.FAILED, fault)

    async def _ask(self, engine: Service) -> str | None:
        first, *own = engine.health_urls
        if not own:
            return _fault(first, await self._get(first))
        if not self._has_neighbour(engine):
            try:
                return _fault(first, await self._get(first))
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
        answer = await self._get(health, self._key)
        if answer.status not in NOT_HERE:
            return _fault(health, answer)
        for url in lists:
            answer = await self._get(url, self._key)
            if answer.status not in NOT_HERE:
                # It asks for a key that only its clients have: it is there and works.
                return None if answer.status in NEEDS_KEY else _fault(url, answer)
        return f"{health} and {lists[-1]} answered {answer.status}; set metadata.health_url"

    async def _get(self, url: str, headers: Mapping[str, str] | None = None) -> Fetched:
        timeout = self._config.health_timeout
        return await fetch(self._session, url, timeout, limit=MAX_ANSWER_BYTES, headers=headers)


def _ends_at_own_port(engine: Service) -> bool:
    """Whether the last address that is asked is the one that requests go to."""
    own, last = f"http://{engine.netloc(engine.port)}", engine.health_urls[-1]
    return last == own or last.startswith((f"{own}/", f"{own}?"))


def _fault(url: str, answer: Fetched) -> str | None:
    """What is wrong by an answer; babysitters say it in one word, such as `stalled`."""
    if 200 <= answer.status <= 299:
        return None
    try:
        content = parse_json(answer.body)
    except FetchError:
        content = None
    word = content.get("status") if isinstance(content, dict) else None
    said = f" ({word})" if isinstance(word, str) and _WORD.fullmatch(word) else ""
    return f"{url} answered {answer.status}{said}"
