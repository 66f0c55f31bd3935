"""Keeps a registry's knowledge of this babysitter and its engine true.

One loop is the only writer: others say what should be known (`engine_ready` and so on) and the loop
sends what differs from what the registry has confirmed, else heartbeats. A registry that is away,
or came back empty, changes nothing for the engine.
"""

import asyncio
import logging
from dataclasses import dataclass

from infinilm_babysitter import pace
from infinilm_babysitter.config import Config
from infinilm_babysitter.readiness import Model
from infinilm_babysitter.records import (
    CRASHLOOP,
    DRAINING,
    RESTARTING,
    STALLED,
    Record,
    babysitter_record,
    engine_record,
)
from infinilm_babysitter.registry_client import (
    Answer,
    RegistryClient,
    RegistryUnavailableError,
)
from infinilm_babysitter.waiting import cancel

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The registry answered, and said no."""


class _ForgottenError(Exception):
    """The registry does not know us: everything has to be registered again."""


@dataclass(slots=True)
class _Entry:
    """One service: what should be known of it and what the registry has confirmed."""

    name: str
    wanted: Record | None = None
    known: Record | None = None


class Registrar:
    """Registers, renews, updates and at the end removes the two services."""

    def __init__(self, config: Config, client: RegistryClient, instance: str) -> None:
        self._config = config
        self._client = client
        self._instance = instance
        self._babysitter = _Entry(config.name, babysitter_record(config, instance))
        self._engine = _Entry(f"{config.name}-server")
        self._interval = config.timing.heartbeat_interval
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._is_new = False
        """The last call that succeeded was a registration."""
        self.problem = ""
        """Why the registry is not up to date; empty when it is."""

    @property
    def engine_is_known(self) -> bool:
        """Whether a registry has the engine, so that routers may be sending to it."""
        return self._engine.known is not None

    def engine_ready(self, models: tuple[Model, ...]) -> None:
        """The engine serves these models."""
        self._want(engine_record(self._config, self._instance, models))

    def engine_restarting(self, *, crashing: bool) -> None:
        """The engine ended and will be back: routers keep its models in mind but do not send."""
        self._want_status(CRASHLOOP if crashing else RESTARTING)

    def engine_stalled(self) -> None:
        """The engine has work and does not get on: routers send it nothing until it does."""
        self._want_status(STALLED)

    def engine_draining(self) -> None:
        """The engine takes no new requests."""
        self._want_status(DRAINING)

    def engine_gone(self) -> None:
        """The engine will not be back."""
        self._want(None)

    def start(self) -> None:
        """Begin the loop; a babysitter without registries has none."""
        if self._client.urls:
            self._loop_task = asyncio.create_task(self._run(), name="registration")

    async def flush(self, within: float) -> None:
        """Wait until the registry was told what was said last, once, and at most `within` seconds.

        A registry that cannot be reached is not waited for: the loop goes on trying.
        """
        if self._loop_task is None:
            return
        try:
            async with asyncio.timeout(within):
                await self._tried.wait()
        except TimeoutError:
            log.warning("registry not told in time reason=%r", self.problem)

    async def close(self, within: float) -> None:
        """End the loop, and remove both services, as far as that goes in `within` seconds."""
        if self._loop_task is None:
            return
        await cancel(self._loop_task)  # it may wait for a registry that hangs
        deadline = asyncio.get_running_loop().time() + within
        both = (self._engine, self._babysitter)
        await asyncio.gather(*(self._say_goodbye(each, deadline) for each in both))

    def _want_status(self, status: str) -> None:
        if self._engine.wanted is not None:
            self._want({**self._engine.wanted, "status": status})

    def _want(self, record: Record | None) -> None:
        self._engine.wanted = record
        self._tried.clear()
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._sync_or_start_over()
            except (RegistryUnavailableError, RefusedError) as error:
                self._report(str(error))
                delay = self._delay_after(error, failures)
                failures += 1
            except Exception as error:  # a fault of ours: without this loop nobody finds the engine
                log.exception("registration fails")
                self._report(repr(error))
                delay = self._interval
                failures += 1
            else:
                self._report("")
                failures = 0
                wait = pace.after_registration if self._is_new else pace.after_heartbeat
                delay = wait(self._interval)
            if not self._wake.is_set():
                self._tried.set()
            await self._sleep(delay)

    def _delay_after(self, error: Exception, failures: int) -> float:
        if isinstance(error, RefusedError):  # asking sooner changes nothing
            return self._interval
        if all(entry.known is entry.wanted for entry in (self._babysitter, self._engine)):
            return pace.after_lost_heartbeat(self._interval)
        return pace.after_failure(self._interval, failures)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _sync_or_start_over(self) -> None:
        """Send whatever differs, renew whatever does not; both again if the registry forgot us."""
        self._is_new = False
        try:
            await self._sync_both()
        except _ForgottenError:
            log.warning("registry forgot us, registering again name=%s", self._config.name)
            self._babysitter.known = self._engine.known = None
            await self._sync_both()

    async def _sync_both(self) -> None:
        refusals = []
        for entry in (self._engine, self._babysitter):  # the engine is what matters to clients
            try:
                await self._sync(entry)
            except RefusedError as error:
                refusals.append(str(error))
        if refusals:
            raise RefusedError("; ".join(refusals))

    async def _sync(self, entry: _Entry) -> None:
        wanted = entry.wanted
        if wanted is None:
            if entry.known is not None:
                await self._remove(entry)
        elif entry.known is None:
            await self._register(entry, wanted)
        elif entry.known is wanted:
            await self._renew(entry, wanted)
        else:
            await self._update(entry, wanted)

    async def _register(self, entry: _Entry, wanted: Record) -> None:
        answer = await self._client.call("POST", "/services", wanted)
        if answer.status >= 300:
            raise RefusedError(f"registration of {entry.name} refused: {answer.error}")
        entry.known = wanted
        self._is_new = True
        self._follow_interval(answer)
        log.info("registered name=%s status=%s", entry.name, wanted["status"])

    async def _update(self, entry: _Entry, wanted: Record) -> None:
        answer = await self._client.call("PUT", self._path(entry), _changes(wanted))
        _check(entry, answer)
        entry.known = wanted
        log.info("registration updated name=%s status=%s", entry.name, wanted["status"])

    async def _renew(self, entry: _Entry, wanted: Record) -> None:
        body = {"status": wanted["status"], "instance_id": self._instance}
        answer = await self._client.call("POST", self._path(entry, "/heartbeat"), body)
        _check(entry, answer)
        self._follow_interval(answer)

    async def _remove(self, entry: _Entry, within: float | None = None) -> None:
        answer = await self._client.call("DELETE", self._path(entry), within=within)
        if answer.status == 429:
            raise RefusedError(f"{entry.name}: {answer.error}")
        entry.known = None
        if answer.status < 300 or answer.status == 404:
            log.info("unregistered name=%s answer=%d", entry.name, answer.status)
        else:  # we may not, or it is another's: asking again changes nothing
            log.warning("not unregistered name=%s reason=%r", entry.name, answer.error)

    async def _say_goodbye(self, entry: _Entry, deadline: float) -> None:
        """Remove what the registry has, again and again; once what it only may have been told."""
        if entry.wanted is None and entry.known is None:
            return
        now, failures, problem = asyncio.get_running_loop().time, 0, ""
        while (left := deadline - now()) > 0:
            try:
                await self._remove(entry, left)
            except (RegistryUnavailableError, RefusedError) as error:
                problem = str(error)
            if entry.known is None:
                return
            await asyncio.sleep(min(left, pace.after_failure(self._interval, failures)))
            failures += 1
        log.warning("not unregistered name=%s reason=%r", entry.name, problem)

    def _path(self, entry: _Entry, action: str = "") -> str:
        return f"/services/{entry.name}{action}?instance_id={self._instance}"

    def _follow_interval(self, answer: Answer) -> None:
        asked = answer.body.get("heartbeat_interval")
        if isinstance(asked, (int, float)) and not isinstance(asked, bool) and asked > 0:
            self._interval = float(asked)

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("registry not up to date reason=%r", problem)
        elif self.problem and not problem and self._babysitter.known:
            log.info("registry up to date again url=%s", self._client.urls[0])
        self.problem = problem


def _changes(record: Record) -> Record:
    """The parts of a record that a PUT takes."""
    keys = ("host", "port", "hostname", "url", "status", "metadata", "weight", "instance_id")
    return {key: record[key] for key in keys if key in record}


def _check(entry: _Entry, answer: Answer) -> None:
    if answer.status == 404:
        raise _ForgottenError
    if answer.status >= 300:
        raise RefusedError(f"{entry.name}: {answer.error}")
